//! The signals of a server, which it reads from a descriptor: requests to end, to restart, to
//! reopen the log and to log the workers, and SIGCHLD.

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::Pid;

use super::hangup::Hangup;
use super::process::is_parent;
use super::stop_requests::StopRequests;
use crate::sys::{self, Disposition};

/// The signals that the server reads. SIGHUP is added if it is not ignored.
const SIGNALS: [Signal; 5] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD, Signal::SIGUSR1, Signal::SIGUSR2];

/// Blocks SIGUSR1 and SIGUSR2 until the server can handle them. By default they end a process.
#[derive(Debug)]
pub(crate) struct DeferredSignals(SigSet);

impl DeferredSignals {
    pub(crate) fn new() -> io::Result<Self> {
        sys::block_signals(&[Signal::SIGUSR1, Signal::SIGUSR2].into_iter().collect()).map(Self)
    }
}

impl Drop for DeferredSignals {
    fn drop(&mut self) {
        // Ignoring the signals for a moment discards one that has arrived too late.
        drop([Signal::SIGUSR1, Signal::SIGUSR2].map(Disposition::ignore));
        // Setting a mask that was read before cannot fail.
        let _ = self.0.thread_set_mask();
    }
}

/// The descriptor of the signals, which are blocked as long as this lives.
#[derive(Debug)]
pub(crate) struct Signals {
    descriptor: SignalFd,
    previous_mask: SigSet,
    _changed: [Disposition; 2],
    /// With these signals ignored, a failed write is an error and does not end the server.
    _writes: [Disposition; 2],
    /// The signals whose action workers must reset. A server does not change actions once it runs.
    reset: OnceCell<Vec<Signal>>,
    /// The process that forwards signals to this one.
    parent: Option<u32>,
    stop_requests: StopRequests,
    hangup: Hangup,
    /// The last signal came from the parent.
    is_from_parent: Cell<bool>,
    /// The process that the last signal came from, or that it is about.
    sender: Cell<Option<Pid>>,
}

impl Signals {
    /// Blocks the signals. `parent` is the process that forwards its signals to this one.
    pub(crate) fn take_over(hangup: Hangup, parent: Option<u32>) -> io::Result<Self> {
        let mut signals: SigSet = SIGNALS.into_iter().collect();
        // The kernel keeps a blocked signal even if it is ignored.
        if hangup != Hangup::Ignored {
            signals.add(Signal::SIGHUP);
        }
        let previous_mask = sys::block_signals(&signals)?;
        let changed = [Disposition::default_sigchld()?, Disposition::ignore_sigttou()?];
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&signals, flags)?;
        let writes = [Disposition::ignore(Signal::SIGXFSZ)?, Disposition::ignore(Signal::SIGPIPE)?];
        Ok(Self {
            descriptor,
            previous_mask,
            _changed: changed,
            _writes: writes,
            reset: OnceCell::new(),
            parent,
            stop_requests: StopRequests::default(),
            hangup,
            is_from_parent: Cell::new(false),
            sender: Cell::new(None),
        })
    }

    /// Finds the signals that workers have to reset, before the first fork.
    pub(crate) fn cache_signals_to_reset(&self) {
        self.reset.get_or_init(sys::signals_to_reset);
    }

    /// Resets the signals in a new worker.
    #[inline]
    pub(crate) fn reset_for_worker(&self) -> io::Result<()> {
        sys::reset_for_worker(self.reset.get_or_init(sys::signals_to_reset))
    }

    /// Returns the next signal. A request to end that arrives twice, directly and through the
    /// parent, is returned once.
    pub(crate) fn next(&self) -> Option<Signal> {
        loop {
            let info = self.descriptor.read_signal().ok().flatten()?;
            let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else { return None };
            self.sender.set(Pid::from_raw(info.ssi_pid.cast_signed()));
            let is_from_parent = self.parent == Some(info.ssi_pid);
            self.is_from_parent.set(is_from_parent);
            let is_wanted = match signal {
                Signal::SIGTERM | Signal::SIGINT => {
                    self.stop_requests.record(is_from_parent || is_parent(info.ssi_pid))
                }
                Signal::SIGHUP if !self.asks_for_restart() => self.stop_requests.record_hangup(),
                _ => true,
            };
            if is_wanted {
                return Some(signal);
            }
        }
    }

    /// The process that the signal of [`next`](Self::next) came from. For SIGCHLD, a child that has
    /// ended. The kernel reports several deaths by one signal if the first has not been read, and then
    /// names the first alone.
    pub(crate) fn sender(&self) -> Option<Pid> {
        self.sender.get()
    }

    /// Whether the server has been asked to end twice.
    pub(crate) fn is_second_request(&self) -> bool {
        self.stop_requests.count() > 1
    }

    /// Whether the SIGHUP that [`next`](Self::next) has returned asks for a restart. The parent
    /// forwards a SIGHUP only if it asks for a restart.
    pub(crate) fn asks_for_restart(&self) -> bool {
        self.is_from_parent.get() || self.hangup == Hangup::Restart
    }

    /// In a forked process that takes over the signals itself: leaves them blocked, so that none is
    /// lost.
    pub(crate) fn leave_blocked(mut self) {
        self.previous_mask = SigSet::thread_get_mask().unwrap_or(self.previous_mask);
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Setting a mask that was read before cannot fail.
        let _ = self.previous_mask.thread_set_mask();
    }
}
