//! The signals that end a server or start it anew, or tell of a worker's death, read from a descriptor while
//! it runs.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, getppid};

use crate::sys::{self, Disposition};

/// A parent passes its own signal on to the server within this time.
const PASSED_ON_WITHIN: Duration = Duration::from_secs(5);

/// Blocks the signals for as long as it lives.
#[derive(Debug)]
pub(crate) struct Signals {
    descriptor: SignalFd,
    before: SigSet,
    _changed: [Disposition; 2],
    requests: Requests,
    /// Those whose action workers must not have. Nothing in a server changes actions once it runs.
    reset: OnceCell<Vec<Signal>>,
}

impl Signals {
    pub(crate) fn take_over() -> io::Result<Self> {
        let wanted: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD]
            .into_iter()
            .collect();
        let before = sys::hold_back(&wanted)?;
        let changed = [Disposition::of_deaths()?, Disposition::of_output()?];
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&wanted, flags)?;
        Ok(Self {
            descriptor,
            before,
            _changed: changed,
            requests: Requests::default(),
            reset: OnceCell::new(),
        })
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
    pub(crate) fn next(&mut self) -> Option<Signal> {
        let info = self.descriptor.read_signal().ok().flatten()?;
        let signal = Signal::try_from(info.ssi_signo.cast_signed()).ok()?;
        if matches!(signal, Signal::SIGTERM | Signal::SIGINT) {
            let sender = Pid::from_raw(info.ssi_pid.cast_signed());
            self.requests.add(Request { sender, at: Instant::now() }, getppid());
        }
        Some(signal)
    }

    /// Whether the signal that came last asks for the server's end a second time.
    pub(crate) fn is_second_request(&self) -> bool {
        self.requests.is_second
    }
}

/// The signals that ask for the server's end.
#[derive(Debug, Default)]
struct Requests {
    first: Option<Request>,
    is_second: bool,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    /// Nobody if it comes from a terminal, or from outside of this namespace of processes.
    sender: Option<Pid>,
    at: Instant,
}

impl Requests {
    fn add(&mut self, request: Request, parent: Option<Pid>) {
        match self.first {
            None => self.first = Some(request),
            Some(first) => self.is_second = !request.repeats(&first, parent),
        }
    }
}

impl Request {
    /// Whether this is the request that came first, and came on another way as well. A service manager or a terminal
    /// signals both a server and its parent, and a parent that supervises servers passes that on.
    fn repeats(&self, first: &Self, parent: Option<Pid>) -> bool {
        self.sender != first.sender
            && parent.is_some_and(|parent| [self.sender, first.sender].contains(&Some(parent)))
            && self.at.saturating_duration_since(first.at) < PASSED_ON_WITHIN
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

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: i32 = 10;
    /// No process of this namespace.
    const TERMINAL: i32 = 0;

    /// Whether the last of these is a second request: the sender, and after how many seconds each comes.
    fn is_second(requests: &[(i32, u64)]) -> bool {
        let (mut known, start) = (Requests::default(), Instant::now());
        for &(sender, seconds) in requests {
            let at = start + Duration::from_secs(seconds);
            known.add(Request { sender: Pid::from_raw(sender), at }, Pid::from_raw(PARENT));
        }
        known.is_second
    }

    #[test]
    fn a_signal_that_the_parent_passes_on_is_no_second_request() {
        assert!(!is_second(&[(7, 0)]));
        assert!(is_second(&[(7, 0), (7, 0)]));
        assert!(is_second(&[(7, 0), (8, 0)]));
        assert!(!is_second(&[(7, 0), (PARENT, 0)]));
        assert!(!is_second(&[(PARENT, 0), (7, 1)]));
        assert!(is_second(&[(PARENT, 0), (PARENT, 0)]));
        assert!(is_second(&[(7, 0), (PARENT, 60)]));
        // Ctrl-C once and twice.
        assert!(!is_second(&[(TERMINAL, 0), (PARENT, 0)]));
        assert!(is_second(&[(TERMINAL, 0), (PARENT, 0), (TERMINAL, 1)]));
    }
}
