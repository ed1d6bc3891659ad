//! What a back-end may answer. See `src/replies.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhost_user_frontend_fuzz::replies(data));
