//! What a new worker has from its server.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::scoreboard::WorkerSlot;
use crate::busy_poll::BusyPoll;
use crate::time_limit::TimeLimit;
use crate::wire::{first_message, frame};

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
    Connected(Connected),
    /// It comes on this line, once the worker has been set up.
    Awaited(OwnedFd),
}

impl Socket {
    /// The worker's own end of it.
    pub(crate) fn into_end(self) -> OwnedFd {
        let (Self::Connected(Connected { socket: end, .. }) | Self::Awaited(end)) = self;
        end
    }
}

/// A client that the server has accepted.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) socket: OwnedFd,
    /// What the server has read of its first message. Nothing if that can be read in one piece.
    pub(crate) received: Vec<u8>,
    /// Until when the rest of it may come; nothing if all is there.
    pub(crate) until: Option<Instant>,
    /// The server has sent the preamble, and that the client has to wait.
    pub(crate) is_told: bool,
}

impl Connected {
    pub(crate) fn new(socket: OwnedFd, received: Vec<u8>, until: Option<Instant>) -> Self {
        Self { socket, received, until, is_told: false }
    }

    /// The most bytes of [`to_text`](Self::to_text).
    pub(crate) const LONGEST_TEXT: usize = first_message::MAX_JSON + first_message::MAX_BLANKS + 9;

    /// All but the socket, for a worker that has been forked already.
    pub(crate) fn to_text(&self) -> Vec<u8> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        let left =
            left.map_or(u64::MAX, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        [&left.to_le_bytes()[..], &[u8::from(self.is_told)], &self.received].concat()
    }

    pub(crate) fn from_text(socket: OwnedFd, text: &[u8]) -> Self {
        let (left, rest) = text.split_first_chunk().unwrap_or((&[0xff; 8], &[]));
        let (is_told, received) = rest.split_first().unwrap_or((&0, &[]));
        let left = u64::from_le_bytes(*left);
        let until = Instant::now().checked_add(Duration::from_millis(left));
        let until = until.filter(|_| left < u64::MAX);
        Self { socket, received: received.to_vec(), until, is_told: *is_told != 0 }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_frame: usize,
    /// The longest blob that is taken as memory.
    pub(crate) max_blob: usize,
    /// How much memory each side of a connection keeps for the other.
    pub(crate) shared_memory: usize,
    pub(crate) stall_timeout: TimeLimit,
    pub(crate) busy_poll: BusyPoll,
    /// How many cores there are.
    pub(crate) cores: usize,
    /// The worker leaves after so many calls.
    pub(crate) max_calls: Option<u64>,
    /// And when it occupies so many bytes.
    pub(crate) max_memory: Option<u64>,
    /// All clients learn what can tell of the server's machine.
    pub(crate) share_details: bool,
    /// The user who does so in any case.
    pub(crate) server_user: u32,
}
