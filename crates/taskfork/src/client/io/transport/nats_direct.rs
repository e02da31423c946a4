//! Direct connections to the nodes of a service, and the way through NATS if they fail.
//!
//! With TLS 1.3 a client's handshake is complete before the gateway has looked at the client. So a direct connection is sure
//! only when the worker's hello has come. Until then nothing has been sent that could run.

use std::io;
use std::time::Duration;

use taskfork_nats::{Acquired, Grant, Route};

use super::nats::{NatsContext, relayed};
use super::{Connected, Connector, OnWait, tls, write_all};
use crate::address::nats::NatsAddress;
use crate::client::proto::handshake::HandshakeError;
use crate::error::ConnectionError;

/// How long a direct connection may take to be made.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Gets a stream to a node, directly or through NATS. If no node has room, this calls `on_wait` with the reason and waits in
/// turn.
pub(super) async fn connect(
    nats: &NatsContext,
    address: &NatsAddress,
    connector: &Connector,
    on_wait: Option<OnWait<'_>>,
) -> io::Result<Connected> {
    let grant = match nats.acquire(address, nats.options.route, on_wait).await? {
        Acquired::Session(session) => return Ok(relayed(session)),
        Acquired::Grant(grant) => grant,
    };
    // The attempt needs time for the way through NATS too.
    let attempt = nats.options.answer_timeout.unwrap_or(DIRECT_TIMEOUT);
    let limit = grant.valid_for().min(DIRECT_TIMEOUT).min(attempt);
    let connecting =
        tls::connect_pinned(connector.tls.as_ref(), grant.address(), grant.fingerprint());
    let connected = tokio::time::timeout(limit, connecting).await;
    match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(mut stream) => {
            // If the gateway refuses, the write may fail, but the reason can still be read.
            let _ = write_all(&mut *stream, &grant.token().preamble()).await;
            let other_way = OtherWay { nats: nats.clone(), address: address.clone(), grant };
            Ok(Connected { stream, sent: 0, other_way: Some(Box::new(other_way)) })
        }
        Err(error) if nats.options.route == Route::Direct => {
            let (node, address) = (grant.node(), grant.address());
            let text = format!(
                "the node {node} cannot be reached directly at {address}: {error}; allow the way through \
                 NATS with the route Auto, or correct the address that the node tells"
            );
            Err(io::Error::new(error.kind(), text))
        }
        Err(error) => {
            avoid(&grant, &error);
            // No token was sent, so the place is still there.
            Ok(relayed(grant.into_session()))
        }
    }
}

/// The way through NATS, if a direct connection ends before the worker's hello. Dropping it tells the node that the client has
/// gone.
#[derive(Debug)]
pub(crate) struct OtherWay {
    nats: NatsContext,
    address: NatsAddress,
    /// The place is the connection's if the gateway has taken the token. Otherwise this keeps it.
    grant: Grant,
}

impl OtherWay {
    /// It is not needed: the worker's hello has come.
    pub(crate) fn leave(self) {
        self.grant.used();
    }

    /// Takes it because of this error. Nothing has run, since only the client's hello was sent. A client that wants a direct
    /// connection only gets the error.
    pub(crate) async fn take(
        self,
        error: HandshakeError,
        on_wait: Option<OnWait<'_>>,
    ) -> Result<Connected, ConnectionError> {
        let Self { nats, address, grant } = self;
        // A worker that has answered was reached, and others answer the same.
        let is_final =
            matches!(error, HandshakeError::WrongInterface(_) | HandshakeError::Incompatible(_));
        let is_lasting = !is_final && !matches!(error, HandshakeError::RefusedNow(_));
        let (node, direct) = (grant.node().to_owned(), grant.address().to_owned());
        if is_lasting && nats.options.route != Route::Direct {
            avoid(&grant, &error);
        }
        // Told first: the place that it frees may be the only one.
        grant.decline().await;
        if is_final {
            return Err(error.into());
        }
        if nats.options.route == Route::Direct {
            let detail = format!("so says the node {node}, connected directly at {direct}");
            return Err(ConnectionError::from(error).with_detail(&detail));
        }
        tracing::debug!(node, direct, "a direct connection has failed: {error}");
        let acquired = nats.acquire(&address, Route::Relayed, on_wait).await;
        Ok(relayed(acquired.map_err(ConnectionError::system)?.into_session()))
    }
}

/// Does not try this address again for a while.
fn avoid(grant: &Grant, error: &dyn std::fmt::Display) {
    let (node, address) = (grant.node(), grant.address());
    if grant.avoid() {
        tracing::warn!(
            "the node {node} cannot be reached directly at {address}, so its sessions go through NATS: {error}"
        );
    } else {
        tracing::debug!(node, address, "cannot connect directly: {error}");
    }
}
