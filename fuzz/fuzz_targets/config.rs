//! Reads a file of pools as `taskfork serve --config` does.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]

// The command is a program, not a library, so its files are included.
#[allow(dead_code)]
#[path = "../../crates/taskfork-cli/src/config.rs"]
mod config;
#[allow(dead_code)]
#[path = "../../crates/taskfork-cli/src/error.rs"]
mod error;
#[allow(dead_code)]
#[path = "../../crates/taskfork-cli/src/sandbox_options.rs"]
mod sandbox_options;
#[allow(dead_code)]
#[path = "../../crates/taskfork-cli/src/server_address.rs"]
mod server_address;
#[allow(dead_code)]
#[path = "../../crates/taskfork-cli/src/units.rs"]
mod units;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use taskfork_fuzz::bounded;

fuzz_target!(|data: &[u8]| bounded(read, 600, data));

fn read(data: &[u8]) {
    static FILE: OnceLock<std::path::PathBuf> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        std::env::temp_dir().join(format!("taskfork-fuzz-config-{}.toml", std::process::id()))
    });
    std::fs::write(file, data).unwrap();
    if let Ok(pools) = config::read(file) {
        assert!(!pools.is_empty());
        assert!(pools.values().all(|pool| pool.listen.is_some() && !pool.command.is_empty()));
    }
    std::fs::remove_file(file).unwrap();
}
