//! What can go wrong, and what to do about it.

use std::time::Duration;
use std::{fmt, io};

use crate::link::Violation;

/// Why a node does not start, or a client gets no session.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of the NATS server is not one.
    #[error(
        "{url:?} is not the address of a NATS server ({source}): write nats://HOST:PORT, or tls://HOST:PORT, \
         and a comma in a password as %2C"
    )]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// No NATS server answers at the address.
    #[error("no NATS server answers at {url} ({source}): start one, or correct the address")]
    Unreachable {
        /// The address.
        url: String,
        /// How the connection failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The NATS server refuses the credentials, or demands some.
    #[error(
        "the NATS server at {url} refuses the credentials ({source}): check user, password, token or credentials file"
    )]
    Credentials {
        /// The address.
        url: String,
        /// What the server said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The TLS handshake with the NATS server failed.
    #[error(
        "TLS with the NATS server at {url} failed ({source}): check its certificate, and the roots that are trusted here"
    )]
    Tls {
        /// The address.
        url: String,
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The NATS server does not speak TLS, and the address demands it.
    #[error(
        "the NATS server at {url} does not speak TLS at this port: write nats:// instead of tls:// or nats+tls://, or the port \
         that speaks TLS"
    )]
    NoTls {
        /// The address.
        url: String,
    },
    /// The NATS server demands a certificate of its user.
    #[error(
        "the NATS server at {url} wants a certificate of its user ({source}): set one and its key with \
         `add_client_certificate`"
    )]
    CertificateWanted {
        /// The address.
        url: String,
        /// What the server said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The name of a service, node or label cannot be used.
    #[error("{name:?} cannot be the name of a {what}: {why}")]
    InvalidName {
        /// `service`, `node` or `label`.
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The version of a service cannot be used.
    #[error("{version:?} cannot be the version of a service: write three numbers, such as 1.2.0")]
    InvalidVersion {
        /// The version.
        version: String,
    },
    /// A node has, or a client wants, more labels than the protocol allows.
    #[error("{count} labels were given, and at most {most} are possible: leave out some")]
    TooManyLabels {
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// A node can have at least one session at a time.
    #[error("a node with room for 0 sessions serves nobody: set `sessions` to 1 or more")]
    NoSessions,
    /// The NATS server does not permit a node what it needs.
    #[error("the NATS server does not permit this to {what}: give the NATS user these permissions")]
    NotPermitted {
        /// What the user may not: `publish to SUBJECT` or `subscribe to SUBJECT`, several with commas.
        what: String,
    },
    /// What is sent to an inbox of this client does not come back.
    #[error(
        "the NATS server gives this client nothing that is sent to its inbox: the NATS user may not subscribe to {subject} or \
         publish to it, or the NATS server hangs"
    )]
    NoInbox {
        /// The subjects of inboxes.
        subject: String,
    },
    /// Another node of the service has the same name.
    #[error(
        "another node of the service {service} has the name {node}: give each node a name of its own"
    )]
    NodeNameInUse {
        /// The service.
        service: String,
        /// The name of the node.
        node: String,
    },
    /// The NATS server takes only messages that are too short for sessions.
    #[error(
        "the NATS server takes messages of at most {limit} bytes, and sessions need {needed}: raise max_payload in its configuration"
    )]
    PayloadLimit {
        /// The server's `max_payload`, in bytes.
        limit: usize,
        /// The smallest one that works, in bytes.
        needed: usize,
    },
    /// No node has room now, or none runs. Trying again later can succeed.
    #[error(
        "no node of the service {service}{wanted} has room now{}: wait and try again, or start more nodes",
        if wanted.is_empty() { "" } else { ", or none has these labels" }
    )]
    NoRoom {
        /// The service.
        service: String,
        /// The labels that were wanted, as text; empty without any.
        wanted: String,
    },
    /// No node answered in time. Trying again later can succeed.
    #[error(
        "no node of the service {service} answered within {waited:.1?}: the NATS user may not publish to {subject}, or nodes or \
         the network hang"
    )]
    NoAnswer {
        /// The service.
        service: String,
        /// For how long the client has waited.
        waited: Duration,
        /// Where the request went.
        subject: String,
    },
    /// A node refused the session. Trying again later can succeed.
    #[error("the node {node} refused a session: {text}")]
    Refused {
        /// The node.
        node: String,
        /// Its reason.
        text: String,
    },
    /// The connection to the NATS server is lost for now; it is made again in the background. Trying
    /// again later can succeed.
    #[error("the connection to the NATS server is lost, and is being made again: try again later")]
    Disconnected,
    /// The NATS client has closed for good, for example after `max_reconnects`.
    #[error("the NATS client has closed ({0}): connect again")]
    Closed(Box<dyn std::error::Error + Send + Sync>),
    /// The address for direct connections is not one.
    #[error(
        "{address:?} is no address for direct connections ({why}): write HOST:PORT as clients reach it"
    )]
    DirectAddress {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether no node has room now, or none runs. A pool waits then, and tries again.
    ///
    /// ```
    /// # async fn example(fleet: &taskfork_nats::Fleet) {
    /// match fleet.acquire(&[], None).await {
    ///     Ok(session) => drop(session),
    ///     Err(error) if error.is_no_room() => println!("later"),
    ///     Err(error) => println!("{error}"),
    /// }
    /// # }
    /// ```
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::NoRoom { .. })
    }

    /// Whether the same can succeed later without a change of the configuration.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::NoRoom { .. }
                | Self::NoAnswer { .. }
                | Self::NoInbox { .. }
                | Self::Refused { .. }
                | Self::Disconnected
                | Self::Unreachable { .. }
        )
    }

    pub(crate) fn closed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Closed(source.into())
    }
}

