//! See [`bonafide_fuzz::agent_store_file`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::agent_store_file::check(data);
});
