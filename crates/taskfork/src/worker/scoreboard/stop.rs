//! Why a worker stops.

use crate::worker::phase::Phase;

/// Why a worker leaves in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Retirement {
    /// The server shuts down.
    Shutdown = 1,
    Age = 2,
    Idleness = 3,
    Calls = 4,
    Memory = 5,
    /// An operator has dismissed the worker.
    Requested = 6,
    /// Another client has no worker, or fewer than this one's client.
    Fairness = 7,
}

impl Retirement {
    const ALL: [Self; 7] = [
        Self::Shutdown,
        Self::Age,
        Self::Idleness,
        Self::Calls,
        Self::Memory,
        Self::Requested,
        Self::Fairness,
    ];

    /// The reason with this number.
    pub(super) fn of(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|&reason| reason as u64 == number)
    }
}

/// An order of the server to its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopRequest {
    /// Wait for SIGKILL, which follows.
    Kill,
    /// Exit.
    Retire,
}

impl StopRequest {
    pub(super) fn phase(self) -> Phase {
        match self {
            Self::Kill => Phase::KillPending,
            Self::Retire => Phase::Retired,
        }
    }
}
