//! See [`bonafide_fuzz::federation`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::federation::check(data);
});
