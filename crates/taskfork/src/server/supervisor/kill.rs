//! Why the server kills a worker.

use std::time::Duration;

use crate::display::seconds;
use crate::server::worker_exit::cause;
use crate::worker::scoreboard::{Corruption, SlotView};

/// How long a worker's stack is waited for before it is killed.
pub(super) const STACK_TIMEOUT: Duration = Duration::from_millis(100);

/// The same for a worker that blocks the signal. A thread that starts another one blocks all for a moment.
pub(super) const BLOCKED_STACK_TIMEOUT: Duration = Duration::from_millis(250);

/// The same for a worker that handles the signal but has not been scheduled since.
pub(super) const MAX_STACK_TIMEOUT: Duration = Duration::from_millis(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillCause {
    Corrupt(Corruption),
    /// The client left during `setup` or a call.
    ClientGone,
    /// The call's time was over.
    TimedOut,
    /// It was in one phase for longer than this `hung_worker_timeout`.
    Hung(Duration),
    /// It did not leave when there was nothing left to do.
    NotLeaving,
    GraceOver,
    /// The server was told to end at once.
    AtOnce,
    /// The server could not watch its descriptors.
    Unwatchable,
}

impl KillCause {
    /// The name under which such deaths are counted.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Corrupt(_) => cause::CORRUPT,
            Self::ClientGone => cause::CLIENT_GONE,
            Self::TimedOut => cause::TIMED_OUT,
            Self::Hung(_) | Self::NotLeaving => cause::HUNG,
            Self::GraceOver | Self::AtOnce | Self::Unwatchable => cause::SHUTDOWN,
        }
    }

    /// What the log and the death notice say.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Corrupt(corruption) => corruption.to_string(),
            Self::ClientGone => "its client went away".to_owned(),
            Self::TimedOut => "its call's time was over".to_owned(),
            Self::Hung(timeout) => {
                format!("hung for more than {} (hung_worker_timeout)", seconds(timeout))
            }
            Self::NotLeaving => "it did not leave when there was nothing left to do".to_owned(),
            Self::GraceOver => "the server's shutdown_grace is over".to_owned(),
            Self::AtOnce => "the server was told to end at once".to_owned(),
            Self::Unwatchable => "the server could not watch it".to_owned(),
        }
    }
}

/// Why a worker was killed, and what it was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KillReason {
    pub(crate) cause: KillCause,
    /// What the worker was stopped in. Without it the worker may have gone on until SIGKILL, so that
    /// its slot says what it did last.
    pub(crate) view: Option<SlotView>,
    /// How long it had been doing that, if it took too long.
    pub(crate) ran: Option<Duration>,
    /// Why its stack is unknown, if it was asked for it without success.
    pub(crate) no_stack: Option<NoStack>,
}

impl KillReason {
    pub(crate) fn new(cause: KillCause) -> Self {
        Self { cause, view: None, ran: None, no_stack: None }
    }
}

/// A kill that waits for the worker's stack.
#[derive(Debug)]
pub(super) struct Suspicion {
    pub(super) reason: KillReason,
    /// The worker is not killed if its slot shows something else.
    pub(super) view: SlotView,
    /// When the worker was asked for its stack.
    pub(super) asked_at: Duration,
    /// When the server looks at the worker again if there is no stack.
    pub(super) deadline: Duration,
}

/// Why the stack of a worker is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoStack {
    ActionChanged,
    Blocked,
    NotScheduled,
}

impl NoStack {
    /// What the death notice says.
    pub(crate) fn text(self) -> String {
        match self {
            Self::ActionChanged => "the worker's code has changed what SIGALRM does".to_owned(),
            Self::Blocked => "the worker's code blocks SIGALRM".to_owned(),
            Self::NotScheduled => {
                let waited = seconds(MAX_STACK_TIMEOUT);
                format!("the worker did not get to run within {waited} after it was asked")
            }
        }
    }
}
