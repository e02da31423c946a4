//! Programs that code of a worker starts.

use std::process::Command;

use crate::sys;

/// Has the program that `command` starts take SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE and SIGTTOU by default.
///
/// A worker ignores these signals, and a program that it starts inherits that. So what a service manager or a
/// terminal sends to all processes ends neither the worker nor the programs that its call waits for. Use this for
/// a program that is to be ended by one of these signals. SIGKILL ends a program in any case.
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
