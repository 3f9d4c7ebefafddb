//! See [`bonafide_fuzz::tpm_devid`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::tpm_devid::check(data);
});
