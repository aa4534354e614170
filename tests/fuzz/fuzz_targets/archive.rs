#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| linkspan_fuzz::archive::run(input));
