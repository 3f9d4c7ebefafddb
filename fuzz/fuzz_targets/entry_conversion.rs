//! See [`bonafide_fuzz::entry_conversion`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::entry_conversion::check(data);
});
