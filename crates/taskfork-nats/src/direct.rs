//! Direct connections: a node lets a client connect to its machine by TLS, without NATS in between.
//!
//! The node's answer says where, how to recognize it, and has a token that admits one connection. The
//! crate does none of the TLS: whoever listens there, a gateway, gives the tokens that it gets to
//! [`Direct::admit`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Error;
use crate::node::{Holder, SessionUsage};
use crate::token;
use crate::wire;

/// What a client sends first through a direct connection, before its token.
const MAGIC: &[u8; 8] = b"tf-token";

/// How long a token admits a connection.
const VALID: Duration = Duration::from_secs(10);

/// 128 random bits that admit one direct connection. Its `Debug` does not show them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub(crate) [u8; 16]);

impl Token {
    /// The bytes of [`preamble`](Self::preamble).
    pub const PREAMBLE: usize = MAGIC.len() + 16;

    /// What the client sends through the TLS connection before anything else.
    ///
    /// ```
    /// # fn example(grant: &taskfork_nats::Grant) {
    /// assert!(grant.token().preamble().starts_with(b"tf-token"));
    /// # }
    /// ```
    pub fn preamble(&self) -> [u8; Self::PREAMBLE] {
        let mut preamble = [0; Self::PREAMBLE];
        preamble[..MAGIC.len()].copy_from_slice(MAGIC);
        preamble[MAGIC.len()..].copy_from_slice(&self.0);
        preamble
    }

    /// Whether these bytes, at least one, are the beginning of a preamble, or begin with one. Otherwise the
    /// connection has no token.
    ///
    /// ```
    /// use taskfork_nats::Token;
    ///
    /// assert!(Token::begins(b"tf-tok") && !Token::begins(b"taskfork"));
    /// ```
    pub fn begins(received: &[u8]) -> bool {
        let compared = received.len().min(MAGIC.len());
        received[..compared] == MAGIC[..compared]
    }

