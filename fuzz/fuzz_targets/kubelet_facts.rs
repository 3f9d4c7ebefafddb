//! See [`bonafide_fuzz::kubelet_facts`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::kubelet_facts::check(data);
});
