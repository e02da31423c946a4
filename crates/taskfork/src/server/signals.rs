//! The signals that end a server or start it anew, have it say or reopen something, or tell of a worker's
//! death, read from a descriptor while it runs.

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::hangup::Hangup;
use super::process::is_parent;
use super::stop_requests::StopRequests;
use crate::sys::{self, Disposition};

/// SIGHUP comes to these if it is not ignored.
const WANTED: [Signal; 5] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD, Signal::SIGUSR1, Signal::SIGUSR2];

/// Keeps the signals that only ask for something until the server can answer. By default they end a process.
#[derive(Debug)]
pub(crate) struct DeferredSignals(SigSet);

impl DeferredSignals {
    pub(crate) fn new() -> io::Result<Self> {
        sys::block_signals(&[Signal::SIGUSR1, Signal::SIGUSR2].into_iter().collect()).map(Self)
    }
}

impl Drop for DeferredSignals {
    fn drop(&mut self) {
        // One that has come too late is forgotten when it is ignored for a moment.
        drop([Signal::SIGUSR1, Signal::SIGUSR2].map(Disposition::ignore));
        // The mask was valid when it was read.
        let _ = self.0.thread_set_mask();
    }
}

/// Blocks the signals for as long as it lives.
#[derive(Debug)]
pub(crate) struct Signals {
    descriptor: SignalFd,
    before: SigSet,
    _changed: [Disposition; 2],
    /// A write to a file or a reader that cannot be is an error, and not the server's end.
    _writes: [Disposition; 2],
    /// Those whose action workers must not have. Nothing in a server changes actions once it runs.
    reset: OnceCell<Vec<Signal>>,
    /// The process that passes signals on to this one.
    parent: Option<u32>,
    stop_requests: StopRequests,
    hangup: Hangup,
    /// The last signal came from the parent.
    is_from_parent: Cell<bool>,
}

impl Signals {
    /// `parent` is the process that passes its signals on to this one, if there is one.
    pub(crate) fn take_over(hangup: Hangup, parent: Option<u32>) -> io::Result<Self> {
        let mut wanted: SigSet = WANTED.into_iter().collect();
        // The kernel keeps a signal that is blocked, also if it is ignored.
        if hangup != Hangup::Ignored {
            wanted.add(Signal::SIGHUP);
        }
        let before = sys::block_signals(&wanted)?;
        let changed = [Disposition::default_sigchld()?, Disposition::ignore_sigttou()?];
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&wanted, flags)?;
        let writes = [Disposition::ignore(Signal::SIGXFSZ)?, Disposition::ignore(Signal::SIGPIPE)?];
        Ok(Self {
            descriptor,
            before,
            _changed: changed,
            _writes: writes,
            reset: OnceCell::new(),
            parent,
            stop_requests: StopRequests::default(),
            hangup,
            is_from_parent: Cell::new(false),
        })
    }

    /// Finds out what workers will have to reset.
    pub(crate) fn cache_signals_to_reset(&self) {
        self.reset.get_or_init(sys::signals_to_reset);
    }

    /// In a new worker.
    #[inline]
    pub(crate) fn reset_for_worker(&self) -> io::Result<()> {
        sys::reset_for_worker(self.reset.get_or_init(sys::signals_to_reset))
    }

    /// The next one that came. A request to end that has come twice, from the parent and from whoever has
    /// signalled the parent as well, is given once.
    pub(crate) fn next(&self) -> Option<Signal> {
        loop {
            let info = self.descriptor.read_signal().ok().flatten()?;
            let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else { return None };
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

    /// Whether the server's end has been asked for twice.
    pub(crate) fn is_second_request(&self) -> bool {
        self.stop_requests.count() > 1
    }

    /// Whether the SIGHUP that [`next`](Self::next) gave last asks for a restart. The parent passes on only
    /// those that do.
    pub(crate) fn asks_for_restart(&self) -> bool {
        self.is_from_parent.get() || self.hangup == Hangup::Restart
    }

    /// In a process that was forked and takes the signals over by itself: they stay blocked, so that none is lost.
    pub(crate) fn leave_blocked(mut self) {
        self.before = SigSet::thread_get_mask().unwrap_or(self.before);
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
