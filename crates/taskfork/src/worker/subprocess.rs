//! Programs that user code in a worker starts.

use std::process::Command;

use crate::sys;

/// Resets SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE and SIGTTOU to their default actions in the program
/// that `command` starts. Returns `command`.
///
/// A worker ignores these signals, and programs that it starts inherit that. So a signal that a service
/// manager or a terminal sends to all processes ends neither the worker nor a program that a call waits
/// for. Use this function for a program that one of these signals must be able to end. SIGKILL ends any
/// program.
///
/// ```
/// use std::process::Command;
///
/// # fn main() -> std::io::Result<()> {
/// // `timeout` ends the other program by SIGTERM.
/// let mut command = Command::new("timeout");
/// command.args(["0.1", "sleep", "60"]);
/// let status = taskfork::worker::default_signals(&mut command).status()?;
/// assert_eq!(status.code(), Some(124));
/// # Ok(())
/// # }
/// ```
pub fn default_signals(command: &mut Command) -> &mut Command {
    sys::set_default_signals(command);
    command
}
