//! Connections whose clients have not sent their complete first message. The server watches them
//! itself and forks a worker only when that message has arrived, so a silent client costs one
//! descriptor. The [`supervisor`](super::supervisor) decides how many there may be, and for how long.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Resource, getrlimit};

use super::access::{Origin, Rules};
use super::error::ServerError;
use super::watched_set::WatchedSet;
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;
use crate::wire::first_message::{FirstMessage, Progress};

const DEFAULT_TIMEOUT: TimeLimit = TimeLimit::new(Duration::from_secs(10));
const DEFAULT_LIMIT: usize = 1000;

/// The most bytes of one read.
const READ_SIZE: usize = 4096;

/// The options of handshakes. `None` stands for the default.
#[derive(Debug, Default)]
pub(crate) struct HandshakeLimits {
    pub(super) timeout: Option<TimeLimit>,
    pub(super) limit: Option<usize>,
}

impl HandshakeLimits {
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        let wrong = |option, reason: &str| Err(ServerError::option(option, reason));
        if self.timeout.is_some_and(TimeLimit::is_zero) {
            return wrong("handshake_timeout", "with 0, no client on TCP could be served");
        }
        if self.limit == Some(0) {
            let reason =
                "with 0, a client whose first message does not come at once is never served";
            return wrong("max_handshakes", reason);
        }
        Ok(())
    }

    fn limit(&self) -> usize {
        self.limit.unwrap_or_else(|| {
            let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 4;
            usize::try_from(descriptors).unwrap_or(usize::MAX).clamp(1, DEFAULT_LIMIT)
        })
    }
}

/// All connections with an incomplete first message.
#[derive(Debug)]
pub(crate) struct Handshakes {
    pending: WatchedSet<PendingHandshake>,
    limit: usize,
    timeout: TimeLimit,
    /// Clients of the server's own user may stay silent for ever.
    keeps_silent_own: bool,
    /// How many connections were closed before their first message was complete.
    pub(super) failures: u64,
}

#[derive(Debug)]
pub(super) struct PendingHandshake {
    pub(super) connection: OwnedFd,
    pub(super) origin: Origin,
    pub(super) received: Vec<u8>,
    first_message: FirstMessage,
}

impl AsFd for PendingHandshake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Handshakes {
    pub(crate) fn new(limits: &HandshakeLimits, rules: &Rules) -> Result<Self, ServerError> {
        let pending = WatchedSet::new()
            .map_err(ServerError::system("cannot create an epoll instance for new connections"))?;
        Ok(Self {
            pending,
            limit: limits.limit(),
            timeout: limits.timeout.unwrap_or(DEFAULT_TIMEOUT),
            // A client of AnyEvent::Task connects before it has anything to send, and its next call
            // fails if the connection has been closed meanwhile.
            keeps_silent_own: limits.timeout.is_none()
                && rules.allows_protocol(Protocol::Perl, Origin::Local),
            failures: 0,
        })
    }

    /// The maximum number of them.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn timeout(&self) -> TimeLimit {
        self.timeout
    }

    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// The numbers of connections that have something to read.
    pub(super) fn ready(&self) -> Vec<u64> {
        self.pending.ready()
    }

    /// The descriptors that a worker must close.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pending.descriptors()
    }

    /// Closes this process's copies, in a process that was forked from the server.
    pub(crate) fn close_copies(&mut self) {
        self.pending.close_copies();
    }

    /// Closes all connections.
    pub(crate) fn close_all(&mut self) {
        while let Some(number) = self.pending.oldest() {
            self.remove(number);
        }
    }

    /// Whether a new connection may stay silent for ever.
    pub(super) fn may_be_silent(
        &self,
        connection: &OwnedFd,
        origin: Origin,
        is_silent: bool,
        rules: &Rules,
    ) -> bool {
        is_silent && self.keeps_silent_own && origin == Origin::Local && rules.is_own(connection)
    }

    /// Adds a connection and returns its number.
    pub(super) fn add(&mut self, connection: OwnedFd, origin: Origin) -> Result<u64, Errno> {
        let (received, first_message) = (Vec::new(), FirstMessage::default());
        let pending = PendingHandshake { connection, origin, received, first_message };
        self.pending.insert(pending, EventFlags::IN).map_err(|(_, errno)| errno)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<PendingHandshake> {
        self.pending.remove(number)
    }

    /// Whether a part of a connection's first message has been read.
    pub(super) fn has_bytes(&mut self, number: u64) -> bool {
        self.pending.get_mut(number).is_some_and(|pending| !pending.received.is_empty())
    }

    /// Reads from a connection, and returns how much of its first message has arrived.
    pub(super) fn read(&mut self, number: u64, max_frame: usize) -> ReadOutcome {
        loop {
            let Some(pending) = self.pending.get_mut(number) else {
                return ReadOutcome::Incomplete;
            };
            let lacks = match pending.first_message.scan(&pending.received, max_frame) {
                Ok(Progress::Needs(lacks)) => lacks,
                Ok(Progress::Complete(protocol)) => return ReadOutcome::Complete(protocol),
                Ok(Progress::TooLong(protocol)) => return ReadOutcome::TooLong(protocol),
                Err(error) => return ReadOutcome::Invalid(error.to_string()),
            };
            let received = pending.received.len();
            pending.received.resize(received + lacks.min(READ_SIZE), 0);
            let read =
                recv(&pending.connection, &mut pending.received[received..], RecvFlags::DONTWAIT);
            let length = read.map_or(0, |(_, length)| length);
            pending.received.truncate(received + length);
            match read.map(|_| length) {
                Ok(0) if received == 0 => return ReadOutcome::Closed,
                Ok(0) => {
                    let reason = "the client closed the connection in the middle of its greeting";
                    return ReadOutcome::Invalid(reason.to_owned());
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return ReadOutcome::Incomplete,
                Err(_) => return ReadOutcome::Closed,
            }
        }
    }
}

/// The state of a connection after a read.
pub(super) enum ReadOutcome {
    Incomplete,
    /// The first message is complete.
    Complete(Protocol),
    /// A part of a long first message has arrived: the worker reads the rest.
    TooLong(Protocol),
    /// The bytes are no valid first message, for this reason.
    Invalid(String),
    /// The client has closed the connection without sending anything.
    Closed,
}

impl AsFd for Handshakes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pending.as_fd()
    }
}
