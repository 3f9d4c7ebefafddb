//! See [`bonafide_fuzz::gpu_evidence`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::gpu_evidence::check(data);
});
