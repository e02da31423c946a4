#![no_main]

use libfuzzer_sys::fuzz_target;
use taskfork_fuzz::bounded;

fuzz_target!(|data: &[u8]| bounded(taskfork_nats::fuzz::session_messages, 32, data));
