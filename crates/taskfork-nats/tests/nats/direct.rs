//! Direct connections: their tokens, and the sessions that clients take instead.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use taskfork_nats::{Acquired, Direct, Fleet, Grant, Holder, Node, Route, Session};
use tokio::time::timeout;

use crate::backend::{Backend, HEARTBEAT, LONG, assert_echoes, fleet};
use crate::round_trip::round_trip;
use crate::server::NatsServer;

/// Tokens that are valid for longer than any test takes.
fn direct() -> Direct {
    let direct = Direct::new("node.example:7000").unwrap().valid(Duration::from_secs(600));
    direct.set_fingerprint([0xab; 32]);
    direct
}

async fn node(server: &NatsServer, backend: &Backend, sessions: usize, direct: &Direct) -> Node {
    let node = backend.node("s", "n", sessions).direct(direct.clone());
    node.start(&server.url()).await.unwrap()
}

async fn acquire(fleet: &Fleet, route: Route) -> Acquired {
    let acquired = fleet.acquire_by(&Holder::new(), &[], None, Some(LONG), route).await;
    acquired.unwrap()
}

async fn grant(fleet: &Fleet) -> Grant {
    match acquire(fleet, Route::Auto).await {
        Acquired::Grant(grant) => grant,
        Acquired::Session(session) => panic!("not a grant: {session:?}"),
    }
}

fn session(acquired: Acquired) -> Session {
    match acquired {
        Acquired::Session(session) => session,
        Acquired::Grant(grant) => panic!("not a session: {grant:?}"),
    }
}

