//! Being a node: joining the service as soon as the server and NATS are there, and leaving it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use taskfork::Client;
use taskfork::client::Address;
use taskfork::server::ServerStatus;
use taskfork_nats::{Direct, NodeBuilder};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::NatsOptions;
use super::calls::Calls;
use super::session::serve;
use super::status;
use crate::GatewayError;
use crate::log::LogLimit;
use crate::server;

/// The delays before the node tries again to join: the first one, the one from which on a server that is not there is
/// told, and the limit of their doubling.
const MIN_DELAY: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(5);

/// How much longer than its grace a node may take to leave.
const LEAVING: Duration = Duration::from_secs(10);

/// A node that may serve.
#[derive(Debug)]
pub(crate) struct Node {
    options: NatsOptions,
    /// The paths of the server's socket, and of its status socket.
    server: PathBuf,
    status_socket: PathBuf,
    /// How long a client may take for its first message.
    handshake_timeout: Duration,
    /// Set if clients may connect directly.
    direct: Option<Direct>,
}

/// Why a node has not joined its service.
#[derive(Debug, thiserror::Error)]
enum NotJoined {
    #[error("the server does not tell its status at {}: {error}", path.display())]
    Status { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Nats(#[from] taskfork_nats::Error),
    #[error(transparent)]
    Calls(#[from] taskfork::client::ConfigError),
}

impl Node {
    pub(crate) fn new(
        options: NatsOptions,
        server: PathBuf,
        handshake_timeout: Duration,
        direct: Option<Direct>,
    ) -> Self {
        let status_socket = options.status_socket.clone().unwrap_or_else(|| {
            let mut path = server.clone().into_os_string();
            path.push(".status");
            path.into()
        });
        Self { options, server, status_socket, handshake_timeout, direct }
    }

    /// Whether the node could join its service now, as far as NATS is concerned.
    pub(crate) async fn check(&self) -> Result<(), GatewayError> {
        Ok(self.builder(1).check(&self.options.url).await?)
    }

    /// Serves until `draining` becomes true. Then the node leaves its service, and its sessions may go on for `grace`.
    pub(crate) async fn run(self, mut draining: watch::Receiver<bool>, grace: Duration) {
        loop {
            let node = tokio::select! {
                node = self.join() => node,
                () = begins(&mut draining) => return,
            };
            tokio::select! {
                () = node.ended() => tracing::error!("the node has lost NATS, and joins again"),
                () = begins(&mut draining) => {
                    // While NATS is away, the node cannot say that it leaves, and could wait for that without limit.
                    let limit = grace.saturating_add(LEAVING);
                    if timeout(limit, node.drain(grace)).await.is_err() {
                        tracing::warn!("the node has ended without telling NATS");
                    }
                    return;
                }
            }
        }
    }

    /// Joins the service, when the server and NATS are there.
    async fn join(&self) -> taskfork_nats::Node {
        let (mut delay, mut reported) = (MIN_DELAY, String::new());
        loop {
            let not_joined = match self.try_to_join().await {
                Ok(node) => {
                    let NatsOptions { service, node: name, .. } = &self.options;
                    tracing::info!(sessions = node.free(), "the node {name} serves {service}");
                    return node;
                }
                Err(error) => error,
            };
            let error = not_joined.to_string();
            // The same trouble is told once. A server that starts beside the gateway is no trouble.
            let is_starting = matches!(not_joined, NotJoined::Status { .. }) && delay < PATIENCE;
            if error != reported && !is_starting {
                tracing::warn!("the node serves nobody yet, and tries again: {error}");
                reported = error;
            }
            sleep(delay).await;
            delay = (delay * 2).min(MAX_DELAY);
        }
    }

    async fn try_to_join(&self) -> Result<taskfork_nats::Node, NotJoined> {
        let mut methods = self.options.methods.clone();
        let (sessions, workers) = match self.options.sessions {
            Some(sessions) => (sessions, None),
            None => {
                let status = self.status().await?;
                if methods.is_empty() {
                    methods = status.methods;
                }
                (status.max_workers, Some(status.max_workers))
            }
        };
        let mut builder = self.builder(sessions).methods(methods);
        if let Some(workers) = workers {
            builder = builder.workers(workers);
        }
        let calls = Calls::new(self.client(sessions)?, self.options.call_timeout);
        let builder = builder
            .max_calls(sessions)
            // The call has the time limit, and is cancelled by it. This is for what hangs besides.
            .call_timeout(self.options.call_timeout.saturating_add(Duration::from_secs(5)))
            .calls(move |method, arguments| calls.clone().call(method, arguments));
        Ok(builder.start(&self.options.url).await?)
    }

    async fn status(&self) -> Result<ServerStatus, NotJoined> {
        let path = self.status_socket.clone();
        status::read(path.clone()).await.map_err(|error| NotJoined::Status { path, error })
    }

    /// A client of the server, for calls in JSON.
    fn client(&self, workers: usize) -> Result<Client, NotJoined> {
        let address =
            Address::unix(self.server.clone()).map_err(taskfork::client::ConfigError::from)?;
        let builder = Client::builder()
            .address(address)
            .name("calls in JSON over NATS")
            .min_workers(0)
            .max_workers(workers)
            .timeout(self.options.call_timeout)
            .relay_for(&super::calls::peer());
        Ok(builder.build()?)
    }

    fn builder(&self, sessions: usize) -> NodeBuilder {
        let NatsOptions { service, node, labels, connect, version, .. } = &self.options;
        let (path, timeout) = (self.server.clone(), self.handshake_timeout);
        let (status_socket, log) = (self.status_socket.clone(), Arc::new(LogLimit::default()));
        let mut builder =
            taskfork_nats::Node::builder(service, node, move |_| connect_to_server(path.clone()))
                .nats(connect.clone())
                .sessions(sessions)
                .labels(labels)
                .relay(move |accepted| serve(accepted, timeout, log.clone()))
                .status(move |bounds| status::details(status_socket.clone(), bounds));
        if let Some(direct) = &self.direct {
            builder = builder.direct(direct.clone());
        }
        if let Some(version) = version {
            builder = builder.version(version);
        }
        builder
    }
}

async fn connect_to_server(path: PathBuf) -> io::Result<UnixStream> {
    server::connect(&path).await.map_err(io::Error::other)
}

/// Waits until the gateway ends.
async fn begins(draining: &mut watch::Receiver<bool>) {
    let _ = draining.wait_for(|draining| *draining).await;
}
