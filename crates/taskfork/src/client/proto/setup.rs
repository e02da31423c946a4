//! What this side does with a worker that runs `setup`. Its hello has said so, and another message says when that is over. Until
//! then no call has begun.

use std::time::Instant;

/// How far a worker has got that says when `setup` is over.
#[derive(Debug)]
pub(super) enum Setup {
    Running,
    /// The worker is to begin no call any more.
    Stopping,
    /// The worker can send no more, and begins no call because of that. What had arrived before is read.
    Stopped {
        is_exhausted: bool,
    },
    /// The server has been told to end the worker, and its notice says what has begun. It is late at `due`.
    Ending {
        due: Option<Instant>,
        is_late: bool,
    },
}

impl Setup {
    /// Whether this side has given the worker up.
    pub(super) fn is_aborted(&self) -> bool {
        !matches!(self, Self::Running)
    }

    pub(super) fn handle_no_input(&mut self) {
        if let Self::Stopped { is_exhausted } = self {
            *is_exhausted = true;
        }
    }

    /// `is_stopped` says whether the worker can send no more. Otherwise it has been told that this side sends no more.
    pub(super) fn handle_input_stopped(&mut self, is_stopped: bool) {
        if let Self::Stopping = self {
            *self = match is_stopped {
                true => Self::Stopped { is_exhausted: false },
                false => Self::Ending { due: None, is_late: false },
            };
        }
    }

    pub(super) fn handle_timeout(&mut self) {
        if let Self::Ending { is_late, .. } = self {
            *is_late = true;
        }
    }
}
