//! Nodes, servers and names that fail.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use taskfork_nats::async_nats::ConnectOptions;
use taskfork_nats::{Error, Fleet, FleetOptions, Node, Session, SessionError};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::backend::{Backend, HEARTBEAT, LONG, assert_echoes, fleet, session_error};
use crate::round_trip::round_trip;
use crate::server::NatsServer;

/// A node as a process. It is killed with this value.
struct NodeProcess(Child);

impl NodeProcess {
    fn start(server: &NatsServer, backend: &Backend) -> Self {
        let mut path = std::env::current_exe().unwrap();
        path.pop();
        path.pop();
        path.push("examples/node");
        assert!(path.is_file(), "run `cargo build -p taskfork-nats --example node` first");
        let mut child = Command::new(path)
            .args([&server.url(), "s", "process"])
            .arg(backend.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(name).arg(self.0.id().to_string()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn assert_node_lost(session: &mut Session, name: &str) {
    let error = timeout(LONG, session.read(&mut [0])).await.unwrap().unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    match session_error(&error) {
        SessionError::NodeLost { node, last_contact } => {
            assert_eq!(node, name);
            assert!(last_contact >= 2 * HEARTBEAT, "{last_contact:?}");
        }
        other => panic!("{other}"),
    }
    assert_eq!(session.error(), Some(session_error(&error)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_is_lost() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let process = NodeProcess::start(&server, &backend);
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;

    process.signal("-KILL");

    assert_node_lost(&mut session, "process").await;
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_is_lost_and_does_not_keep_others_from_being_found() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let process = NodeProcess::start(&server, &backend);
    let fleet = fleet(&server, "s").await;
    let mut session = fleet.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;

    process.signal("-STOP");

    assert_node_lost(&mut session, "process").await;
    // NATS still sends requests to the stopped node too.
    let _node = backend.node("s", "other", 100).start(&server.url()).await.unwrap();
    let options = FleetOptions::new().answer_timeout(LONG);
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();
    for _ in 0..6 {
        let mut session = fleet.acquire(&[], None).await.unwrap();
        assert_eq!(session.peer(), "other");
        assert_echoes(&mut session).await;
    }

    // Once it runs again, it learns that its session is over.
    process.signal("-CONT");
    drop(fleet);
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_runtime_has_gone_is_lost() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let (url, path) = (server.url(), backend.path().to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let starting = runtime.spawn(async move {
        let connect = move |_| UnixStream::connect(path.clone());
        Node::builder("s", "n", connect).heartbeat(HEARTBEAT).start(&url).await.unwrap()
    });
    let node = starting.await.unwrap();
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;

    // All tasks of the node end at once, so that none can say so.
    runtime.shutdown_background();

    assert_node_lost(&mut session, "n").await;
    drop(node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_node_ends_its_sessions_at_once() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).heartbeat(LONG).start(&server.url()).await.unwrap();
    let options = FleetOptions::new().heartbeat(LONG);
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();
    let mut session = fleet.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;

    drop(node);

    assert_eq!(timeout(LONG, session.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_client_frees_its_session() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let url = server.url();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let connecting = runtime.spawn(async move {
        let fleet = Fleet::connect(&url, "s", FleetOptions::new()).await.unwrap();
        fleet.acquire(&[], None).await.unwrap()
    });
    let session = connecting.await.unwrap();

    runtime.shutdown_background();

    timeout(LONG, node.wait_for_free(1)).await.unwrap();
    backend.wait_until_idle().await;
    drop(session);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_server_sessions_end_or_go_on_and_new_ones_begin() {
    let mut server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 2).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    let mut session = fleet.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;

    server.kill();
    // Nothing gets through, so both sides give up.
    assert_node_lost(&mut session, "n").await;
    drop(session);
    timeout(LONG, node.wait_for_free(2)).await.unwrap();
    let error = fleet.acquire(&[], None).await.unwrap_err();
    assert!(error.is_temporary(), "{error}");
    server.start_again();

    let reconnected = timeout(LONG, async {
        loop {
            match fleet.acquire_within(&[], None, LONG).await {
                Ok(session) => break session,
                Err(error) => assert!(error.is_temporary(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_echoes(&mut reconnected.await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_drains_at_sigterm() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let mut process = NodeProcess::start(&server, &backend);
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;

    process.signal("-TERM");
    assert_echoes(&mut session).await;
    drop(session);

    let status = tokio::task::spawn_blocking(move || process.0.wait().unwrap());
    assert!(timeout(LONG, status).await.unwrap().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_server_is_not_there_refuses() {
    let server = NatsServer::start();
    let connect = |_| UnixStream::connect("/nowhere/socket");
    let _node = Node::builder("s", "n", connect).start(&server.url()).await.unwrap();

    let error = fleet(&server, "s").await.acquire(&[], None).await.unwrap_err();

    assert!(matches!(error, Error::Refused { .. }) && error.is_temporary(), "{error}");
    let text = error.to_string();
    assert!(
        text.starts_with("the node n refused a session: its server cannot be reached"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_with_the_same_name_does_not_start() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let first = backend.node("s", "n", 1).start(&server.url()).await.unwrap();

    let second = backend.node("s", "n", 1).start(&server.url()).await.unwrap_err();

    assert!(matches!(second, Error::NodeNameInUse { .. }), "{second}");
    assert!(
        second.to_string().contains("another node of the service s has the name n"),
        "{second}"
    );
    // Another service, another node and a successor are possible.
    let _other = backend.node("t", "n", 1).start(&server.url()).await.unwrap();
    let _third = backend.node("s", "m", 1).start(&server.url()).await.unwrap();
    first.drain(Duration::ZERO).await;
    let _successor = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_the_same_name_may_be_far_away() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let by_hand = server.client().await;
    let mut asked = by_hand.subscribe("s.node.n").await.unwrap();
    round_trip(&by_hand).await;
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            tokio::time::sleep(Duration::from_millis(300)).await;
            by_hand.publish(message.reply.unwrap(), "".into()).await.unwrap();
        }
    });

    let node = backend.node("s", "n", 1).start(&server.url()).await;

    assert!(matches!(node, Err(Error::NodeNameInUse { .. })), "{node:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_nodes_that_start_together_one_gets_the_name() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let url = server.url();
    let start = || backend.node("s", "n", 1).start(&url);

    let (a, b, c) = tokio::join!(start(), start(), start());

    let results = [a, b, c];
    let started = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(started, 1, "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_names_are_errors() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    for (service, node) in
        [("a.b", "n"), ("", "n"), ("a b", "n"), ("s", "a.b"), ("s", ""), ("s", "*")]
    {
        let error = backend.node(service, node, 1).start(&server.url()).await.unwrap_err();
        assert!(matches!(error, Error::InvalidName { .. }), "{service:?} {node:?}: {error}");
    }
    for service in ["a.b", "", "a b", ">"] {
        let fleet = Fleet::connect(&server.url(), service, FleetOptions::new()).await;
        let error = fleet.unwrap_err();
        assert!(matches!(error, Error::InvalidName { .. }), "{service:?}: {error}");
    }
    let none = backend.node("s", "n", 0).start(&server.url()).await.unwrap_err();
    assert!(matches!(none, Error::NoSessions), "{none}");
    let version = backend.node("s", "n", 1).version("one").start(&server.url()).await;
    assert!(version.unwrap_err().to_string().contains("1.2.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_is_an_error_that_names_the_address() {
    let mut server = NatsServer::start();
    server.kill();

    let fleet = Fleet::connect(&server.url(), "s", FleetOptions::new()).await;

    let error = fleet.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&server.url()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_in_the_address_are_used() {
    let server = NatsServer::with_config("authorization { user: u, password: \"p@ss\" }\n");
    let backend = Backend::echo();
    let url = format!("nats://u:p%40ss@127.0.0.1:{}", server.port);
    let _node = backend.node("s", "n", 1).start(&url).await.unwrap();
    let server = NatsServer::with_config("authorization { token: t }\n");
    let url = format!("nats://t@127.0.0.1:{}", server.port);
    let _node = backend.node("s", "n", 1).start(&url).await.unwrap();
}

#[tokio::test]
async fn refused_credentials_are_an_error_that_says_so() {
    let config = "authorization { user: me, password: secret }";
    let server = NatsServer::with_config(config);
    let backend = Backend::echo();
    let wrong = || ConnectOptions::with_user_and_password("me".into(), "wrong-word".into());

    let client = Fleet::connect(&server.url(), "s", FleetOptions::new().nats(wrong())).await;
    let without = Fleet::connect(&server.url(), "s", FleetOptions::new()).await;
    let node = backend.node("s", "n", 1).nats(wrong()).start(&server.url()).await;

    for error in [client.unwrap_err(), without.unwrap_err(), node.unwrap_err()] {
        assert!(matches!(error, Error::Credentials { .. }), "{error}");
        assert!(!error.to_string().contains("wrong-word"), "{error}");
    }
    let right = || ConnectOptions::with_user_and_password("me".into(), "secret".into());
    let _node = backend.node("s", "n", 1).nats(right()).start(&server.url()).await.unwrap();
    let fleet = Fleet::connect(&server.url(), "s", FleetOptions::new().nats(right())).await;
    assert_echoes(&mut fleet.unwrap().acquire(&[], None).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_limit_that_is_too_small_is_an_error() {
    let server = NatsServer::with_config("max_payload: 1000");

    let fleet = Fleet::connect(&server.url(), "s", FleetOptions::new()).await;

    let error = fleet.unwrap_err();
    assert!(matches!(error, Error::PayloadLimit { limit: 1000, needed: 1024 }), "{error}");
    assert!(error.to_string().contains("max_payload"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_not_be_asked_is_no_answer() {
    let config = "authorization { users: [ { user: a, password: a, permissions: { publish: { deny: \"s.>\" } } } ] }";
    let server = NatsServer::with_config(config);
    let nats = ConnectOptions::with_user_and_password("a".into(), "a".into());
    let options = FleetOptions::new().nats(nats).answer_timeout(Duration::from_millis(300));
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();

    let error = fleet.acquire(&[], None).await.unwrap_err();

    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    assert!(error.to_string().contains("may not publish to s.acquire.any"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_server_cannot_be_reached_does_not_try_all_the_time() {
    let server = NatsServer::start();
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let connect = move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err(io::Error::from(io::ErrorKind::ConnectionRefused)) }
    };
    let node = Node::builder("s", "n", connect).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;

    let wait = Duration::from_secs(2);
    let error = fleet.acquire_within(&[], None, wait).await.unwrap_err();

    assert!(error.is_temporary(), "{error}");
    // Pauses of 100 milliseconds and more, and some tries that were on their way together.
    let tries = tries.load(Ordering::SeqCst);
    assert!((1..=30).contains(&tries), "{tries} tries");
    node.wait_for_free(64).await;
}
