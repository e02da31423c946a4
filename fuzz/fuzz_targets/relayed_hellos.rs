#![no_main]

use libfuzzer_sys::fuzz_target;
use taskfork_fuzz::bounded;

fuzz_target!(|data: &[u8]| bounded(taskfork::fuzz::relayed_hellos, 16, data));
