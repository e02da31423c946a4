//! The handshake: the hellos of both sides, and the limits that follow from them. It does no I/O.

use std::io;
use std::time::Instant;

use bytes::BytesMut;

use super::setup::Setup;
use crate::client::config::Config;
use crate::display::seconds;
use crate::error::ConnectionError;
use crate::time_limit::TimeLimit;
use crate::wire::WireError;
use crate::wire::error_body::kind;
use crate::wire::frame::{self, DEFAULT_MAX_BLOB, PREAMBLE};
use crate::wire::hello::{ClientHello, MAX_HELLO, WorkerHello};
use crate::wire::native::{FromWorker, VERSIONS};

/// The most bytes of unanswered calls that are sent, even if the worker accepts more.
const MAX_PIPELINE_WINDOW: usize = 64 << 10;

/// The limits in a worker's hello. They are the same for all workers of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerLimits {
    /// The longest frame that it accepts, in bytes.
    pub(crate) max_send: usize,
    /// The longest blob in a memfd that it accepts, in bytes.
    pub(crate) max_blob: usize,
    /// How many bytes of unanswered calls it accepts.
    pub(crate) pipeline_window: usize,
    /// The most files that a message may have.
    pub(crate) files: usize,
    /// Whether a call may end its checkout.
    pub(crate) accepts_single_calls: bool,
    /// Whether the worker streams items.
    pub(crate) sends_items: bool,
    /// Whether the worker takes inputs that callers stream.
    pub(crate) takes_input: bool,
}

impl PeerLimits {
    /// The limits of a connection to a client with these limits of its own.
    pub(crate) fn of(hello: &WorkerHello, max_frame: usize, files: usize) -> Self {
        Self {
            max_send: hello.max_frame.unwrap_or(frame::DEFAULT_MAX_FRAME).min(max_frame),
            max_blob: hello.max_blob.unwrap_or(DEFAULT_MAX_BLOB),
            pipeline_window: hello.pipeline_window.min(MAX_PIPELINE_WINDOW),
            files: hello.max_files.min(files),
            accepts_single_calls: hello.accepts_single_calls,
            sends_items: hello.sends_items,
            takes_input: hello.takes_input,
        }
    }
}

/// Why the worker's hello did not arrive or cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the server closed the connection before its greeting")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{0}")]
    Incompatible(String),
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server does not serve what the client requires.
    #[error("{0}")]
    WrongInterface(String),
    /// Whoever refuses could serve the client later.
    #[error("the server refused: {0}")]
    RefusedNow(String),
    /// The server has no free worker; the hello follows later.
    #[error("the server has no worker yet: {0}")]
    ServerBusy(String),
}

impl From<HandshakeError> for ConnectionError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Io(error) => Self::system(error),
            HandshakeError::WrongInterface(difference) => Self::wrong_interface(difference),
            error => Self::new(error.to_string()),
        }
    }
}

impl HandshakeError {
    /// Classifies a failed read.
    pub(crate) fn of(error: io::Error) -> Self {
        match WireError::of_read(&error) {
            Some(error) => Self::Wire(error),
            None => Self::Io(error),
        }
    }
}

/// The reason of an attempt that exceeds the time limit of the handshake.
pub(crate) fn handshake_timeout(limit: TimeLimit) -> ConnectionError {
    let limit = seconds(limit.get().unwrap_or_default());
    ConnectionError::new(format!("the server did not greet within {limit}"))
}

/// Encodes the first message of the client with this number. `files` is the most files that a message may have, and
/// `max_shared` the most shared memory, in bytes.
pub(crate) fn client_hello(
    config: &Config,
    files: usize,
    max_shared: usize,
    client: u64,
) -> Result<Vec<u8>, WireError> {
    let interfaces = config.required.encode()?;
    let hello = ClientHello {
        versions: VERSIONS.into(),
        name: &config.name,
        max_frame: Some(config.max_frame),
        max_blob: Some(config.max_blob),
        max_files: files,
        shared_memory: max_shared,
        client_number: client,
        interfaces: interfaces.as_deref(),
        awaits_setup: true,
        peer: config.peer.as_deref(),
    };
    let mut out = PREAMBLE.to_vec();
    frame::write_control(&mut out, |out| hello.put(out))?;
    Ok(out)
}

/// Reads the preamble and the hello of a worker, which may arrive in pieces.
#[derive(Debug, Default)]
pub(crate) struct HandshakeReader {
    has_preamble: bool,
    /// The server has said that the connection waits for a worker.
    is_queued: bool,
}

impl HandshakeReader {
    /// Takes the worker's hello from `inbox`. Returns `None` until all of it has been received.
    pub(crate) fn read(
        &mut self,
        inbox: &mut BytesMut,
    ) -> Result<Option<WorkerHello>, HandshakeError> {
        self.has_preamble = self.has_preamble || frame::take_preamble(inbox)?;
        if !self.has_preamble {
            return Ok(None);
        }
        let Some(body) = frame::take(inbox, MAX_HELLO)? else { return Ok(None) };
        match FromWorker::decode(&body)? {
            FromWorker::Hello(hello) => match hello.incompatibility() {
                None => Ok(Some(hello)),
                Some(why) => Err(HandshakeError::Incompatible(why)),
            },
            FromWorker::Error { body, .. } if body.kind == kind::WRONG_INTERFACE => {
                Err(HandshakeError::WrongInterface(body.message.to_owned()))
            }
            FromWorker::Error { body, .. } if body.kind == kind::BUSY => {
                Err(HandshakeError::RefusedNow(body.message.to_owned()))
            }
            FromWorker::Error { body, .. } => Err(HandshakeError::Refused(body.message.to_owned())),
            // A gateway ends a stream in this way.
            FromWorker::End(_) => Err(HandshakeError::Closed),
            FromWorker::Queued(_) if self.is_queued => {
                Err(WireError::malformed("the server said twice that no worker is free").into())
            }
            FromWorker::Queued(reason) => {
                self.is_queued = true;
                Err(HandshakeError::ServerBusy(reason.to_owned()))
            }
            _ => Err(WireError::Malformed("the first message is no hello".into()).into()),
        }
    }
}

