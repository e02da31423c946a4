//! The signals that end a server or start it anew, or tell of a worker's death, read from a descriptor while
//! it runs.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys::{self, Disposition};

/// Blocks the signals for as long as it lives.
#[derive(Debug)]
pub(crate) struct Signals {
    descriptor: SignalFd,
    before: SigSet,
    _deaths: Disposition,
    /// Those whose action workers must not have. Nothing in a server changes actions once it runs.
    reset: OnceCell<Vec<Signal>>,
}

impl Signals {
    pub(crate) fn take_over() -> io::Result<Self> {
        let wanted: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD]
            .into_iter()
            .collect();
        let before = sys::hold_back(&wanted)?;
        let deaths = Disposition::of_deaths()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&wanted, flags)?;
        Ok(Self { descriptor, before, _deaths: deaths, reset: OnceCell::new() })
    }

    /// Finds out what workers will have to reset.
    pub(crate) fn find_what_to_reset(&self) {
        self.reset.get_or_init(sys::changed_signals);
    }

    /// In a new worker.
    #[inline]
    pub(crate) fn reset_for_worker(&self) -> io::Result<()> {
        sys::reset_for_worker(self.reset.get_or_init(sys::changed_signals))
    }

    /// The next one that came.
    pub(crate) fn next(&self) -> Option<Signal> {
        let info = self.descriptor.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo.cast_signed()).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // The mask was valid when it was read.
        let _ = self.before.thread_set_mask();
    }
}
