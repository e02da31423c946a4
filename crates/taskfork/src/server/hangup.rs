//! The meaning of SIGHUP. It comes from an operator who wants a restart, and from a terminal that
//! closes.

use nix::sys::signal::Signal;

use super::log;
use crate::sys;

/// What a SIGHUP asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// Nothing: this process was started with the signal ignored, as by `nohup`.
    Ignored,
    /// A restart.
    Restart,
    /// A graceful shutdown, because the terminal is gone.
    Shutdown,
}

impl Hangup {
    /// Decides at the start of the server. When the SIGHUP of a terminal arrives, that terminal is
    /// no controlling terminal any more.
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

/// Logs why a SIGHUP does not restart the server.
pub(super) fn explain_shutdown() {
    log::info!(
        "SIGHUP ends a server that has a controlling terminal: set `restart_on_hangup` for a restart"
    );
}

/// Only a process with a controlling terminal can open this path.
fn has_controlling_terminal() -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, Mode::empty()).is_ok()
}
