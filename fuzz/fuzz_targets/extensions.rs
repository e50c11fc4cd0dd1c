//! See the module of the same name.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| migration_ipc_fuzz::extensions::run(data));
