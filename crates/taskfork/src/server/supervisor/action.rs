//! What the supervisor wants done. The loop carries it out and reports how it went.

use std::time::Duration;

use crate::server::limits::Recycling;
use crate::worker::scoreboard::{Retirement, SlotView, StopRequest};

/// A client that waits for a worker, numbered in the order of arrival. The loop knows its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientKey(pub(crate) u64);

/// A connection whose first message is not complete, numbered in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionKey(pub(crate) u64);

/// Why a connection ends before its first message is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// It is the oldest of too many.
    TooMany,
    /// Its time is over.
    Late,
}

/// What a worker is forked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Client(ClientKey),
    /// It is set up before a client needs it.
    Spare,
}

/// A step that needs the operating system. The comments say what the loop reports afterwards, before
/// it asks for the next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Fork the worker with this number. Then `handle_forked` or `handle_fork_failed`. The loop itself
    /// refuses a client whose worker cannot be forked.
    Fork {
        worker: u64,
        purpose: Purpose,
    },
    /// Give the client to this spare worker, if the slot shows that its setup is done, or in any case
    /// if `may_be_in_setup`. Then `handle_assigned` or `handle_assign_failed`.
    Assign {
        client: ClientKey,
        worker: u64,
        may_be_in_setup: bool,
    },
    /// Put the client into the queue, and inform it. Then `handle_queued`, or
    /// `handle_queued_client_gone` if it cannot wait.
    Enqueue {
        client: ClientKey,
    },
    /// Refuse the client, because all workers are in use and the queue is full.
    Refuse {
        client: ClientKey,
    },
    /// Refuse a connection before its first message is complete.
    EndHandshake {
        connection: ConnectionKey,
        why: HandshakeFailure,
    },
    /// Close the connection of a client that came after the shutdown began.
    Close {
        client: ClientKey,
    },
    /// Observe the slots of all workers. Then `handle_review` and `handle_review_end`.
    ObserveForReview,
    /// Set the worker's order to leave, and observe the slot after that. Then `handle_retiring`.
    Retire {
        worker: u64,
        why: Retirement,
    },
    /// Stop the worker by compare-and-swap if its slot still shows `view`. If that held, a kill needs
    /// SIGKILL, and a worker that retires has its wait for a message ended. Then `handle_stop`.
    Stop {
        worker: u64,
        view: SlotView,
        request: StopRequest,
    },
    /// Send SIGKILL to the worker's process group, whatever it does.
    Kill {
        worker: u64,
    },
    /// Send SIGALRM for a call whose deadline has passed, if the slot still shows `view`.
    Interrupt {
        worker: u64,
        view: SlotView,
    },
    /// Remove an earlier stack from the slot, and send SIGALRM.
    RequestStack {
        worker: u64,
    },
    /// Find out what the worker's process does with SIGALRM. Then `handle_alarm_action`.
    InspectAlarm {
        worker: u64,
    },
    /// Do not accept connections until `ResumeAccepting`.
    PauseAccepting,
    ResumeAccepting,
    /// Close the listener and all connections without a worker: the shutdown begins.
    CloseConnections,
    /// Start a new server that takes over. Then `handle_successor_ready` or `handle_successor_failed`,
    /// whenever that is known.
    StartSuccessor,
    /// Kill the new server, which is not ready yet. Another one may follow it.
    CancelSuccessor {
        is_replaced: bool,
    },
    /// Send the request to restart to the server that has taken over.
    ForwardRestart,
    /// Inform the service manager that the server shuts down.
    NotifyStopping,
}

/// The options that decisions depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    pub(crate) max_workers: usize,
    pub(crate) spare_workers: usize,
    /// The maximum number of clients that wait for a worker.
    pub(crate) max_waiting: usize,
    /// The maximum number of connections whose first message is not complete.
    pub(crate) max_handshakes: usize,
    pub(crate) handshake_timeout: Option<Duration>,
    pub(crate) hung_worker_timeout: Option<Duration>,
    pub(crate) shutdown_grace: Option<Duration>,
    pub(crate) recycling: Recycling,
}
