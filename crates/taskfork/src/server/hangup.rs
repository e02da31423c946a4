//! What SIGHUP means to a server. A terminal that closes sends it as well as an operator who wants a restart.

use nix::sys::signal::Signal;

use super::log;
use crate::sys;

/// What a SIGHUP asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// This process was started with the signal ignored, as by `nohup`.
    Ignored,
    /// A new server is to take over.
    Restart,
    /// The terminal is gone: a graceful shutdown.
    Shutdown,
}

impl Hangup {
    /// As things are when the server starts. A terminal that closes is no controlling terminal any more when its
    /// SIGHUP arrives.
    pub(crate) fn of_this_process(restart: Option<bool>) -> Self {
        if sys::is_ignored(Signal::SIGHUP) {
            return Self::Ignored;
        }
        match restart {
            Some(true) => Self::Restart,
            Some(false) => Self::Shutdown,
            None if has_controlling_terminal() => Self::Shutdown,
            None => Self::Restart,
        }
    }
}

/// Logs why a SIGHUP is no restart.
pub(super) fn explain_shutdown() {
    log::info!(
        "SIGHUP ends a server that has a controlling terminal: set `restart_on_hangup` for a restart"
    );
}

/// Only a process that has one can open it by this name.
fn has_controlling_terminal() -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, Mode::empty()).is_ok()
}