/// Waits for the node's room, for no longer than a token is valid.
async fn wait_for_free(node: &Node, sessions: usize) {
    timeout(LONG, node.wait_for_free(sessions)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_connection_counts_as_a_session_until_it_ends() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let node = node(&server, &backend, 1, &direct).await;
    let fleet = fleet(&server, "s").await;

    let grant = grant(&fleet).await;
    assert_eq!((grant.node(), grant.address()), ("n", "node.example:7000"));
    assert_eq!(grant.fingerprint(), [0xab; 32]);
    assert!(grant.valid_for() > Duration::from_secs(500));
    wait_for_free(&node, 0).await;
    let token = grant.token();
    grant.used();
    let admission = direct.admit(token).unwrap();
    assert_eq!(admission.client(), "test");
    assert!(direct.admit(token).is_none(), "a token admits one connection");
    assert!(fleet.acquire(&[], None).await.unwrap_err().is_no_room());
    assert_eq!(node.free(), 0);

    drop(admission);
    wait_for_free(&node, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cannot_connect_directly_keeps_its_place() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let node = node(&server, &backend, 1, &direct).await;
    let fleet = fleet(&server, "s").await;

    let grant = grant(&fleet).await;
    let token = grant.token();
    // The node has no room for another one meanwhile.
    assert!(fleet.acquire(&[], None).await.unwrap_err().is_no_room());
    let mut session = grant.into_session();
    assert_echoes(&mut session).await;
    assert_eq!(session.peer(), "n");
    assert!(direct.admit(token).is_none(), "the client has a session");

    drop(session);
    wait_for_free(&node, 1).await;
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_is_dropped_frees_its_place_at_once() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let node = node(&server, &backend, 1, &direct).await;
    let fleet = fleet(&server, "s").await;

    let grant = grant(&fleet).await;
    let token = grant.token();
    wait_for_free(&node, 0).await;
    drop(grant);
    wait_for_free(&node, 1).await;

    assert!(direct.admit(token).is_none(), "nobody wants it any more");
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_nobody_uses_frees_its_place_after_its_time() {
    let (server, backend) = (NatsServer::start(), Backend::echo());
    let direct = direct().valid(Duration::from_secs(1));
    let node = node(&server, &backend, 1, &direct).await;
    let fleet = fleet(&server, "s").await;

    let grant = grant(&fleet).await;
    let token = grant.token();
    wait_for_free(&node, 0).await;
    // As a client that has vanished.
    grant.used();
    wait_for_free(&node, 1).await;

    assert!(direct.admit(token).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_begins_its_session_too_late_is_told() {
    let (server, backend) = (NatsServer::start(), Backend::echo());
    let direct = direct().valid(Duration::from_secs(1));
    let node = node(&server, &backend, 1, &direct).await;
    let grant = grant(&fleet(&server, "s").await).await;
    wait_for_free(&node, 0).await;
    wait_for_free(&node, 1).await;
    let error = end(grant.into_session()).await;
    assert!(error.contains("as long as its token was valid"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_what_it_asks_for() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let _node = node(&server, &backend, 4, &direct).await;
    let fleet = fleet(&server, "s").await;
    let mut relayed = session(acquire(&fleet, Route::Relayed).await);
    assert_echoes(&mut relayed).await;
    assert!(matches!(acquire(&fleet, Route::Direct).await, Acquired::Grant(_)));

    // A request of a version that knows nothing of all this.
    let client = server.client().await;
    let offer = json!({ "window": 65536, "piece": 4096, "heartbeat_ms": 500 });
    for (route, has_direct) in [(None, false), (Some("pigeon"), false), (Some("auto"), true)] {
        let mut request = json!({ "version": 1, "offer": offer });
        if let Some(route) = route {
            request["route"] = route.into();
        }
        let answer = client.request("s.acquire.any", request.to_string().into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert!(answer["accept"]["subject"].is_string(), "{answer}");
        let direct = &answer["accept"]["direct"];
        assert_eq!(direct.is_object(), has_direct, "{answer}");
        if has_direct {
            assert_eq!(direct["certificate"].as_str(), Some(&"ab".repeat(32)[..]), "{answer}");
            assert_eq!(direct["token"].as_str().unwrap().len(), 32, "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_direct_connections_refuses_who_wants_nothing_else() {
    let (server, backend) = (NatsServer::start(), Backend::echo());
    let node = backend.node("s", "plain", 1).start(&server.url()).await.unwrap();
    // This one has no certificate yet.
    let without = Direct::new("node.example:7000").unwrap();
    let fleet = fleet(&server, "s").await;
    let refused = || async {
        let error = fleet
            .acquire_by(&Holder::new(), &[], None, None, Route::Direct)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("offers no direct connections"), "{error}");
    };

    refused().await;
    let mut relayed = session(acquire(&fleet, Route::Auto).await);
    assert_echoes(&mut relayed).await;
    drop(relayed);
    drop(node);
    let other = backend.node("s", "other", 1).direct(without);
    let _other = other.start(&server.url()).await.unwrap();
    refused().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_gets_a_direct_connection_from_a_node_that_offers_one() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    // It has room, and nothing for a client that wants a direct connection only.
    let _plain = backend.node("s", "plain", 1).start(&server.url()).await.unwrap();
    let node = node(&server, &backend, 1, &direct).await;
    let fleet = fleet(&server, "s").await;
    let admission = direct.admit(granted_by(&fleet, "n").await.token()).unwrap();

    let waiting = tokio::spawn(async move { acquire(&fleet, Route::Direct).await });
    wait_for_free(&node, 0).await;
    drop(admission);

    let acquired = timeout(LONG, waiting).await.unwrap().unwrap();
    assert!(matches!(acquired, Acquired::Grant(grant) if grant.node() == "n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_a_direct_connection_has_no_place_elsewhere() {
    let (server, backend) = (NatsServer::start(), Backend::echo());
    let _plain = backend.node("s", "plain", 1).start(&server.url()).await.unwrap();
    let client = server.client().await;
    let inboxes = ["direct", "auto"].map(|route| (route, client.new_inbox()));
    let mut answers = client.subscribe(inboxes[0].1.clone()).await.unwrap();
    let mut others = client.subscribe(inboxes[1].1.clone()).await.unwrap();
    for (route, inbox) in inboxes {
        let offer = json!({ "window": 65536, "piece": 4096, "heartbeat_ms": 500 });
        let request = json!({ "version": 1, "offer": offer, "route": route });
        client.publish_with_reply("s.wait", inbox, request.to_string().into()).await.unwrap();
    }

    // The node has read both when it answers the second one.
    timeout(LONG, others.next()).await.unwrap().unwrap();
    round_trip(&client).await;
    let none = timeout(Duration::from_millis(200), answers.next()).await;
    assert!(none.is_err(), "{none:?}");
}

/// A grant of this node, among others.
async fn granted_by(fleet: &Fleet, node: &str) -> Grant {
    loop {
        if let Ok(Acquired::Grant(grant)) =
            fleet.acquire_by(&Holder::new(), &[], None, None, Route::Direct).await
        {
            assert_eq!(grant.node(), node);
            return grant;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_drains_waits_for_direct_connections_and_not_for_tokens() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let node = node(&server, &backend, 3, &direct).await;
    let fleet = fleet(&server, "s").await;
    let (used, unused) = (grant(&fleet).await, grant(&fleet).await);
    let admission = direct.admit(used.token()).unwrap();
    used.used();

    let drained = tokio::spawn(node.drain(Duration::from_secs(600)));
    // A node that drains has no room.
    let begins =
        async { while fleet.nodes().await.unwrap().iter().any(|node| node.free > Some(0)) {} };
    timeout(LONG, begins).await.unwrap();
    assert!(direct.admit(unused.token()).is_none(), "a token of a node that drains");
    assert!(!drained.is_finished(), "a direct connection is a session");
    drop(admission);
    timeout(LONG, drained).await.unwrap().unwrap();
    // The node has said so. Otherwise it would be lost.
    let error = end(unused.into_session()).await;
    assert!(error.contains("drains"), "{error}");
}

/// Why a session ends by itself.
async fn end(mut session: Session) -> String {
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut session, &mut answer);
    timeout(LONG, read).await.unwrap().unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_connection_does_not_keep_a_node_longer_than_the_grace() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let node = node(&server, &backend, 1, &direct).await;
    let grant = grant(&fleet(&server, "s").await).await;
    let admission = direct.admit(grant.token()).unwrap();

    timeout(LONG, node.drain(Duration::from_millis(50))).await.unwrap();
    drop(admission);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_instead_of_a_direct_connection_needs_the_server() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let node = node(&server, &backend, 1, &direct).await;
    let grant = grant(&fleet(&server, "s").await).await;
    std::fs::remove_file(backend.path()).unwrap();

    let error = end(grant.into_session()).await;
    assert!(error.contains("cannot be reached"), "{error}");
    wait_for_free(&node, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_instead_of_a_direct_connection_lives_while_its_server_takes_its_time() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let path = backend.path().to_owned();
    let connect = move |_| {
        let path = path.clone();
        async move {
            // Longer than a silent node lives, and shorter than a node waits.
            tokio::time::sleep(4 * HEARTBEAT).await;
            tokio::net::UnixStream::connect(path).await
        }
    };
    let node = Node::builder("s", "n", connect).sessions(1).heartbeat(HEARTBEAT).direct(direct);
    let _node = node.start(&server.url()).await.unwrap();
    let mut session = grant(&fleet(&server, "s").await).await.into_session();
    assert_echoes(&mut session).await;
}