/// The same text as `Display`, so that a `main` that returns the error prints it for people.
impl fmt::Debug for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Why a session has ended, other than by being closed. The source of the [`io::Error`] of its reads and
/// writes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The node was silent for two intervals of heartbeats.
    #[error("the node {node} is lost: its last message came {last_contact:.1?} ago")]
    NodeLost {
        /// The node.
        node: String,
        /// How long ago its last message had come when the session ended.
        last_contact: Duration,
    },
    /// The client was silent for two intervals of heartbeats.
    #[error("the client {client:?} is lost: its last message came {last_contact:.1?} ago")]
    ClientLost {
        /// The client's name.
        client: String,
        /// How long ago its last message had come when the session ended.
        last_contact: Duration,
    },
    /// Messages were lost on the way, for example while the connection to a NATS server was made again.
    #[error("the session with {peer} has lost messages on the way: {detail}")]
    Gap {
        /// The node or client at the other side.
        peer: String,
        /// Which message came instead of which.
        detail: String,
    },
    /// The other side broke the protocol.
    #[error("{peer} broke the protocol of sessions: {detail}")]
    Violation {
        /// The node or client at the other side.
        peer: String,
        /// How.
        detail: String,
    },
    /// The other side has ended the session.
    #[error("{peer} has ended the session: {detail}")]
    Ended {
        /// The node or client at the other side.
        peer: String,
        /// Why.
        detail: String,
    },
    /// The NATS client of this side has closed for good.
    #[error("the NATS client of this side has closed")]
    NatsClosed,
}

impl SessionError {
    pub(crate) fn violation(peer: &str, violation: &Violation) -> Self {
        let (peer, detail) = (peer.into(), violation.to_string());
        match violation {
            Violation::Gap { .. } => Self::Gap { peer, detail },
            _ => Self::Violation { peer, detail },
        }
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::NodeLost { .. } | Self::ClientLost { .. } => io::ErrorKind::TimedOut,
            Self::Gap { .. } | Self::Ended { .. } => io::ErrorKind::ConnectionReset,
            Self::Violation { .. } => io::ErrorKind::InvalidData,
            Self::NatsClosed => io::ErrorKind::NotConnected,
        }
    }
}

impl From<SessionError> for io::Error {
    fn from(error: SessionError) -> Self {
        Self::new(error.kind(), error)
    }
}
