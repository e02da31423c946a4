//! A NATS server, a server of workers, and nodes between them.

use std::time::Duration;

use taskfork::client::ClientBuilder;
use taskfork::error::FatalError;
use taskfork::server::ServerHandle;
use taskfork::{Client, Error, Server};
use taskfork_nats::{Node, NodeBuilder};
use tokio::net::UnixStream;

use crate::nats_server::NatsServer;
use crate::support::address_in;

/// Short, so that a test of a lost node takes little time, and long enough for a busy machine.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);

/// Longer than a test waits for something. So what happens in a test does not happen because a heartbeat is missing.
pub(crate) const SLOW: Duration = Duration::from_secs(60);

/// The service of all tests. Each has a NATS server of its own.
pub(crate) const SERVICE: &str = "work";

/// A NATS server, and a server of workers that is not yet a node.
pub(crate) struct Fleet {
    pub(crate) nats: NatsServer,
    pub(crate) server: ServerHandle,
    pub(crate) folder: tempfile::TempDir,
}

impl Fleet {
    pub(crate) fn start() -> Self {
        Self::start_with("served", "")
    }

    /// A fleet with the workers of this entry, and more configuration of the NATS server.
    pub(crate) fn start_with(entry: &str, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::spawn_with(entry, &address_in(&folder)).unwrap();
        Self { nats: NatsServer::with_config(config), server, folder }
    }

    /// A fleet with one node.
    pub(crate) async fn with_node() -> (Self, Node) {
        let fleet = Self::start();
        let node = fleet.node("one", 8).start(&fleet.nats.url()).await.unwrap();
        (fleet, node)
    }

    /// A node with this name and room for so many sessions, in this process.
    pub(crate) fn node(&self, name: &str, sessions: usize) -> NodeBuilder {
        node(name, self.socket(), sessions)
    }

    /// The path of the server's socket.
    pub(crate) fn socket(&self) -> String {
        self.server.address().path().unwrap().to_str().unwrap().to_owned()
    }

    pub(crate) fn address(&self) -> String {
        format!("{}/{SERVICE}", self.nats.url())
    }

    pub(crate) fn client_builder(&self) -> ClientBuilder {
        client_builder(&self.address())
    }

    pub(crate) fn client(&self) -> Client {
        self.client_builder().build().unwrap()
    }
}

/// A node that leads to this socket.
pub(crate) fn node(name: &str, socket: String, sessions: usize) -> NodeBuilder {
    Node::builder(SERVICE, name, move |_| UnixStream::connect(socket.clone()))
        .sessions(sessions)
        .heartbeat(HEARTBEAT)
}

pub(crate) fn client_builder(address: &str) -> ClientBuilder {
    Client::builder()
        .address(address)
        .nats_heartbeat(HEARTBEAT)
        .min_workers(0)
        .max_workers(4)
        .max_frame(256 << 20)
}

/// The reason in the error of a call that never got a worker. The client goes on trying until the time of the call is over.
pub(crate) async fn reason(client: &Client) -> String {
    crate::support::reason(client).await
}

/// The node that was lost, how long before its end it was heard, and whether the call may have run.
pub(crate) fn lost_node<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (String, Duration, bool) {
    match outcome.unwrap_err() {
        Error::Fatal {
            cause: FatalError::NodeLost { node, last_contact, .. },
            may_have_run,
            ..
        } => (node, last_contact, may_have_run),
        other => panic!("{other:?}"),
    }
}
