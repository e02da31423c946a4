//! One client's connection, from its acceptance to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use taskfork::__private::relay as wire;
use taskfork_certificates::Certificates;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;

use crate::GatewayError;
use crate::builder::Options;
use crate::clients::{ClientConnection, Clients};
use crate::handshake::{Greeted, greet, refuse};
use crate::log::{LogLimit, client_event};
use crate::relay::Relay;
use crate::server;
use crate::slots::{Slot, Slots};

/// How long a client may take to read what is left for it, when nothing more can come.
pub(crate) const LAST_BYTES: Duration = Duration::from_secs(30);

/// How long the gateway waits until a client closes a connection that has ended.
const LINGER: Duration = Duration::from_secs(2);

/// How long a client may read nothing, while there is something to read, or acknowledge nothing.
const UNREAD: Duration = Duration::from_secs(120);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) certificates: Certificates,
    pub(crate) slots: Arc<Slots>,
    /// A permit for each relayed connection but those that a node counts.
    pub(crate) relays: Semaphore,
    /// Those of each client.
    pub(crate) clients: Arc<Clients>,
    pub(crate) log: LogLimit,
    /// The tokens of clients that a node sends here.
    #[cfg(feature = "nats")]
    pub(crate) direct: Option<taskfork_nats::Direct>,
}

impl Shared {
    /// Reads the certificates again. After an error nothing has changed.
    pub(crate) fn reload(&self) -> Result<(), GatewayError> {
        self.certificates.reload()?;
        #[cfg(feature = "nats")]
        self.tell_fingerprint();
        Ok(())
    }

    /// Has the node tell its clients which certificate they will see.
    #[cfg(feature = "nats")]
    pub(crate) fn tell_fingerprint(&self) {
        if let (Some(direct), Some(sha256)) = (&self.direct, self.certificates.fingerprint()) {
            direct.set_fingerprint(sha256);
        }
    }
}

/// Serves one client. `draining` becomes true when the gateway ends.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
    mut slot: Slot,
    mut draining: watch::Receiver<bool>,
) {
    prepare(&stream);
    let config = shared.certificates.config();
    let greeting = greet(
        stream,
        address,
        config,
        &shared.options.allowed_names,
        #[cfg(feature = "nats")]
        shared.direct.as_ref(),
    );
    let greeted = tokio::select! {
        greeted = greeting => greeted,
        () = slot.displaced() => {
            return client_event!(shared.log, address,
                "closed a connection whose first message was incomplete: too many others came");
        }
        () = sleep(shared.options.handshake_timeout) => {
            return client_event!(shared.log, address,
                "closed a connection whose first message did not come in time");
        }
        () = begins(&mut draining) => return,
    };
    let (refused, mut slot) = match greeted {
        Ok(greeted) => match relay(&shared, greeted, address, slot, draining).await {
            Ok(()) => return,
            Err(Busy { stream, reason, slot }) => (Err((stream, reason)), slot),
        },
        Err(refused) => (Ok(refused), slot),
    };
    let end = async {
        let refused = match refused {
            Ok(refused) => refused,
            Err((stream, reason)) => refuse(stream, wire::busy(&reason), reason).await,
        };
        let lingering = linger(refused.stream);
        if let Some(reason) = refused.reason {
            client_event!(shared.log, address, "refused a client: {reason:?}");
        }
        lingering.await;
    };
    // The client counts as one without a first message until it is gone.
    tokio::select! {
        // It may have been displaced while the gateway asked the server. It learns the reason nevertheless.
        biased;
        _ = timeout(LAST_BYTES, end) => {}
        () = slot.displaced() => {}
    }
}

/// A client that cannot be relayed now.
struct Busy {
    stream: TlsStream<TcpStream>,
    /// What it is told.
    reason: String,
    /// It keeps its place among those without a first message.
    slot: Slot,
}

