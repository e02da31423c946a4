//! The control channel between a server and the program that started it: a pair of sockets. The
//! program sends what the server needs at its start, and connections later. The server reports how
//! far its start has come, and why it ends.
//!
//! The end of the channel is a request to shut down gracefully. The kernel closes the channel with
//! the program, so no server outlives the program that started it. `spawned_server` has the
//! program's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::error::ServerError;
use super::failure_text;
use crate::address::Address;
use crate::error::Failure;
use crate::sys::{self, MAX_CHANNEL_TEXT, Received};

/// The first byte of each message of the program. All but `CONFIG`, `ADDRESS` and `BEGIN` come with
/// a descriptor.
pub(crate) const STDOUT: u8 = b'o';
pub(crate) const STDERR: u8 = b'e';
/// A piece of the configuration.
pub(crate) const CONFIG: u8 = b'v';
/// The address of the server that this one replaces.
pub(crate) const ADDRESS: u8 = b'a';
/// The end of the startup data.
pub(crate) const BEGIN: u8 = b'b';
pub(crate) const CONNECTION: u8 = b'c';
pub(crate) const STATUS: u8 = b's';

/// The most bytes of one message of the program.
pub(crate) const MAX_MESSAGE: usize = 32 << 10;

const INIT: &str = "init";
const READY: &str = "ready ";
const FAILED: &str = "failed ";
const MISCONFIGURED: &str = "misfit ";
const ENDED: &str = "ended ";

/// Creates a channel. Returns the program's end and the server's.
pub(crate) fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The server's end. It is closed when its last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct ControlChannel(Arc<OwnedFd>);

/// A request of the program.
#[derive(Debug)]
pub(crate) enum ControlRequest {
    Connection(OwnedFd),
    /// A connection on which to send the status.
    Status(OwnedFd),
    Shutdown,
}

/// What the program sends before the server starts.
#[derive(Default)]
pub(crate) struct StartupData {
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) config: Option<Vec<u8>>,
    /// The address of the server that this one replaces.
    pub(crate) previous: Option<String>,
}

/// A message of a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerMessage {
    /// The server has called `init`.
    Init,
    /// The server listens at this address. Without an address, it takes connections from the
    /// channel.
    Ready(Option<String>),
    Failed(Failure),
    /// The configuration does not decode as the type that the server expects.
    Misconfigured {
        expected: String,
        source: Failure,
    },
    /// The server has shut down, but had to kill workers.
    Ended(Failure),
}

