//! The handshake: what each side says first, and the limits that follow from it. No I/O.

use std::io;
use std::sync::Weak;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::config::Config;
use crate::sys;
use crate::wire::WireError;
use crate::wire::frame::{self, DEFAULT_MAX_BLOB, PREAMBLE};
use crate::wire::hello::{ClientHello, MAX_HELLO, WorkerHello};
use crate::wire::native::{FromWorker, VERSIONS};

/// So many bytes of calls are sent at most before they are answered, whatever the worker takes.
const MAX_PIPELINE_WINDOW: usize = 64 << 10;

/// What a worker says of itself that holds for all workers of its server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerLimits {
    /// The longest frame that it takes.
    pub(crate) max_send: usize,
    /// The longest blob that it takes as memory.
    pub(crate) max_blob: usize,
    /// How many bytes of calls it takes before it has answered them.
    pub(crate) pipeline_window: usize,
    /// How many files it takes with a message.
    pub(crate) files: usize,
}

impl PeerLimits {
    /// To a client that itself takes so many files.
    pub(crate) fn of(hello: &WorkerHello, max_frame: usize, files: usize) -> Self {
        Self {
            max_send: hello.max_frame.unwrap_or(frame::DEFAULT_MAX_FRAME).min(max_frame),
            max_blob: hello.max_blob.unwrap_or(DEFAULT_MAX_BLOB),
            pipeline_window: hello.pipeline_window.min(MAX_PIPELINE_WINDOW),
            files: hello.max_files.min(files),
        }
    }
}

/// How many files the client takes with a message through a unix socket.
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

/// Why there was no greeting.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the server closed the connection before its greeting")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{0}")]
    Misfit(String),
    #[error("the server refused: {0}")]
    Refused(String),
    /// The greeting comes later.
    #[error("the server has no worker yet: {0}")]
    Wait(String),
}

impl HandshakeError {
    /// Of a read that failed.
    pub(crate) fn of(error: io::Error) -> Self {
        match WireError::of_read(&error) {
            Some(error) => Self::Wire(error),
            None => Self::Io(error),
        }
    }
}

/// What a client says first.
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

/// How much of a greeting has been taken.
#[derive(Debug, Default)]
pub(crate) struct HandshakeReader {
    preamble: bool,
}

impl HandshakeReader {
    /// Takes a worker's greeting off what has been received, if all of it is there.
    pub(crate) fn read(
        &mut self,
        inbox: &mut BytesMut,
    ) -> Result<Option<WorkerHello>, HandshakeError> {
        self.preamble = self.preamble || frame::take_preamble(inbox)?;
        if !self.preamble {
            return Ok(None);
        }
        let Some(body) = frame::take(inbox, MAX_HELLO)? else { return Ok(None) };
        match FromWorker::decode(&body)? {
            FromWorker::Hello(hello) => match hello.incompatibility() {
                None => Ok(Some(hello)),
                Some(why) => Err(HandshakeError::Misfit(why)),
            },
            FromWorker::Error { body, .. } => Err(HandshakeError::Refused(body.message.to_owned())),
            FromWorker::Queued(reason) => Err(HandshakeError::Wait(reason.to_owned())),
            _ => Err(WireError::Malformed("the first message is no hello".into()).into()),
        }
    }
}

/// What is to be done when the worker greets.
#[derive(Debug)]
pub(crate) struct PendingHandshake {
    pub(crate) reader: HandshakeReader,
    /// When it was connected.
    pub(crate) since: Instant,
    /// A checkout has had it.
    pub(crate) held: bool,
    /// The longest frame, and how many files with one, that this side takes.
    pub(crate) max_frame: usize,
    pub(crate) files: usize,
    pub(crate) observer: Weak<dyn HandshakeObserver>,
}

/// Learns of handshakes that complete on connections in use.
pub(crate) trait HandshakeObserver: Send + Sync {
    /// A worker's hello came, `took` after its connection was made.
    fn handshake_completed(&self, limits: PeerLimits, took: Duration);
}