/// Relays a client's connection until it ends.
async fn relay(
    shared: &Shared,
    greeted: Greeted,
    address: SocketAddr,
    slot: Slot,
    mut draining: watch::Receiver<bool>,
) -> Result<(), Busy> {
    let Greeted {
        stream,
        hello,
        rest,
        names,
        #[cfg(feature = "nats")]
        admission,
    } = greeted;
    // Its node has a place for it until this function returns, and offers no more than it has.
    #[cfg(feature = "nats")]
    let is_counted_by_node = admission.is_some();
    #[cfg(not(feature = "nats"))]
    let is_counted_by_node = false;
    let _counted = match is_counted_by_node {
        true => None,
        false => match count(shared, &names, address) {
            Ok(counted) => Some(counted),
            Err(reason) => return Err(Busy { stream, reason, slot }),
        },
    };
    let server = server::connect(&shared.options.server).await;
    #[cfg(feature = "nats")]
    if let Some(admission) = &admission {
        admission.server_reached(server.is_ok());
    }
    let server = match server {
        Ok(server) => server,
        // A client that comes back while its refusal is on its way finds the place free.
        Err(reason) => return Err(Busy { stream, reason, slot }),
    };
    drop(slot);
    #[cfg(feature = "nats")]
    let claimed = admission.as_ref().map(|admission| admission.client());
    #[cfg(not(feature = "nats"))]
    let claimed = None::<&str>;
    tracing::debug!(%address, ?names, claimed, "relays a client");
    let mut relay = Relay::new(stream, server, hello, &rest);
    #[cfg(feature = "nats")]
    let usage = admission.as_ref().map(|admission| admission.usage().clone());
    #[cfg(feature = "nats")]
    if let Some(usage) = usage.clone() {
        relay = relay.with_usage(move |is_used| usage.set_used(is_used));
    }
    let leaves = async {
        #[cfg(feature = "nats")]
        if let Some(usage) = &usage {
            return usage.leaves().await;
        }
        std::future::pending().await
    };
    let end = tokio::select! {
        end = relay.run(false) => end,
        () = begins(&mut draining) => relay.run(true).await,
        () = leaves => relay.run(true).await,
    };
    tracing::debug!(%address, ?end, "a client's connection has ended");
    if let Ok(stream) = timeout(LAST_BYTES, relay.finish(end)).await {
        linger(stream.map(|stream| stream.into_inner().0)).await;
    }
    Ok(())
}

/// Counts a connection until what is returned is dropped. The error is for the client.
fn count<'a>(
    shared: &'a Shared,
    names: &[String],
    address: SocketAddr,
) -> Result<(SemaphorePermit<'a>, ClientConnection), String> {
    let Options { max_connections, max_client_connections, .. } = shared.options;
    let permit = shared.relays.try_acquire().map_err(|_| {
        format!("the gateway relays {max_connections} connections already (`max_connections`)")
    })?;
    let counted = shared.clients.admit(names, address).ok_or_else(|| {
        format!(
            "this client has {max_client_connections} connections already (`max_client_connections`)"
        )
    })?;
    Ok((permit, counted))
}

/// Waits until the gateway ends.
async fn begins(draining: &mut watch::Receiver<bool>) {
    let _ = draining.wait_for(|draining| *draining).await;
}

/// Ends a connection so that the client can read all that was sent: closing a socket with unread bytes would reset the
/// connection, and the client would lose what it has not read.
pub(crate) async fn linger(stream: Option<TcpStream>) {
    let Some(mut stream) = stream else { return };
    let wait = async {
        // It fails if the connection is broken. Then nothing can be read either.
        let _ = stream.shutdown().await;
        let mut discarded = [0; 4096];
        while let Ok(1..) = stream.read(&mut discarded).await {}
    };
    let _ = timeout(LINGER, wait).await;
}

/// Short messages must not wait, and a client whose machine has vanished must be noticed. Not all kinds of sockets can do
/// that, and the connection works without it.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(30));
    let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10));
    let _ = sockopt::set_tcp_keepcnt(stream, 3);
    // Keepalive does not run while bytes are on their way, and a client that reads nothing would keep its worker.
    let _ = sockopt::set_tcp_user_timeout(stream, UNREAD.as_millis() as u32);
}
