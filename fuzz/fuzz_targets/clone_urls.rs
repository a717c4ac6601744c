#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tokenkeeper::fuzzing::clone_urls(input));
