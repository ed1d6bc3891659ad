//! What a file that describes a back-end may have. See `src/programs.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhost_user_frontend_fuzz::programs(data));
