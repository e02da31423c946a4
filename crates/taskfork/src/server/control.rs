//! The server's end of the line between a program and the server that it started: a pair of sockets. The program
//! sends what the server needs at its start, and later connections. The server sends how far its start has come,
//! and why it ends. The end of the line is the wish for a graceful shutdown: as the kernel closes it with the
//! program, no server outlives the program that started it. `link` has the program's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::error::ServerError;
use crate::address::Address;
use crate::sys::{self, MAX_CHANNEL_TEXT, Received};

/// What each message of the program begins with. All but `CONFIG`, `ADDRESS` and `BEGIN` have a descriptor.
pub(crate) const STDOUT: u8 = b'o';
pub(crate) const STDERR: u8 = b'e';
/// A piece of the configuration.
pub(crate) const CONFIG: u8 = b'v';
/// Where the server before this one listened.
pub(crate) const ADDRESS: u8 = b'a';
/// Ends what the server needs at its start.
pub(crate) const BEGIN: u8 = b'b';
pub(crate) const CONNECTION: u8 = b'c';
pub(crate) const STATUS: u8 = b's';

/// The most bytes of one message of the program.
pub(crate) const LONGEST_MESSAGE: usize = 32 << 10;

const INIT: &str = "init";
const READY: &str = "ready ";
const FAILED: &str = "failed ";
const MISCONFIGURED: &str = "misfit ";
const ENDED: &str = "ended ";

/// Both ends of a new line: the program's and the server's.
pub(crate) fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The server's end, which is closed when the last copy of this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct ControlChannel(Arc<OwnedFd>);

/// What the program wants.
#[derive(Debug)]
pub(crate) enum ControlRequest {
    Connection(OwnedFd),
    /// To be told the status.
    Status(OwnedFd),
    Shutdown,
}

/// What the program sends before the server starts.
#[derive(Default)]
pub(crate) struct StartupData {
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) config: Option<Vec<u8>>,
    /// Where the server before this one listened.
    pub(crate) previous: Option<String>,
}

/// What a server says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerMessage {
    /// It has called `init`.
    Init,
    /// It listens there, or takes connections from the line.
    Ready(Option<String>),
    Failed(String),
    /// Its configuration is not of the type that it expects.
    Misconfigured {
        expected: String,
        reason: String,
    },
    /// It has ended as it was told to, but not in peace.
    Ended(String),
}

impl ControlChannel {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(Arc::new(socket))
    }

    /// Takes what the program has sent, and says that `init` has been called.
    pub(crate) fn receive_startup_data(&self) -> io::Result<StartupData> {
        let mut data = StartupData::default();
        let mut piece = vec![0; LONGEST_MESSAGE];
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

    /// Says why the server does not come up, or why it ends.
    pub(crate) fn report_failure(&self, error: &ServerError) {
        match error {
            ServerError::Misconfigured { expected, reason } => {
                self.send(MISCONFIGURED, &format!("{expected}\n{reason}"));
            }
            ServerError::Killed { .. } => self.send(ENDED, &error.to_string()),
            error => self.send(FAILED, &error.to_string()),
        }
    }

    pub(crate) fn report_panic(&self) {
        self.send(FAILED, "it panicked");
    }

    /// Says that the server listens; without an address, that connections can be sent.
    pub(crate) fn report_ready(&self, address: Option<&Address>) {
        self.send(READY, &address.map(Address::to_string).unwrap_or_default());
    }

    fn send(&self, word: &str, text: &str) {
        let text = &text[..text.floor_char_boundary(MAX_CHANNEL_TEXT - word.len())];
        // A program that is gone needs no word.
        let _ = send(&*self.0, format!("{word}{text}").as_bytes(), SendFlags::NOSIGNAL);
    }

    /// The next wish, or nothing while there is none.
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
    /// The next that a server has said through this line; nothing for what is no word. The end of the line is an
    /// error.
    pub(crate) fn receive(line: &OwnedFd) -> rustix::io::Result<Option<Self>> {
        let mut text = [0; MAX_CHANNEL_TEXT];
        loop {
            match recv(line, &mut text, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Errno::PIPE),
                Ok((_, length)) => return Ok(Self::parse(&text[..length])),
                // The server ended before it had read all. That is told once, and before what it said.
                Err(Errno::CONNRESET | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Nothing if it is none.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        if text == INIT {
            return Some(Self::Init);
        }
        if let Some(address) = text.strip_prefix(READY) {
            return Some(Self::Ready(Some(address.to_owned()).filter(|text| !text.is_empty())));
        }
        if let Some(text) = text.strip_prefix(MISCONFIGURED) {
            let (expected, reason) = text.split_once('\n')?;
            return Some(Self::Misconfigured {
                expected: expected.to_owned(),
                reason: reason.to_owned(),
            });
        }
        let failed = text.strip_prefix(FAILED).map(|text| Self::Failed(text.to_owned()));
        failed.or_else(|| text.strip_prefix(ENDED).map(|text| Self::Ended(text.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(said: impl FnOnce(&ControlChannel)) -> Option<ServerMessage> {
        let (ours, theirs) = pair().unwrap();
        said(&ControlChannel::new(theirs));
        ServerMessage::receive(&ours).unwrap()
    }

    #[test]
    fn the_last_word_of_a_server_that_has_not_read_all_is_heard() {
        let (ours, theirs) = pair().unwrap();
        send(&ours, b"c", SendFlags::NOSIGNAL).unwrap();
        ControlChannel::new(theirs).report_panic();
        assert!(matches!(ServerMessage::receive(&ours), Ok(Some(ServerMessage::Failed(_)))));
        assert_eq!(ServerMessage::receive(&ours), Err(Errno::PIPE));
    }

    #[test]
    fn each_word_is_heard_as_it_was_said() {
        let ready = received(|control| control.report_ready(None));
        assert_eq!(ready, Some(ServerMessage::Ready(None)));
        let address = Address::tcp("localhost", 80);
        let ready = received(|control| control.report_ready(Some(&address)));
        assert_eq!(ready, Some(ServerMessage::Ready(Some("tcp:localhost:80".to_owned()))));
        let failed = received(|control| control.report_failure(&ServerError::NoAddress));
        assert_eq!(failed, Some(ServerMessage::Failed(ServerError::NoAddress.to_string())));
        let (expected, reason) = ("app::Config".to_owned(), "missing field\n`a`".to_owned());
        let error =
            ServerError::Misconfigured { expected: expected.clone(), reason: reason.clone() };
        let misconfigured = received(|control| control.report_failure(&error));
        assert_eq!(misconfigured, Some(ServerMessage::Misconfigured { expected, reason }));
        let killed = ServerError::Killed { workers: 2 };
        let ended = received(|control| control.report_failure(&killed));
        assert_eq!(ended, Some(ServerMessage::Ended(killed.to_string())));
        let long = ServerError::Startup { message: "ä".repeat(MAX_CHANNEL_TEXT) };
        assert!(matches!(
            received(|control| control.report_failure(&long)),
            Some(ServerMessage::Failed(_))
        ));
        assert_eq!(ServerMessage::parse(b"nonsense"), None);
    }
}
