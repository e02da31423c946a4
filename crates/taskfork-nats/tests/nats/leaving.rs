//! Nodes that leave their service, also while NATS is away.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use taskfork_nats::async_nats::{ConnectOptions, Event};
use taskfork_nats::{Fleet, FleetOptions, Node, NodeBuilder};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::backend::{Backend, LONG, assert_echoes, fleet};
use crate::server::NatsServer;

/// Longer than a test may take: a node that waits for its end fails the test.
const GRACE: Duration = Duration::from_secs(3600);

/// A node that answers calls in JSON too, with heartbeats so rare that a session outlives a stopped server.
fn node(backend: &Backend) -> NodeBuilder {
    let node = backend.node("s", "n", 2).heartbeat(LONG);
    node.calls(|_, arguments: Bytes| async move { Ok(arguments) })
}

/// Asks the node to leave, and waits until it has.
async fn assert_leaves(node: Node) {
    timeout(LONG, node.drain(GRACE)).await.expect("the node waits for its grace");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_lets_sessions_end() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 2).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    let mut session = fleet.acquire(&[], None).await.unwrap();
    let draining = tokio::spawn(node.drain(LONG));

    timeout(LONG, async {
        while fleet.acquire(&[], None).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_echoes(&mut session).await;
    assert!(!draining.is_finished());
    drop(session);

    timeout(LONG, draining).await.unwrap().unwrap();
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_ends_what_is_left_after_the_grace() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 2).start(&server.url()).await.unwrap();
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();

    timeout(LONG, node.drain(Duration::from_millis(50))).await.unwrap();

    let error = timeout(LONG, session.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let text = error.to_string();
    assert_eq!(text, "the node n has ended the session: the node shuts down");
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_leaves_while_its_nats_server_is_killed() {
    let mut server = NatsServer::start();
    let backend = Backend::echo();
    let node = node(&backend).start(&server.url()).await.unwrap();

    server.kill();

    assert_leaves(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_leaves_while_its_nats_server_is_stopped() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let (lost, mut losses) = tokio::sync::mpsc::unbounded_channel();
    let options = ConnectOptions::new().ping_interval(Duration::from_millis(50));
    let node = node(&backend).nats(options).nats_events(move |event| {
        if matches!(event, Event::Disconnected) {
            let _ = lost.send(());
        }
    });
    let node = node.start(&server.url()).await.unwrap();

    server.stop();
    // It takes nothing from the node any more.
    timeout(LONG, losses.recv()).await.unwrap().unwrap();

    assert_leaves(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_waits_for_its_sessions_also_while_its_nats_server_is_stopped() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = node(&backend).start(&server.url()).await.unwrap();
    let options = FleetOptions::new().heartbeat(LONG);
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();
    let mut session = fleet.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;
    server.stop();

    let mut draining = tokio::spawn(node.drain(GRACE));

    // As long as it waits for nothing but NATS.
    let ended = timeout(Duration::from_secs(3), &mut draining).await;
    assert!(ended.is_err(), "the node has left its session");
    server.resume();
    assert_echoes(&mut session).await;
    drop(session);
    timeout(LONG, draining).await.unwrap().unwrap();
}
