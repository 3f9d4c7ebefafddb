//! See [`bonafide_fuzz::spiffe_id`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::spiffe_id::check(data);
});
