//! What a back-end may ask on its own channel. See `src/channel.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhost_user_frontend_fuzz::channel(data));
