//! What a new worker has from its server.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::scoreboard::WorkerSlot;
use crate::busy_poll::BusyPoll;
use crate::wire::frame;

/// What the server gives a new worker.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) socket: Socket,
    pub(crate) slot: WorkerSlot,
    pub(crate) number: u64,
    pub(crate) server: String,
    pub(crate) limits: Limits,
    /// Written to, to wake the server.
    pub(crate) wake: OwnedFd,
    pub(crate) buffers: Buffers,
}

/// Room for the first messages, made by the server, as what an allocator writes to is copied in each
/// worker.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    pub(super) inbox: Vec<u8>,
    pub(super) outbox: Vec<u8>,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        let inbox = Vec::with_capacity(frame::room_for_next_read(&[]));
        Self { inbox, outbox: Vec::with_capacity(1 << 10) }
    }
}

/// Where a worker has its client from.
#[derive(Debug)]
pub(crate) enum Socket {
    Connected(OwnedFd),
    /// It comes on this line, once the worker has been set up.
    Awaited(OwnedFd),
}

impl Socket {
    /// The worker's own end of it.
    pub(crate) fn end(&self) -> &OwnedFd {
        match self {
            Self::Connected(end) | Self::Awaited(end) => end,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_frame: usize,
    /// The longest blob that is taken as memory.
    pub(crate) max_blob: usize,
    /// How much memory each side of a connection keeps for the other.
    pub(crate) lent_memory: usize,
    pub(crate) stall_timeout: Duration,
    pub(crate) busy_poll: BusyPoll,
    /// How many cores there are.
    pub(crate) cores: usize,
    /// The worker leaves after so many calls.
    pub(crate) max_calls: Option<u64>,
    /// And when it occupies so many bytes.
    pub(crate) max_memory: Option<u64>,
}
