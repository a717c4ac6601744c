#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tokenkeeper::fuzzing::flag_files(input));