/// The handshake on a connection in use.
#[derive(Debug)]
pub(super) enum Handshake {
    /// The worker's hello has come, or none is due, and its `setup` is over.
    Done,
    /// The worker's hello has come.
    Setup(Setup),
    Pending(Box<PendingHandshake>),
}

/// The state of a handshake on a connection in use.
#[derive(Debug)]
pub(crate) struct PendingHandshake {
    pub(super) reader: HandshakeReader,
    pub(super) stage: Stage,
    /// When the connection was made.
    pub(super) since: Instant,
    /// When the worker's hello is late.
    due: Option<Instant>,
    /// The longest frame, and the most files with one, that this side accepts.
    pub(super) max_frame: usize,
    pub(super) files: usize,
}

/// What a pending handshake waits for.
#[derive(Debug)]
pub(super) enum Stage {
    /// The worker's hello.
    Hello,
    /// The worker is about to be stopped, for this reason. But by now its hello may have arrived.
    Leaving { why: Stop, is_exhausted: bool },
    /// That the worker can send no more.
    Stopping(Stop),
    /// What had arrived before that.
    Stopped { why: Stop, is_exhausted: bool },
}

/// Why the worker must not send its hello any more.
#[derive(Debug)]
pub(super) enum Stop {
    /// The connection leaves the queue of the server, which has no worker for this reason.
    Left(String),
    Aborted,
}

impl PendingHandshake {
    /// A handshake on a connection that was made at `since`. The worker's hello is late at `due`.
    pub(crate) fn new(
        since: Instant,
        due: Option<Instant>,
        max_frame: usize,
        files: usize,
    ) -> Self {
        let (reader, stage) = (HandshakeReader::default(), Stage::Hello);
        Self { reader, stage, since, due, max_frame, files }
    }
}

impl Handshake {
    /// What is known of the worker behind its hello.
    pub(super) fn after_hello(announces_setup: bool) -> Self {
        match announces_setup {
            true => Self::Setup(Setup::Running),
            false => Self::Done,
        }
    }

    pub(super) fn setup(&self) -> Option<&Setup> {
        match self {
            Self::Setup(setup) => Some(setup),
            Self::Done | Self::Pending(_) => None,
        }
    }

    #[inline]
    fn stage(&self) -> Option<&Stage> {
        match self {
            Self::Pending(pending) => Some(&pending.stage),
            Self::Done | Self::Setup(_) => None,
        }
    }

    #[inline]
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Pending(pending) => pending.due,
            Self::Setup(Setup::Ending { due, .. }) => *due,
            Self::Done | Self::Setup(_) => None,
        }
    }

    /// Whether it waits for nothing but what has arrived, or for the end of the connection.
    #[inline]
    pub(super) fn waits_for_arrived(&self) -> bool {
        self.stage().is_some_and(|stage| !matches!(stage, Stage::Hello))
            || self.setup().is_some_and(Setup::is_aborted)
    }

    #[inline]
    pub(super) fn needs_input_stop(&self) -> bool {
        matches!(self.stage(), Some(Stage::Stopping(_)))
            || matches!(self.setup(), Some(Setup::Stopping))
    }

    #[inline]
    pub(super) fn needs_arrived_input(&self) -> bool {
        matches!(self.stage(), Some(Stage::Leaving { .. } | Stage::Stopped { .. }))
            || matches!(self.setup(), Some(Setup::Stopped { .. }))
    }

    pub(super) fn handle_no_input(&mut self) {
        let pending = match self {
            Self::Pending(pending) => pending,
            Self::Setup(setup) => return setup.handle_no_input(),
            Self::Done => return,
        };
        match &mut pending.stage {
            Stage::Leaving { is_exhausted, .. } | Stage::Stopped { is_exhausted, .. } => {
                *is_exhausted = true;
            }
            Stage::Hello | Stage::Stopping(_) => {}
        }
    }

    pub(super) fn handle_input_stopped(&mut self, is_stopped: bool) {
        let pending = match self {
            Self::Pending(pending) => pending,
            Self::Setup(setup) => return setup.handle_input_stopped(is_stopped),
            Self::Done => return,
        };
        if let Stage::Stopping(why) = &mut pending.stage {
            let why = std::mem::replace(why, Stop::Aborted);
            pending.stage = Stage::Stopped { why, is_exhausted: false };
        }
    }

    /// Aborts a handshake whose time is over, unless the hello has arrived by now.
    pub(super) fn handle_timeout(&mut self) {
        match self {
            Self::Pending(pending) => {
                if let Stage::Hello = pending.stage {
                    pending.stage = Stage::Leaving { why: Stop::Aborted, is_exhausted: false };
                }
            }
            Self::Setup(setup) => setup.handle_timeout(),
            Self::Done => {}
        }
    }

    pub(super) fn abort(&mut self) {
        match self {
            Self::Pending(pending) => pending.stage = Stage::Stopping(Stop::Aborted),
            Self::Setup(setup) => *setup = Setup::Stopping,
            Self::Done => {}
        }
    }
}
