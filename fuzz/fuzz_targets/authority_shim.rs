//! See [`bonafide_fuzz::authority_shim`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::authority_shim::check(data);
});
