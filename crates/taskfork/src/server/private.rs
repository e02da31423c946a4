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

/// Blocks SIGHUP, SIGUSR1 and SIGUSR2 in this thread. A server that runs here takes them; other code calls
/// [`handle_all_kept_signals`] when it has handlers. By default these signals end a process.
///
/// # Errors
/// If the system refuses.
pub fn keep_signals() -> io::Result<()> {
    super::keep_signals()
}

/// Lets this thread have the signals that [`keep_signals`] has kept.
///
/// # Errors
/// If the system refuses.
pub fn handle_all_kept_signals() -> io::Result<()> {
    super::handle_all_kept_signals()
}

/// Makes workers run another handler of SIGALRM after their own: that of an interpreter, which interrupts a call at its
/// deadline. Only the first call has an effect, on workers that are forked later.
///
/// # Safety
/// The handler must be safe in a signal handler, at any point of the program.
#[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
pub unsafe fn set_next_alarm_handler(handler: extern "C" fn(std::ffi::c_int)) {
    // SAFETY: the caller has promised the same.
    unsafe { crate::sys::set_next_alarm_handler(handler) };
}

/// Whether the fork that happens now is that of a server's guardian, which never runs code of the program. Handlers of forks,
/// such as those of an interpreter, can do nothing then.
pub fn is_forking_guardian() -> bool {
    super::guardian::is_forking()
}

/// For [`test_support!`](crate::test_support).
pub fn register_test_servers(module: &'static str, entries: &[(&'static str, super::Entry)]) {
    super::register_test_servers(module, entries);
}

/// The file that a server executes to start this program again.
pub fn program_file() -> &'static Path {
    super::program_file::path()
}
