//! Direct connections to the nodes of a service, and the way through NATS if they fail.
//!
//! With TLS 1.3 a client's handshake is complete before the gateway has looked at the client. So a direct connection is sure
//! only when the worker's hello has come. Until then nothing has been sent that could run.
//!
//! A failed direct connection alone does not say whether the path is closed: the gateway may just have ended. So its address
//! is avoided only when a worker has been reached through NATS instead.

use std::io;
use std::time::{Duration, Instant};

use taskfork_nats::{Acquired, Fleet, Grant, Route};

use super::nats::{NatsContext, relayed};
use super::{Connected, Connector, OnWait, Transport, tls, write_all};
use crate::address::nats::NatsAddress;
use crate::client::proto::handshake::HandshakeError;
use crate::error::ConnectionError;

/// How long a direct connection may take to be made.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Gets a stream to a node, directly or through NATS, for an attempt that ends at `until`. If no node has room, this calls
/// `on_wait` with the reason and waits in turn.
pub(super) async fn connect(
    nats: &NatsContext,
    address: &NatsAddress,
    connector: &Connector,
    until: Option<Instant>,
    on_wait: Option<OnWait<'_>>,
) -> io::Result<Connected> {
    let (fleet, acquired) = nats.acquire(address, nats.options.route, on_wait).await?;
    let grant = match acquired {
        Acquired::Session(session) => return Ok(relayed(session)),
        Acquired::Grant(grant) => grant,
    };
    let connecting =
        tls::connect_pinned(connector.tls.as_ref(), grant.address(), grant.fingerprint());
    let limit = direct_limit(grant.valid_for(), until, Instant::now());
    let connected = tokio::time::timeout(limit, connecting).await;
    let other_way =
        |way| Some(Box::new(OtherWay { nats: nats.clone(), address: address.clone(), way }));
    match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(mut stream) => {
            // If the gateway refuses, the write may fail, but the reason can still be read.
            let _ = write_all(&mut *stream, &grant.token().preamble()).await;
            Ok(Connected { stream, sent: 0, other_way: other_way(Way::Direct(grant)) })
        }
        Err(error) if nats.options.route == Route::Direct => {
            let (node, address) = (grant.node(), grant.address());
            let text = format!(
                "the node {node} cannot be reached directly at {address}: {error}; allow the way through \
                 NATS with `NatsRoute::Auto`, or correct the address that the node tells"
            );
            Err(io::Error::new(error.kind(), text))
        }
        Err(error) => {
            let failed = FailedPath::new(fleet, &grant, &error);
            // No token was sent, so the place is still there.
            let stream = relayed(grant.into_session()).stream;
            Ok(Connected { stream, sent: 0, other_way: other_way(Way::Promised(failed)) })
        }
    }
}

/// How long a direct connection may take. An attempt that has a time limit keeps half of what is left of it for the way
/// through NATS.
fn direct_limit(valid_for: Duration, until: Option<Instant>, now: Instant) -> Duration {
    // A time that is over does not hold: a client that has waited for room may go on.
    let left =
        until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero());
    valid_for.min(DIRECT_TIMEOUT).min(left.map_or(DIRECT_TIMEOUT, |left| left / 2))
}

/// What follows when a worker's hello has come, or does not come. Dropping it tells the node that the client has gone.
#[derive(Debug)]
pub(crate) struct OtherWay {
    nats: NatsContext,
    address: NatsAddress,
    way: Way,
}

/// The way that is tried.
#[derive(Debug)]
enum Way {
    /// A direct connection. The place is the connection's if the gateway has taken the token. Otherwise this keeps it.
    Direct(Grant),
    /// The session that the node of a direct connection has promised, because that connection could not be made.
    Promised(FailedPath),
    /// Another session through NATS, because the direct connection is of no use to this client.
    Other(FailedPath),
}

impl OtherWay {
    /// The worker's hello has come through this stream.
    pub(crate) fn leave(self, stream: &mut dyn Transport) {
        match self.way {
            Way::Direct(grant) => stream.hold(grant.used()),
            Way::Promised(failed) | Way::Other(failed) => failed.avoid(),
        }
    }

