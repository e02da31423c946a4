//! Tests of behaviour with real processes. The binary has its own `main`: these tests start servers
//! by executing the binary again, and such a program must call `taskfork::init` first in `main`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod access;
mod addresses;
mod bad_peers;
mod blob_limits;
mod blobs;
mod blocking;
mod bounds;
mod busy_poll;
mod calls;
mod deadlines;
mod deaths;
mod descriptors;
mod early_calls;
mod errors;
mod executable;
mod fairness;
mod file_limits;
mod files;
mod floods;
mod forks;
mod guardian;
mod handles;
mod handshake;
mod hello_limits;
mod inputs;
mod json_bytes;
mod keep_pid;
mod leaks;
mod leaving;
mod limits;
mod load;
mod log_output;
mod logs;
mod many_workers;
mod map;
#[cfg(feature = "metrics")]
mod metrics;
mod new_version;
mod open_files;
mod orphans;
mod overload;
mod perl;
mod perl_client;
mod pipelining;
mod pool;
mod preload;
mod priorities;
mod privileges;
mod program_streams;
mod progress;
mod recycling;
mod relayed;
mod replace_after;
mod reports;
mod resize;
mod restart;
mod retries;
mod ring_peers;
mod rings;
mod run_timeout;
mod sandbox;
mod scratch;
mod server;
mod service_manager;
mod setup;
mod several_interfaces;
mod shared_buffer_peers;
mod shared_buffers;
mod shared_memory;
mod shutdown;
mod sighup;
mod signals;
mod socket_files;
#[cfg(feature = "spans")]
mod spans;
mod spares;
mod spawn_config;
mod spawn_failures;
mod spawned;
mod status;
mod stderr;
mod streams;
mod support;
mod takeover;
mod time_limits;
mod traces;
mod typed;
mod typed_clients;
mod users;
mod worker_groups;
mod workers;

use support::trial;

/// Restores the default action of SIGHUP. Under `nohup`, the programs that tests start would inherit
/// that it is ignored.
fn restore_sighup() {
    // SAFETY: `SIG_DFL` installs no handler.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_DFL)
    };
}

fn main() {
    if support::programs::run_requested_before_init() {
        return;
    }
    taskfork::init(support::servers::ENTRIES);
    if support::programs::run_requested() {
        return;
    }
    restore_sighup();
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, support::trials()).exit();
}

// The compiler ignores a file that no `mod` declares, and the tests in it would not run.
trial!(each_file_is_a_module, async || {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/behaviour");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(module) = name.strip_suffix(".rs").filter(|module| *module != "main") else {
            continue;
        };
        let declaration = format!("\nmod {module};\n");
        assert!(
            include_str!("main.rs").contains(&declaration),
            "main.rs does not declare {module}"
        );
    }
});
