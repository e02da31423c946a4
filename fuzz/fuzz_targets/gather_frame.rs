#![no_main]

use libfuzzer_sys::fuzz_target;
use taskfork_fuzz::bounded;

fuzz_target!(|data: &[u8]| bounded(taskfork::fuzz::gather_frame, 1024, data));
