//! What a server passes to a new worker.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::replace_after::ReplaceAfter;
use super::sandbox::WorkerSandbox;
use super::scoreboard::WorkerSlot;
use crate::busy_poll::BusyPoll;
use crate::peer::Peer;
use crate::sys::OccupiedMemory;
use crate::time_limit::TimeLimit;
use crate::wire::{first_message, frame};

/// Everything that a new worker inherits from its server.
#[derive(Debug)]
pub(crate) struct WorkerInit {
    pub(crate) client: ClientSource,
    pub(crate) slot: WorkerSlot,
    pub(crate) number: u64,
    pub(crate) server: String,
    pub(crate) config: WorkerConfig,
    pub(crate) sandbox: Option<WorkerSandbox>,
    /// The directory that only this worker uses.
    pub(crate) scratch: Option<PathBuf>,
    /// The pipe that wakes the server.
    pub(crate) wake: OwnedFd,
    pub(crate) buffers: IoBuffers,
    /// It becomes readable when code of the user may run. `None` if that holds already.
    pub(crate) gate: Option<OwnedFd>,
    /// Its own memory, if it is limited and has been opened already.
    pub(crate) memory: Option<OccupiedMemory>,
    /// This program has taken the worker over.
    pub(crate) is_taken_over: bool,
    /// What a program needs to take the worker over, if it may execute one.
    pub(crate) takeover: Option<TakeoverFiles>,
}

/// What a program needs to take this worker over, besides what the server has opened for all.
#[derive(Debug)]
pub(crate) struct TakeoverFiles {
    /// The worker's slot.
    pub(crate) slot: OwnedFd,
    /// The page that the server publishes.
    pub(crate) published: OwnedFd,
}

/// Buffers for the first messages. The server allocates them before the fork: an allocation in the
/// worker writes to the allocator's pages, and the kernel copies each page that is written to.
#[derive(Debug, Default)]
pub(crate) struct IoBuffers {
    pub(super) inbox: Vec<u8>,
    pub(super) outbox: Vec<u8>,
    /// For frames that go before an answer.
    pub(super) front: Vec<u8>,
}

impl IoBuffers {
    pub(crate) fn new() -> Self {
        // The hello and the first call can arrive together, and more is read behind them.
        let inbox = Vec::with_capacity(frame::room_for_next_read(&[]) + (1 << 10));
        Self { inbox, outbox: Vec::with_capacity(1 << 10), front: Vec::with_capacity(1 << 8) }
    }
}

/// How a worker gets its client.
#[derive(Debug)]
pub(crate) enum ClientSource {
    /// The server has accepted the client before the fork.
    Accepted(AcceptedClient),
    /// A spare worker receives its client on this channel after `setup`.
    Channel(OwnedFd),
}

impl ClientSource {
    /// The worker's descriptor: the client's connection or the channel.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        let (Self::Accepted(AcceptedClient { socket: fd, .. }) | Self::Channel(fd)) = self;
        fd
    }

    /// Takes out whose connection a gateway relays.
    pub(crate) fn take_relayed_peer(&mut self) -> Option<Box<Peer>> {
        match self {
            Self::Accepted(client) => client.relayed_peer.take(),
            Self::Channel(_) => None,
        }
    }
}

/// A connection that the server has accepted.
#[derive(Debug)]
pub(crate) struct AcceptedClient {
    pub(crate) socket: OwnedFd,
    /// The bytes that the server has read from the socket. Empty if the whole first message is still
    /// in the socket.
    pub(crate) received: Vec<u8>,
    /// When the first message must be complete. `None` if it is complete.
    pub(crate) deadline: Option<Instant>,
    /// The server has already sent the preamble and the message that the client has to wait.
    pub(crate) is_preamble_sent: bool,
    /// The worker's hello has been sent too.
    pub(crate) is_greeted: bool,
    /// Descriptors that have arrived with these bytes, for later messages.
    pub(crate) files: Vec<OwnedFd>,
    /// Whose connection a gateway relays, for the server. The worker reads that in the first message.
    pub(crate) relayed_peer: Option<Box<Peer>>,
}

impl AcceptedClient {
    pub(crate) fn new(socket: OwnedFd, received: Vec<u8>, deadline: Option<Instant>) -> Self {
        Self {
            socket,
            received,
            deadline,
            is_preamble_sent: false,
            is_greeted: false,
            files: Vec::new(),
            relayed_peer: None,
        }
    }

    /// The maximum length of [`encode`](Self::encode)'s result in bytes.
    pub(crate) const MAX_ENCODED: usize = first_message::MAX_JSON + first_message::MAX_BLANKS + 9;

    /// Encodes what a spare worker needs besides the socket. The time that is left travels instead
    /// of the deadline.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let left =
            left.map_or(u64::MAX, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        [&left.to_le_bytes()[..], &[u8::from(self.is_preamble_sent)], &self.received].concat()
    }

    pub(crate) fn decode(socket: OwnedFd, encoded: &[u8]) -> Self {
        let (left, rest) = encoded.split_first_chunk().unwrap_or((&[0xff; 8], &[]));
        let (is_preamble_sent, received) = rest.split_first().unwrap_or((&0, &[]));
        let left = u64::from_le_bytes(*left);
        let deadline = Instant::now().checked_add(Duration::from_millis(left));
        let deadline = deadline.filter(|_| left < u64::MAX);
        let (received, is_preamble_sent) = (received.to_vec(), *is_preamble_sent != 0);
        Self { is_preamble_sent, ..Self::new(socket, received, deadline) }
    }
}

/// The server's options that a worker needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerConfig {
    /// The maximum length of a message in bytes.
    pub(crate) max_frame: usize,
    /// The maximum length in bytes of a blob that arrives as sealed memory.
    pub(crate) max_blob: usize,
    /// How many bytes of the other side's memory each side of a connection keeps mapped.
    pub(crate) shared_memory: usize,
    pub(crate) stall_timeout: TimeLimit,
    pub(crate) busy_poll: BusyPoll,
    /// The number of CPUs that this process may use.
    pub(crate) cores: usize,
    /// The longest result of a call in bytes, with its blobs.
    pub(crate) max_result: usize,
    /// The worker exits after this number of calls.
    pub(crate) max_calls: Option<u64>,
    /// The worker exits when it occupies more bytes than this.
    pub(crate) max_memory: Option<u64>,
    /// After which errors the worker is replaced. `None` if the interface decides.
    pub(crate) replace_after: Option<ReplaceAfter>,
    /// Clients of every user get details of errors. Otherwise only clients of `server_user` do.
    pub(crate) share_details: bool,
    /// The server's effective user, if its id stands for no other.
    pub(crate) server_user: Option<u32>,
}