    /// Goes on in another way because of this error, if there is one. Nothing has run, since only the client's hello was
    /// sent. A client that wants a direct connection only gets the error.
    pub(crate) async fn take(
        self,
        error: HandshakeError,
        on_wait: Option<OnWait<'_>>,
    ) -> Result<Connected, ConnectionError> {
        let Self { nats, address, way } = self;
        let grant = match way {
            Way::Direct(grant) => grant,
            // The node has ended, or its place is gone. Another node may have one.
            Way::Promised(_) if is_end(&error) => {
                let acquired = nats.acquire(&address, Route::Relayed, on_wait).await;
                let (_, acquired) = acquired.map_err(ConnectionError::system)?;
                return Ok(relayed(acquired.into_session()));
            }
            Way::Promised(_) | Way::Other(_) => return Err(error.into()),
        };
        let (node, direct) = (grant.node().to_owned(), grant.address().to_owned());
        // Told first: the place that it frees may be the only one.
        grant.decline().await;
        // A worker that has answered was reached, and others answer the same.
        if matches!(error, HandshakeError::WrongInterface(_) | HandshakeError::Incompatible(_)) {
            return Err(error.into());
        }
        if nats.options.route == Route::Direct {
            let detail = format!("so says the node {node}, connected directly at {direct}");
            return Err(ConnectionError::from(error).with_detail(&detail));
        }
        tracing::debug!(node, direct, "a direct connection has failed: {error}");
        let acquired = nats.acquire(&address, Route::Relayed, on_wait).await;
        let (fleet, acquired) = acquired.map_err(ConnectionError::system)?;
        let stream = relayed(acquired.into_session()).stream;
        let failed = is_lasting(&error).then(|| FailedPath {
            fleet,
            node,
            direct,
            error: error.to_string(),
        });
        let other_way =
            failed.map(|failed| Box::new(Self { nats, address, way: Way::Other(failed) }));
        Ok(Connected { stream, sent: 0, other_way })
    }
}

/// Whether a connection has ended without an answer.
fn is_end(error: &HandshakeError) -> bool {
    matches!(error, HandshakeError::Closed | HandshakeError::Io(_))
}

/// Whether the gateway would refuse this client again: by an alert of TLS, or by a refusal that is not one of this moment. Behind
/// the handshake the path is known to be open.
fn is_lasting(error: &HandshakeError) -> bool {
    match error {
        HandshakeError::Refused(_) => true,
        HandshakeError::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// A direct connection that has failed.
#[derive(Debug)]
struct FailedPath {
    fleet: Fleet,
    node: String,
    direct: String,
    error: String,
}

impl FailedPath {
    fn new(fleet: Fleet, grant: &Grant, error: &io::Error) -> Self {
        let (node, direct) = (grant.node().to_owned(), grant.address().to_owned());
        Self { fleet, node, direct, error: error.to_string() }
    }

    /// Does not try the address again for a while.
    fn avoid(self) {
        let Self { fleet, node, direct, error } = self;
        if fleet.avoid(&direct) {
            tracing::warn!(
                "the node {node} cannot be reached directly at {direct}, so its sessions go through NATS: {error}"
            );
        } else {
            tracing::debug!(node, direct, "cannot connect directly: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WireError;

    #[test]
    fn half_of_an_attempt_is_left_for_the_way_through_nats() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let limit = |valid, left: u32| direct_limit(valid * second, Some(now + left * second), now);
        assert_eq!(limit(10, 1), second / 2);
        assert_eq!(limit(10, 10), DIRECT_TIMEOUT);
        assert_eq!(limit(1, 10), second);
        // The client has waited for room, or has no limit.
        assert_eq!(limit(10, 0), DIRECT_TIMEOUT);
        assert_eq!(direct_limit(10 * second, Some(now), now + second), DIRECT_TIMEOUT);
        assert_eq!(direct_limit(10 * second, None, now), DIRECT_TIMEOUT);
    }

    #[test]
    fn only_a_refusal_that_stays_is_a_reason_to_avoid_a_gateway_that_was_reached() {
        let alert = io::Error::new(io::ErrorKind::InvalidData, "a certificate is wanted");
        let text = || "why".to_owned();
        for error in [HandshakeError::Refused(text()), HandshakeError::Io(alert)] {
            assert!(is_lasting(&error), "{error:?}");
        }
        for error in [
            HandshakeError::Closed,
            HandshakeError::Io(io::ErrorKind::TimedOut.into()),
            HandshakeError::Wire(WireError::Malformed(text())),
            HandshakeError::Incompatible(text()),
            HandshakeError::WrongInterface(text()),
            HandshakeError::RefusedNow(text()),
            HandshakeError::ServerBusy(text()),
        ] {
            assert!(!is_lasting(&error), "{error:?}");
        }
    }
}