    /// Reads a preamble at the beginning of what was received. `None` if it is incomplete, or none.
    ///
    /// ```
    /// use taskfork_nats::Token;
    ///
    /// assert!(Token::read(b"tf-token and 16 random.").is_none());
    /// assert!(Token::read(b"tf-token and 16 random. And more.").is_some());
    /// ```
    pub fn read(received: &[u8]) -> Option<Self> {
        let bytes = received.strip_prefix(MAGIC)?.first_chunk()?;
        Some(Self(*bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Where the clients of a node connect directly, and the tokens that admit them. Clones share both.
///
/// A node that has one answers clients that want a direct connection with a token instead of a
/// session. The token counts as a session of the node until it is used or is no longer valid, and then
/// until the connection that it has admitted ends.
///
/// ```
/// use taskfork_nats::{Direct, Token};
///
/// # fn main() -> Result<(), taskfork_nats::Error> {
/// let direct = Direct::new("node-1.example:7000")?;
/// // The SHA-256 of the certificate that the TLS listener shows.
/// direct.set_fingerprint([7; 32]);
///
/// // Where a connection has come with a token that was not given:
/// let token = Token::read(b"tf-token0123456789abcdef").unwrap();
/// assert!(direct.admit(token).is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Direct {
    address: String,
    valid: Duration,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    fingerprint: Option<[u8; 32]>,
    tokens: HashMap<Token, Given>,
    /// The connections that were admitted and, at the last look, had not ended.
    connections: Vec<Connection>,
}

/// A token that was given and not used.
#[derive(Debug)]
struct Given {
    holder: Holder,
    usage: SessionUsage,
    until: Instant,
    /// Tells the node that the token was used.
    used: oneshot::Sender<Connection>,
    /// Tells the node whether its server can be reached.
    reached: mpsc::Sender<bool>,
}

/// A direct connection that was admitted. It counts as a session of the node until this is dropped.
///
/// ```
/// # fn example(direct: &taskfork_nats::Direct, token: taskfork_nats::Token) {
/// let Some(admission) = direct.admit(token) else { return };
/// println!("a direct connection of {}", admission.client());
/// # }
/// ```
#[derive(Debug)]
pub struct Admission {
    connection: Connection,
    reached: mpsc::Sender<bool>,
    /// Dropping it tells the node that the connection has ended.
    _ended: watch::Sender<()>,
}

impl Admission {
    /// The name that the client has given itself. It proves nothing.
    pub fn client(&self) -> &str {
        &self.connection.holder.client
    }

    /// Where whoever relays the connection says whether it is in use, and learns whether it is to leave because clients wait.
    ///
    /// ```no_run
    /// # fn example(admission: &taskfork_nats::Admission) {
    /// admission.usage().set_used(false);
    /// # }
    /// ```
    pub fn usage(&self) -> &SessionUsage {
        &self.connection.usage
    }

    /// Tells the node whether its server could be reached for this connection. A node whose server cannot be reached takes no
    /// sessions for a while, so that other nodes get them.
    ///
    /// ```no_run
    /// # async fn example(admission: taskfork_nats::Admission) {
    /// let stream = tokio::net::UnixStream::connect("/run/resize.sock").await;
    /// admission.server_reached(stream.is_ok());
    /// # }
    /// ```
    pub fn server_reached(&self, is_reached: bool) {
        // If many connect at once, the node need not hear of all.
        let _ = self.reached.try_send(is_reached);
    }
}

impl Direct {
    /// With the address as clients reach it: `HOST:PORT`, at most 260 bytes. Nothing is given
    /// to clients before [`set_fingerprint`](Self::set_fingerprint).
    ///
    /// # Errors
    ///
    /// If the address is not one.
    pub fn new(address: impl Into<String>) -> Result<Self, Error> {
        let address = address.into();
        match wire::check_address(&address) {
            Ok(()) => Ok(Self { address, valid: VALID, table: Arc::default() }),
            Err(why) => Err(Error::DirectAddress { address, why }),
        }
    }

    /// How long a token is valid. Defaults to 10 seconds; values below 1 second or above 10
    /// minutes are taken as these.
    ///
    /// ```
    /// # fn main() -> Result<(), taskfork_nats::Error> {
    /// use std::time::Duration;
    ///
    /// let direct = taskfork_nats::Direct::new("10.0.0.7:7000")?.valid(Duration::from_secs(3));
    /// # Ok(())
    /// # }
    /// ```
    pub fn valid(self, time: Duration) -> Self {
        Self { valid: time.clamp(*wire::TOKEN_TIMES.start(), *wire::TOKEN_TIMES.end()), ..self }
    }

    /// The SHA-256 of the certificate (DER) that is shown at the address from now on. Clients trust this
    /// certificate and no other.
    pub fn set_fingerprint(&self, sha256: [u8; 32]) {
        self.lock().fingerprint = Some(sha256);
    }

    /// Uses a token. `None` if it was never given, was used before, or is no longer valid.
    pub fn admit(&self, token: Token) -> Option<Admission> {
        let mut table = self.lock();
        let Given { holder, usage, until, used, reached } = table.tokens.remove(&token)?;
        if until < Instant::now() {
            return None;
        }
        let (ended, over) = watch::channel(());
        // The node has ended if it does not take it.
        let connection = Connection { holder, usage, ended: over };
        used.send(connection.clone()).ok()?;
        table.connections.retain(Connection::is_open);
        table.connections.push(connection.clone());
        Some(Admission { connection, reached, _ended: ended })
    }

    /// Whether this is the address.
    pub(crate) fn is_at(&self, address: &str) -> bool {
        self.address == address
    }

    /// The connections that go on. A node that starts has those of its predecessor: they do not need NATS.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        let mut table = self.lock();
        table.connections.retain(Connection::is_open);
        table.connections.clone()
    }

    /// Gives a token. `None` before there is a fingerprint. `reached` gets whether the server could be reached.
    pub(crate) fn give(
        &self,
        holder: Holder,
        usage: &SessionUsage,
        reached: &mpsc::Sender<bool>,
    ) -> Result<Option<Offered>, Error> {
        let token = Token(token::bytes()?);
        let (used, admitted) = oneshot::channel();
        let mut table = self.lock();
        let Some(fingerprint) = table.fingerprint else { return Ok(None) };
        let until = Instant::now() + self.valid;
        let (usage, reached) = (usage.clone(), reached.clone());
        table.tokens.insert(token, Given { holder, usage, until, used, reached });
        drop(table);
        let grant = wire::Direct {
            address: self.address.clone(),
            certificate: token::hex(&fingerprint),
            token: token::hex(&token.0),
            valid_ms: u32::try_from(self.valid.as_millis()).unwrap_or(u32::MAX),
        };
        Ok(Some(Offered { direct: self.clone(), token, grant, admitted, valid: self.valid }))
    }

    /// Makes all tokens invalid that were not used.
    pub(crate) fn withdraw_all(&self) {
        self.lock().tokens.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change is one call of the map, so it is whole even after a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token that a node has given. Dropping this makes it invalid.
#[derive(Debug)]
pub(crate) struct Offered {
    direct: Direct,
    token: Token,
    pub(crate) grant: wire::Direct,
    admitted: oneshot::Receiver<Connection>,
    valid: Duration,
}

/// A direct connection as its node sees it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    holder: Holder,
    usage: SessionUsage,
    /// Without a sender when it has ended.
    ended: watch::Receiver<()>,
}

impl Connection {
    /// Waits until the connection has ended.
    pub(crate) async fn ended(mut self) {
        // Nothing is ever sent: the other end is dropped.
        let _ = self.ended.changed().await;
    }

    /// Whose connection it is.
    pub(crate) fn holder(&self) -> &Holder {
        &self.holder
    }

    pub(crate) fn usage(&self) -> &SessionUsage {
        &self.usage
    }

    fn is_open(&self) -> bool {
        self.ended.has_changed().is_ok()
    }
}

impl Offered {
    /// Waits until the token was used. `None` if it is no longer valid.
    pub(crate) async fn used(&mut self) -> Option<Connection> {
        match tokio::time::timeout(self.valid, &mut self.admitted).await {
            Ok(used) => used.ok(),
            Err(_) => self.withdraw(),
        }
    }

    /// Makes the token invalid. The connection if it was used before.
    pub(crate) fn withdraw(&mut self) -> Option<Connection> {
        self.direct.lock().tokens.remove(&self.token);
        self.admitted.try_recv().ok()
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.direct.lock().tokens.remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct() -> Direct {
        let direct = Direct::new("localhost:7000").unwrap();
        direct.set_fingerprint([1; 32]);
        direct
    }

    fn holder() -> Holder {
        Holder { client: "client".into(), number: 1 }
    }

    fn given(direct: &Direct) -> Offered {
        direct.give(holder(), &SessionUsage::new(), &mpsc::channel(1).0).unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_token_admits_once_and_its_node_sees_the_end() {
        let direct = direct();
        let (mut one, other) = (given(&direct), given(&direct));
        assert_ne!(one.token, other.token);
        let admission = direct.admit(one.token).unwrap();
        assert_eq!(admission.client(), "client");
        assert!(direct.admit(one.token).is_none(), "it was used");
        let mut ended = Box::pin(one.used().await.unwrap().ended());
        assert!(futures_util::FutureExt::now_or_never(&mut ended).is_none());
        drop(admission);
        ended.await;
        assert!(direct.admit(other.token).is_some(), "the other one is still valid");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_invalid_after_its_time() {
        let direct = direct();
        let mut offered = given(&direct);
        assert!(offered.used().await.is_none());
        assert!(direct.admit(offered.token).is_none());
        assert!(direct.lock().tokens.is_empty());
    }

    #[test]
    fn a_node_that_looks_too_late_does_not_make_a_token_valid_for_longer() {
        let direct = direct();
        let offered = given(&direct);
        direct.lock().tokens.get_mut(&offered.token).unwrap().until =
            Instant::now() - Duration::from_millis(1);
        assert!(direct.admit(offered.token).is_none());
    }

    #[test]
    fn what_a_node_no_longer_wants_is_invalid() {
        let direct = direct();
        let (mut withdrawn, dropped, kept) = (given(&direct), given(&direct), given(&direct));
        assert!(withdrawn.withdraw().is_none());
        let token = dropped.token;
        drop(dropped);
        assert!(direct.admit(withdrawn.token).is_none() && direct.admit(token).is_none());
        direct.withdraw_all();
        assert!(direct.admit(kept.token).is_none());
    }

    #[test]
    fn a_token_that_was_used_just_before_it_is_withdrawn_is_a_connection() {
        let direct = direct();
        let mut offered = given(&direct);
        let _admission = direct.admit(offered.token).unwrap();
        assert!(offered.withdraw().is_some());
    }

    #[test]
    fn a_node_that_starts_again_has_the_connections_that_go_on() {
        let direct = direct();
        let (one, other) = (given(&direct), given(&direct));
        let admissions = [one.token, other.token].map(|token| direct.admit(token).unwrap());
        drop((one, other));
        assert_eq!(direct.connections().len(), 2);
        let [one, other] = admissions;
        drop(one);
        assert_eq!(direct.connections().len(), 1);
        drop(other);
        assert!(direct.connections().is_empty());
    }

    #[test]
    fn without_a_fingerprint_nothing_is_given() {
        let direct = Direct::new("localhost:7000").unwrap();
        assert!(
            direct.give(holder(), &SessionUsage::new(), &mpsc::channel(1).0).unwrap().is_none()
        );
    }

    #[test]
    fn a_preamble_is_read_as_it_was_written_in_any_fragments() {
        let token = Token([7; 16]);
        let sent = [&token.preamble()[..], b"taskfork"].concat();
        for received in 1..=sent.len() {
            assert!(Token::begins(&sent[..received]));
            let expected = (received >= Token::PREAMBLE).then_some(token);
            assert_eq!(Token::read(&sent[..received]), expected);
        }
        assert!(!Token::begins(b"ta") && Token::read(b"taskfork and 16 more bytes").is_none());
        assert_eq!(format!("{token:?}"), "Token");
    }

    #[test]
    fn an_address_that_is_none_says_what_is_right() {
        for address in ["", "host", ":7000", "host:0", "host:70000", "a b:1", "[::1:7"] {
            let error = Direct::new(address).unwrap_err().to_string();
            assert!(error.contains("HOST:PORT"), "{error}");
        }
        for address in ["host:1", "[::1]:7000", "10.0.0.1:65535"] {
            Direct::new(address).unwrap();
        }
    }
}
