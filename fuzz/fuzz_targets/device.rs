//! What a device makes of its back-ends, and of its caller. See `src/device.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhost_user_frontend_fuzz::device(data));
