//! A NATS server, a server of workers, and a gateway that makes it a node.

use std::time::Duration;

use taskfork::client::ClientBuilder;
use taskfork::server::ServerHandle;
use taskfork::{Client, Server};
use taskfork_gateway::{Gateway, GatewayBuilder, NatsOptions};
use taskfork_nats::{Fleet, FleetOptions, Session};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::nats_server::NatsServer;
use crate::support::address_in;

/// The service of all tests. Each has a NATS server of its own.
pub(crate) const SERVICE: &str = "work";

/// A node of one server.
pub(crate) struct NodeServed {
    pub(crate) nats: NatsServer,
    pub(crate) server: ServerHandle,
    pub(crate) gateway: RunningNode,
    pub(crate) folder: tempfile::TempDir,
}

impl NodeServed {
    pub(crate) async fn start() -> Self {
        let (folder, nats) = (tempfile::tempdir().unwrap(), NatsServer::start());
        let server = Server::spawn_with("served", &address_in(&folder)).unwrap();
        let builder = builder(&folder, node_options(&nats, "one").sessions(4))
            // A test that needs the grace hangs.
            .shutdown_grace(Duration::from_secs(3600));
        let gateway = RunningNode::start(builder).await;
        wait_for_nodes(&nats, 1).await;
        Self { nats, server, gateway, folder }
    }

    pub(crate) fn client_builder(&self) -> ClientBuilder {
        client_builder(&self.nats)
    }

    pub(crate) fn client(&self) -> Client {
        self.client_builder().build().unwrap()
    }

    /// A session whose client does not speak the protocol by itself.
    pub(crate) async fn session(&self) -> Session {
        let fleet = fleet(&self.nats).await;
        fleet.acquire(&[], None).await.unwrap()
    }
}

pub(crate) async fn fleet(nats: &NatsServer) -> Fleet {
    Fleet::connect(&nats.url(), SERVICE, FleetOptions::new().name("stranger")).await.unwrap()
}

/// Waits until so many nodes are in the service.
pub(crate) async fn wait_for_nodes(nats: &NatsServer, count: usize) {
    let fleet = fleet(nats).await;
    while fleet.nodes().await.unwrap().len() != count {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn node_options(nats: &NatsServer, name: &str) -> NatsOptions {
    NatsOptions::new(nats.url(), SERVICE, name)
}

/// A gateway's options for the server in this folder.
pub(crate) fn builder(folder: &tempfile::TempDir, nats: NatsOptions) -> GatewayBuilder {
    Gateway::builder().server(address_in(folder)).nats(nats)
}

pub(crate) fn client_builder(nats: &NatsServer) -> ClientBuilder {
    Client::builder()
        .address(format!("{}/{SERVICE}", nats.url()))
        .name("tester")
        .min_workers(0)
        .max_workers(4)
}

/// A gateway that runs in this process.
pub(crate) struct RunningNode {
    stop: Option<oneshot::Sender<()>>,
    pub(crate) task: JoinHandle<()>,
}

impl RunningNode {
    pub(crate) async fn start(builder: GatewayBuilder) -> Self {
        let gateway = builder.bind().await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(gateway.run(async { drop(stopped.await) }));
        Self { stop: Some(stop), task }
    }

    /// Asks it to end.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }
}
