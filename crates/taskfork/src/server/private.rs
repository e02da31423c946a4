//! What the command, the gateway and macros need of the server, behind `taskfork::__private`.

use std::io;
use std::path::Path;
use std::process::Command;

pub use super::{Hangup, ServiceManager};

/// What SIGHUP does in this process, given the server's option `restart_on_hangup`.
pub fn meaning_of_hangup(restart: Option<bool>) -> Hangup {
    super::meaning_of_hangup(restart)
}

/// The service manager that started this process.
pub fn service_manager() -> ServiceManager {
    super::service_manager()
}

/// Makes `command` start a server with its signals blocked until the server handles them.
pub fn block_signals_until_served(command: &mut Command) -> &mut Command {
    super::block_signals_until_served(command)
}

/// Makes `command` start a gateway with SIGHUP, SIGUSR1 and SIGUSR2 blocked until it calls [`handle_kept_signals`].
pub fn keep_signals_until_handled(command: &mut Command) -> &mut Command {
    super::keep_signals_until_handled(command)
}

/// Lets this gateway have the signals that it has kept, because its handlers exist.
///
/// # Errors
/// If the system refuses.
pub fn handle_kept_signals() -> io::Result<()> {
    super::handle_kept_signals()
}

/// For [`test_support!`](crate::test_support).
pub fn register_test_servers(module: &'static str, entries: &[(&'static str, super::Entry)]) {
    super::register_test_servers(module, entries);
}

/// The file that a server executes to start this program again.
pub fn program_file() -> &'static Path {
    super::program_file::path()
}
