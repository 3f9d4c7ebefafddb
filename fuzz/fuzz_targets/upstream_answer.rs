//! See [`bonafide_fuzz::upstream_answer`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::upstream_answer::check(data);
});