impl ControlChannel {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(Arc::new(socket))
    }

    /// Receives the startup data, and reports that `init` has been called.
    pub(crate) fn receive_startup_data(&self) -> io::Result<StartupData> {
        let mut data = StartupData::default();
        let mut piece = vec![0; MAX_MESSAGE];
        loop {
            let (received, length) =
                sys::receive_descriptor(&*self.0, RecvFlags::empty(), &mut piece)?;
            let (kind, rest) = match piece[..length].split_first() {
                Some((&kind, rest)) => (kind, rest),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            match (kind, received) {
                (STDOUT, Received::Descriptor(stdout)) => data.stdout = Some(stdout),
                (STDERR, Received::Descriptor(stderr)) => data.stderr = Some(stderr),
                (CONFIG, _) => data.config.get_or_insert_default().extend_from_slice(rest),
                (ADDRESS, _) => data.previous = String::from_utf8(rest.to_vec()).ok(),
                (BEGIN, _) => break,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        self.send(INIT, "");
        Ok(data)
    }

    /// Reports why the server did not start, or why it ended.
    pub(crate) fn report_failure(&self, error: &ServerError) {
        match error {
            ServerError::Misconfigured { expected, source } => {
                let failure = failure_text::encode(source);
                self.send(MISCONFIGURED, &format!("{expected}\n{failure}"));
            }
            ServerError::Killed { .. } => self.send_failure(ENDED, error),
            error => self.send_failure(FAILED, error),
        }
    }

    pub(crate) fn report_panic(&self) {
        self.send(FAILED, &failure_text::encode(&Failure::new("it panicked")));
    }

    /// Reports that the server is ready.
    pub(crate) fn report_ready(&self, address: Option<&Address>) {
        self.send(READY, &address.map(Address::to_string).unwrap_or_default());
    }

    fn send_failure(&self, kind: &str, error: &ServerError) {
        self.send(kind, &failure_text::encode(&Failure::of(error)));
    }

    fn send(&self, kind: &str, text: &str) {
        let text = &text[..text.floor_char_boundary(MAX_CHANNEL_TEXT - kind.len())];
        // The program may have ended.
        let _ = send(&*self.0, format!("{kind}{text}").as_bytes(), SendFlags::NOSIGNAL);
    }

    /// The next request. `None` while there is none.
    pub(crate) fn next_request(&self) -> io::Result<Option<ControlRequest>> {
        let mut kind = [0];
        match sys::receive_descriptor(&*self.0, RecvFlags::DONTWAIT, &mut kind) {
            Ok((Received::End, _)) => Ok(Some(ControlRequest::Shutdown)),
            Ok((Received::Other, _)) => Ok(None),
            Ok((Received::Descriptor(connection), _)) => Ok(match kind[0] {
                CONNECTION => Some(ControlRequest::Connection(connection)),
                STATUS => Some(ControlRequest::Status(connection)),
                _ => None,
            }),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::CONNRESET) => Ok(Some(ControlRequest::Shutdown)),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for ControlChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ServerMessage {
    /// The next message of a server. `None` if it is not valid. The end of the channel is an error.
    pub(crate) fn receive(channel: &OwnedFd) -> rustix::io::Result<Option<Self>> {
        let mut text = [0; MAX_CHANNEL_TEXT];
        loop {
            match recv(channel, &mut text, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Errno::PIPE),
                Ok((_, length)) => return Ok(Self::parse(&text[..length])),
                // The kernel reports a reset once, before the messages, if the server ended without
                // reading everything.
                Err(Errno::CONNRESET | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        if text == INIT {
            return Some(Self::Init);
        }
        if let Some(address) = text.strip_prefix(READY) {
            return Some(Self::Ready(Some(address.to_owned()).filter(|text| !text.is_empty())));
        }
        if let Some(text) = text.strip_prefix(MISCONFIGURED) {
            let (expected, failure) = text.split_once('\n')?;
            let source = failure_text::decode(failure);
            return Some(Self::Misconfigured { expected: expected.to_owned(), source });
        }
        let failed = text.strip_prefix(FAILED).map(|text| Self::Failed(failure_text::decode(text)));
        failed.or_else(|| {
            text.strip_prefix(ENDED).map(|text| Self::Ended(failure_text::decode(text)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(report: impl FnOnce(&ControlChannel)) -> Option<ServerMessage> {
        let (ours, theirs) = pair().unwrap();
        report(&ControlChannel::new(theirs));
        ServerMessage::receive(&ours).unwrap()
    }

    #[test]
    fn the_last_message_of_a_server_that_has_not_read_everything_arrives() {
        let (ours, theirs) = pair().unwrap();
        send(&ours, b"c", SendFlags::NOSIGNAL).unwrap();
        ControlChannel::new(theirs).report_panic();
        assert!(matches!(ServerMessage::receive(&ours), Ok(Some(ServerMessage::Failed(_)))));
        assert_eq!(ServerMessage::receive(&ours), Err(Errno::PIPE));
    }

    #[test]
    fn each_message_arrives_as_it_was_sent() {
        let ready = received(|control| control.report_ready(None));
        assert_eq!(ready, Some(ServerMessage::Ready(None)));
        let address = Address::tcp("localhost", 80);
        let ready = received(|control| control.report_ready(Some(&address)));
        assert_eq!(ready, Some(ServerMessage::Ready(Some("tcp:localhost:80".to_owned()))));
        let preload = ServerError::Preload(Failure::new("no model").caused_by("no such file"));
        let failed = received(|control| control.report_failure(&preload));
        assert_eq!(failed, Some(ServerMessage::Failed(Failure::of(&preload))));
        let (expected, source) = ("app::Config".to_owned(), Failure::new("missing field\n`a`"));
        let error =
            ServerError::Misconfigured { expected: expected.clone(), source: source.clone() };
        let misconfigured = received(|control| control.report_failure(&error));
        assert_eq!(misconfigured, Some(ServerMessage::Misconfigured { expected, source }));
        let killed = ServerError::Killed { workers: 2 };
        let ended = received(|control| control.report_failure(&killed));
        assert_eq!(ended, Some(ServerMessage::Ended(Failure::of(&killed))));
        let long = ServerError::startup("ä".repeat(MAX_CHANNEL_TEXT));
        assert!(matches!(
            received(|control| control.report_failure(&long)),
            Some(ServerMessage::Failed(_))
        ));
        assert_eq!(ServerMessage::parse(b"nonsense"), None);
    }
}
