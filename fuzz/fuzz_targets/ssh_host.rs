//! See [`bonafide_fuzz::ssh_host`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bonafide_fuzz::ssh_host::check(data);
});
