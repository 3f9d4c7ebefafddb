//! See [`bonafide_fuzz::server_records`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::server_records::check(data);
});
