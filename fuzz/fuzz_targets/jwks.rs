//! See [`bonafide_fuzz::jwks`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::jwks::check(data);
});
