//! See [`bonafide_fuzz::spire_config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::spire_config::check(data);
});
