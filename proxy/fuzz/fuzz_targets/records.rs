#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pgtlsproxy::trial::contend_by(input));
