//! The state of a worker process, and why it exits.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::connection::ConnectionError;
use super::error_reply::ErrorReply;
use super::handlers::Handlers;
use super::init::WorkerConfig;
use super::interface::Interface;
use super::pipeline::Pipeline;
use super::sandbox::WorkerSandbox;
use super::scoreboard::{StopRequest, WorkerSlot};
use super::shared_memory::SharedMemory;
use super::successor::Successor;
use crate::sys::OccupiedMemory;
use crate::wire::WireError;
use crate::wire::gather_frame::GatherFrame;

pub(super) struct Worker<'a, S> {
    pub(super) number: u64,
    pub(super) slot: WorkerSlot,
    pub(super) interface: &'a dyn Interface<S>,
    pub(super) handlers: &'a Handlers<S>,
    /// What `setup` returned, once it has succeeded.
    pub(super) state: Option<S>,
    /// The connection, while its client waits for the message that `setup` has succeeded.
    pub(super) awaits_setup: Option<BorrowedFd<'static>>,
    /// Its program has said that it serves connections itself.
    pub(super) program_takes_over: bool,
    /// What it waits for before it runs code of the user.
    pub(super) gate: Option<OwnedFd>,
    /// Why `setup` failed, until a call has been answered with it.
    pub(super) setup_error: Option<ErrorReply>,
    pub(super) config: WorkerConfig,
    /// The sandbox, until the worker has applied it.
    pub(super) sandbox: Option<WorkerSandbox>,
    /// The connection, if a thread may send to it only once the sandbox has been applied.
    pub(super) connection: Option<BorrowedFd<'static>>,
    /// For a program that takes this worker over before its first call.
    pub(super) successor: Option<Successor>,
    /// Its own memory, if that is limited. It is opened before a sandbox can forbid that.
    pub(super) memory: Option<OccupiedMemory>,
    /// The maximum length of an answer in bytes.
    pub(super) max_answer: usize,
    /// The maximum length in bytes of a blob that the client accepts as memory.
    pub(super) max_blob: usize,
    pub(super) pipeline: Pipeline,
    /// The number of files that belong to the next message.
    pub(super) announced_files: usize,
    /// The number of files that the client accepts with an answer.
    pub(super) client_files: usize,
    pub(super) shared_memory: SharedMemory,
    /// The answer of the current call.
    pub(super) out: GatherFrame,
    /// A buffer for frames that precede an answer. It is empty between two uses.
    pub(super) front: Vec<u8>,
}

/// Why a worker exits on its own.
pub(super) enum ExitReason {
    /// The client has left, or the worker retires.
    Finished,
    /// The connection failed, or the client broke the protocol.
    Connection(ConnectionError),
    /// `checkout_done` failed, so that no other checkout may use this worker's state.
    CheckoutDoneFailed(ErrorReply),
    /// `setup` of a spare worker failed.
    PresetupFailed,
    /// The server has ordered it.
    Ordered(StopRequest),
}

impl From<StopRequest> for ExitReason {
    fn from(request: StopRequest) -> Self {
        Self::Ordered(request)
    }
}

impl From<ConnectionError> for ExitReason {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Closed => Self::Finished,
            other => Self::Connection(other),
        }
    }
}

impl From<WireError> for ExitReason {
    fn from(error: WireError) -> Self {
        Self::Connection(error.into())
    }
}
