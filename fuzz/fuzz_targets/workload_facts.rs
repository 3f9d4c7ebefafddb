//! See [`bonafide_fuzz::workload_facts`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::workload_facts::check(data);
});
