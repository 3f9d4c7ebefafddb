//! See [`bonafide_fuzz::foreign_token`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::foreign_token::check(data);
});
