//! The handshake: the hellos of both sides, and the limits that follow from them. It does no I/O.

use std::io;
use std::sync::Weak;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::config::Config;
use crate::error::ConnectionError;
use crate::sys;
use crate::wire::WireError;
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
}

impl PeerLimits {
    /// The limits of a connection to a client with these limits of its own.
    pub(crate) fn of(hello: &WorkerHello, max_frame: usize, files: usize) -> Self {
        Self {
            max_send: hello.max_frame.unwrap_or(frame::DEFAULT_MAX_FRAME).min(max_frame),
            max_blob: hello.max_blob.unwrap_or(DEFAULT_MAX_BLOB),
            pipeline_window: hello.pipeline_window.min(MAX_PIPELINE_WINDOW),
            files: hello.max_files.min(files),
        }
    }
}

/// The most files that a message through a unix socket may have.
pub(crate) fn max_files(config: &Config) -> usize {
    if config.pass_descriptors { sys::MAX_FILES } else { 0 }
}

/// The most memory of a worker that the client maps, in bytes. `files` is how many files it takes with a message.
///
/// A client whose user id can stand for several users shares nothing: it could not tell another user's memory.
pub(crate) fn max_shared(config: &Config, files: usize) -> usize {
    let is_unique = || sys::is_unique_user(rustix::process::geteuid().as_raw());
    if files > 0 && config.shared_memory > 0 && is_unique() { config.shared_memory } else { 0 }
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
    /// The server has no free worker; the hello follows later.
    #[error("the server has no worker yet: {0}")]
    ServerBusy(String),
}

impl From<HandshakeError> for ConnectionError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Io(error) => Self::system(error),
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

/// Encodes the client's first message.
pub(crate) fn client_hello(
    config: &Config,
    files: usize,
    client: u64,
) -> Result<Vec<u8>, WireError> {
    let hello = ClientHello {
        versions: VERSIONS.into(),
        name: &config.name,
        max_frame: Some(config.max_frame),
        max_blob: Some(config.max_blob),
        max_files: files,
        shared_memory: max_shared(config, files),
        client_number: client,
    };
    let mut out = PREAMBLE.to_vec();
    frame::write_control(&mut out, |out| hello.put(out))?;
    Ok(out)
}

/// Reads the preamble and the hello of a worker, which may arrive in pieces.
#[derive(Debug, Default)]
pub(crate) struct HandshakeReader {
    has_preamble: bool,
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
            FromWorker::Error { body, .. } => Err(HandshakeError::Refused(body.message.to_owned())),
            FromWorker::Queued(reason) => Err(HandshakeError::ServerBusy(reason.to_owned())),
            _ => Err(WireError::Malformed("the first message is no hello".into()).into()),
        }
    }
}

/// The state of a handshake on a connection in use.
#[derive(Debug)]
pub(crate) struct PendingHandshake {
    pub(crate) reader: HandshakeReader,
    /// When the connection was made.
    pub(crate) since: Instant,
    /// A checkout has held the connection.
    pub(crate) held: bool,
    /// The longest frame, and the most files with one, that this side accepts.
    pub(crate) max_frame: usize,
    pub(crate) files: usize,
    pub(crate) observer: Weak<dyn HandshakeObserver>,
}

/// Learns of handshakes that complete on connections in use.
pub(crate) trait HandshakeObserver: Send + Sync {
    /// A worker's hello came, `took` after its connection was made.
    fn handshake_completed(&self, limits: PeerLimits, took: Duration);
}
