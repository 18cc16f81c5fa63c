#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tocsin_fuzz::run("template", data));
