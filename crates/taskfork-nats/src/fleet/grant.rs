//! A node's permission to connect to it directly.

use std::fmt;
use std::time::{Duration, Instant};

use super::attempt::{GiveUp, Promise};
use super::holder::HeldSession;
use crate::direct::Token;
use crate::session::Session;
use crate::wire::Direct;

/// What a client gets of a node.
#[derive(Debug)]
pub enum Acquired {
    /// A session through NATS.
    Session(Session),
    /// The permission to connect directly.
    Grant(Grant),
}

impl Acquired {
    /// A session through NATS in both cases.
    ///
    /// ```
    /// # async fn example(fleet: &taskfork_nats::Fleet) -> Result<(), taskfork_nats::Error> {
    /// use taskfork_nats::{Holder, Route};
    ///
    /// let session = fleet.acquire_by(&Holder::new(), &[], None, None, Route::Relayed).await?.into_session();
    /// # drop(session);
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_session(self) -> Session {
        match self {
            Self::Session(session) => session,
            Self::Grant(grant) => grant.into_session(),
        }
    }
}

/// The permission to connect to a node directly, once.
///
/// The node keeps a place for the client until the grant is used, is no longer valid, or is dropped.
///
/// ```no_run
/// # async fn example(fleet: &taskfork_nats::Fleet) -> Result<(), taskfork_nats::Error> {
/// use taskfork_nats::{Acquired, Holder, Route};
///
/// # async fn connect(_: &str, _: [u8; 32], _: [u8; 24]) -> bool { true }
/// let session = match fleet.acquire_by(&Holder::new(), &[], None, None, Route::Auto).await? {
///     Acquired::Session(session) => session,
///     // Connects by TLS, and sends the preamble.
///     Acquired::Grant(grant)
///         if connect(grant.address(), grant.fingerprint(), grant.token().preamble()).await =>
///     {
///         let _held = grant.used();
///         // Uses the connection here.
///         return Ok(());
///     }
///     // Nothing was sent, so the place is still there.
///     Acquired::Grant(grant) => grant.into_session(),
/// };
/// # drop(session);
/// # Ok(())
/// # }
/// ```
pub struct Grant {
    promise: Box<Promise>,
    give_up: Box<GiveUp>,
    address: String,
    fingerprint: [u8; 32],
    token: Token,
    until: Instant,
}

impl Grant {
    /// What a node has promised. Its digits were checked when they were read.
    pub(super) fn acquired(promise: Promise, direct: Direct, until: Instant) -> Acquired {
        let (Some(fingerprint), Some(token)) = (direct.fingerprint(), direct.token()) else {
            return Acquired::Session(promise.session());
        };
        Acquired::Grant(Self {
            give_up: Box::new(promise.give_up()),
            promise: Box::new(promise),
            address: direct.address,
            fingerprint,
            token: Token(token),
            until,
        })
    }

    /// The name of the node.
    pub fn node(&self) -> &str {
        &self.promise.node
    }

    /// Where to connect: `HOST:PORT`. TLS 1.3 is spoken there, with the protocol name `taskfork` (ALPN).
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The SHA-256 of the certificate (DER) that must be shown there. No other is to be trusted, and nothing else
    /// of it matters, as its name or its time.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// What admits the connection. Its preamble is what the client sends first.
    pub fn token(&self) -> Token {
        self.token
    }

    /// How long the token is still valid.
    pub fn valid_for(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Says that the token was used, so that the place belongs to the direct connection now. Before that, dropping the grant
    /// gives the place up. What this returns counts as a session of the holder: keep it as long as the connection lasts.
    pub fn used(self) -> HeldSession {
        self.give_up.disarm();
        self.promise.hold()
    }

    /// Tells the node that the place is not wanted, before all that is asked for next. Dropping the grant does the same,
    /// but some time later. If this is cancelled, the grant is dropped.
    ///
    /// ```
    /// # async fn example(grant: taskfork_nats::Grant) {
    /// grant.decline().await;
    /// # }
    /// ```
    pub async fn decline(self) {
        self.give_up.tell().await;
    }

    /// A session with the same node through NATS instead. The place is still the same, so this waits for nothing.
    ///
    /// The place may be gone if the token was sent or is no longer valid, or if the node drains. Then the session ends, and
    /// it is better to acquire another.
    pub fn into_session(self) -> Session {
        self.give_up.disarm();
        self.promise.session()
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("node", &self.promise.node)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
