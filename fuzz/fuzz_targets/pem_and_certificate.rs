//! See [`bonafide_fuzz::pem_and_certificate`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::pem_and_certificate::check(data);
});
