//! Calls of the C API, in any order and with any arguments. See `src/c_api.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhost_user_frontend_fuzz::c_api(data));
