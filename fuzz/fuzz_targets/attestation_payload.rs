//! See [`bonafide_fuzz::attestation_payload`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::attestation_payload::check(data);
});
