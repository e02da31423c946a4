//! Places that nodes keep for clients, and that nobody wants any more.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use taskfork_nats::async_nats::{Client, Subject, Subscriber};
use taskfork_nats::{Acquired, Direct, Error, Fleet, FleetOptions, Grant, Holder, Route};
use tokio::time::timeout;

use crate::backend::{Backend, LONG, assert_echoes, fleet, wait_until};
use crate::round_trip::round_trip;
use crate::server::NatsServer;

/// Longer than a test may take. So a place that is free again was given up, and not forgotten.
const SLOW: Duration = Duration::from_secs(60);

/// What a client sends to a node whose place it does not want.
const UNWANTED: [u8; 10] = [5, 0, 0, 0, 0, 0, 0, 0, 0, 4];

/// Nodes by hand.
struct Nodes {
    client: Client,
    requests: Subscriber,
}

impl Nodes {
    async fn start(server: &NatsServer) -> Self {
        let client = server.client().await;
        let requests = client.subscribe("s.acquire.any").await.unwrap();
        round_trip(&client).await;
        Self { client, requests }
    }

    /// Where the next client gets its answer.
    async fn request(&mut self) -> (Subject, Value) {
        let request = timeout(LONG, self.requests.next()).await.unwrap().unwrap();
        (request.reply.unwrap(), serde_json::from_slice(&request.payload).unwrap())
    }

    /// Accepts with a direct connection. Returns where the client answers.
    async fn accept(&self, client: Subject) -> Subscriber {
        let inbox = self.client.new_inbox();
        let subscriber = self.client.subscribe(inbox.clone()).await.unwrap();
        let offer = json!({ "window": 65536, "piece": 4096, "heartbeat_ms": 60_000 });
        let direct = json!({
            "address": "node.example:7000", "certificate": "ab".repeat(32), "token": "cd".repeat(16),
            "valid_ms": 600_000,
        });
        let accept = json!({ "node": "n", "subject": inbox, "offer": offer, "direct": direct });
        let answer = json!({ "accept": accept }).to_string();
        self.client.publish(client, answer.into()).await.unwrap();
        subscriber
    }
}

async fn assert_declined(mut node: Subscriber) {
    let told = timeout(LONG, node.next()).await.unwrap().unwrap();
    assert_eq!(told.payload, UNWANTED[..]);
}

async fn slow_fleet(server: &NatsServer) -> Fleet {
    let options = FleetOptions::new().name("test").heartbeat(SLOW);
    Fleet::connect(&server.url(), "s", options).await.unwrap()
}

fn direct() -> Direct {
    let direct = Direct::new("node.example:7000").unwrap().valid(Duration::from_secs(600));
    direct.set_fingerprint([0xab; 32]);
    direct
}

fn grant(acquired: Acquired) -> Grant {
    match acquired {
        Acquired::Grant(grant) => grant,
        Acquired::Session(session) => panic!("not a grant: {session:?}"),
    }
}

async fn acquire(fleet: &Fleet, route: Route) -> Result<Acquired, Error> {
    fleet.acquire_by(&Holder::new(), &[], None, None, route).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_is_declined_also_if_the_client_connects_directly() {
    let server = NatsServer::start();
    let mut nodes = Nodes::start(&server).await;
    let fleet = slow_fleet(&server).await;
    for ending in ["used", "dropped", "relayed"] {
        let (acquired, (client, _first)) = tokio::join!(acquire(&fleet, Route::Auto), async {
            // This node hangs for a moment, and the client asks again.
            let (client, _) = nodes.request().await;
            let (again, _) = nodes.request().await;
            assert_eq!(client, again);
            (client, nodes.accept(again).await)
        });
        let grant = grant(acquired.unwrap());
        let (mut session, mut held) = (None, None);
        match ending {
            "used" => held = Some(grant.used()),
            "dropped" => drop(grant),
            _ => session = Some(grant.into_session()),
        }
        assert_declined(nodes.accept(client).await).await;
        drop((session, held));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_accepts_a_request_that_was_given_up_is_declined() {
    let server = NatsServer::start();
    let mut nodes = Nodes::start(&server).await;
    let fleet = slow_fleet(&server).await;
    let asking = fleet.clone();
    let asked = tokio::spawn(async move { acquire(&asking, Route::Auto).await });
    let (client, _) = nodes.request().await;
    asked.abort();
    asked.await.unwrap_err();
    assert_declined(nodes.accept(client).await).await;

    // In the queue of a node, after a request that nobody has got.
    let mut waiting = nodes.client.subscribe("s.wait").await.unwrap();
    drop(nodes.requests);
    nodes.requests = nodes.client.subscribe("nobody").await.unwrap();
    round_trip(&nodes.client).await;
    let asked = tokio::spawn(async move {
        fleet.acquire_by(&Holder::new(), &[], None, Some(LONG), Route::Direct).await.map(drop)
    });
    let client = timeout(LONG, waiting.next()).await.unwrap().unwrap().reply.unwrap();
    asked.abort();
    asked.await.unwrap_err();
    assert_declined(nodes.accept(client).await).await;
}

/// Drops a future when it would be polled once more than so many times.
async fn cancel_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let (mut future, mut polled) = (pin!(future), 0);
    poll_fn(|context| {
        polled += 1;
        if polled > polls {
            return Poll::Ready(None);
        }
        future.as_mut().poll(context).map(Some)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_cancelled_anywhere_leaves_no_place_taken() {
    let (server, backend) = (NatsServer::start(), Backend::echo());
    let node = backend.node("s", "n", 2).heartbeat(SLOW).direct(direct());
    let node = node.start(&server.url()).await.unwrap();
    let fleet = slow_fleet(&server).await;
    for route in [Route::Relayed, Route::Auto, Route::Direct] {
        for polls in 0..12 {
            let wait = (polls % 2 == 1).then_some(LONG);
            drop(
                cancel_after(polls, fleet.acquire_by(&Holder::new(), &[], None, wait, route)).await,
            );
        }
    }
    // What is on its way is there before this request.
    let last = fleet.acquire_within(&[], None, LONG / 2).await.unwrap();
    drop(last);
    timeout(LONG / 2, node.wait_for_free(2)).await.unwrap();
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_tells_a_node_that_its_client_is_gone() {
    let (server, backend) = (NatsServer::start(), Backend::echo());
    let node = backend.node("s", "n", 1).heartbeat(SLOW).direct(direct());
    let _node = node.start(&server.url()).await.unwrap();
    let client = server.client().await;
    for route in ["relayed", "auto"] {
        let offer = json!({ "window": 65536, "piece": 4096, "heartbeat_ms": 60_000 });
        let request = json!({ "version": 1, "offer": offer, "route": route });
        // Nobody listens there.
        let inbox = client.new_inbox();
        let sent = client.publish_with_reply("s.acquire.any", inbox, request.to_string().into());
        sent.await.unwrap();
        round_trip(&client).await;
        // This one gets the only place.
        let acquired = slow_fleet(&server).await.acquire_within(&[], None, LONG / 2).await;
        assert_echoes(&mut acquired.unwrap()).await;
        backend.wait_until_idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_has_failed_is_not_offered_again() {
    let (server, backend) = (NatsServer::start(), Backend::echo());
    let node = backend.node("s", "n", 4).direct(direct());
    let node = node.start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    let stranger = server.client().await;
    let mut requests = stranger.subscribe("s.acquire.any").await.unwrap();
    let mut answers = stranger.subscribe("_INBOX.>").await.unwrap();
    round_trip(&stranger).await;
    let mut offered = async |is_avoided: bool| {
        let request = timeout(LONG, requests.next()).await.unwrap().unwrap();
        let read: Value = serde_json::from_slice(&request.payload).unwrap();
        let expected = if is_avoided { json!(["node.example:7000"]) } else { Value::Null };
        assert_eq!(read["avoid"], expected, "{read}");
        loop {
            let answer = timeout(LONG, answers.next()).await.unwrap().unwrap();
            if Some(answer.subject) == request.reply {
                let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
                return answer["accept"]["direct"].is_object();
            }
        }
    };

    let grant = grant(acquire(&fleet, Route::Auto).await.unwrap());
    assert!(offered(false).await);
    assert!(fleet.avoid(grant.address()), "it is new");
    assert!(!fleet.avoid(grant.address()));
    drop(grant);
    // No token is made for this one.
    let Acquired::Session(mut session) = acquire(&fleet, Route::Auto).await.unwrap() else {
        panic!("a grant for an address that has failed");
    };
    assert_echoes(&mut session).await;
    assert!(!offered(true).await);
    // Nothing else is wanted here.
    assert!(matches!(acquire(&fleet, Route::Direct).await, Ok(Acquired::Grant(_))));
    assert!(offered(false).await);
    drop((session, node));
    timeout(LONG, backend.wait_until_idle()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_offers_an_excluded_address_all_the_same_has_a_session() {
    let server = NatsServer::start();
    let mut nodes = Nodes::start(&server).await;
    let fleet = slow_fleet(&server).await;
    let mut answer = async || {
        let (client, _) = nodes.request().await;
        nodes.accept(client).await
    };
    let (acquired, _node) = tokio::join!(acquire(&fleet, Route::Auto), answer());
    assert!(fleet.avoid(grant(acquired.unwrap()).address()));
    let (acquired, mut node) = tokio::join!(acquire(&fleet, Route::Auto), answer());
    assert!(matches!(acquired, Ok(Acquired::Session(_))));
    // A heartbeat: the session begins.
    assert_eq!(timeout(LONG, node.next()).await.unwrap().unwrap().payload[0], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_pauses_if_direct_connections_do_not_reach_its_server() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let node = backend.node("s", "n", 4).direct(direct.clone());
    let node = node.start(&server.url()).await.unwrap();
    let fleet = slow_fleet(&server).await;
    let grant = grant(acquire(&fleet, Route::Direct).await.unwrap());
    let admission = direct.admit(grant.token()).unwrap();
    grant.used();
    timeout(LONG, node.wait_for_free(3)).await.unwrap();

    wait_until("the pause", || {
        admission.server_reached(false);
        node.free() == 0
    })
    .await;
    // It is over by itself.
    timeout(LONG, node.wait_for_free(3)).await.unwrap();
    drop(admission);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_counts_the_direct_connections_that_go_on() {
    let (server, backend, direct) = (NatsServer::start(), Backend::echo(), direct());
    let start = || backend.node("s", "n", 2).direct(direct.clone());
    let node = start().start(&server.url()).await.unwrap();
    let fleet = slow_fleet(&server).await;
    let grant = grant(acquire(&fleet, Route::Direct).await.unwrap());
    let admission = direct.admit(grant.token()).unwrap();
    grant.used();
    timeout(LONG, node.wait_for_free(1)).await.unwrap();
    drop(node);

    let node = start().start(&server.url()).await.unwrap();
    let last = acquire(&fleet, Route::Direct).await.unwrap();
    timeout(LONG, node.wait_for_free(0)).await.unwrap();
    drop((admission, last));
    timeout(LONG, node.wait_for_free(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_flushed_has_told_its_nodes_though_its_runtime_ends() {
    let (server, backend) = (NatsServer::start(), Backend::echo());
    let node = backend.node("s", "n", 2).heartbeat(SLOW).direct(direct());
    let node = node.start(&server.url()).await.unwrap();
    let url = server.url();
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = FleetOptions::new().heartbeat(SLOW);
            let fleet = Fleet::connect(&url, "s", options).await.unwrap();
            let mut session = fleet.acquire(&[], None).await.unwrap();
            assert_echoes(&mut session).await;
            let grant = acquire(&fleet, Route::Direct).await.unwrap();
            drop((session, grant));
            fleet.flush().await;
        });
    });
    client.join().unwrap();
    timeout(LONG / 2, node.wait_for_free(2)).await.unwrap();
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_asks_once_a_second_whatever_it_is_answered() {
    let server = NatsServer::start();
    let client = server.client().await;
    let mut waiting = client.subscribe("s.wait").await.unwrap();
    round_trip(&client).await;
    let refuse = tokio::spawn(async move {
        let (mut asked, mut cancelled) = (0, false);
        while !cancelled {
            let request = waiting.next().await.unwrap();
            let read: Value = serde_json::from_slice(&request.payload).unwrap();
            cancelled = read["cancel"].as_bool() == Some(true);
            asked += usize::from(!cancelled);
            let refusal = json!({ "refuse": { "node": "n", "why": "full", "text": "it is full" } });
            let inbox = request.reply.unwrap();
            client.publish(inbox, refusal.to_string().into()).await.unwrap();
        }
        asked
    });
    let wait = Duration::from_millis(2500);
    let error = fleet(&server, "s").await.acquire_within(&[], None, wait).await.unwrap_err();
    assert!(error.is_no_room(), "{error}");
    let asked = timeout(LONG, refuse).await.unwrap().unwrap();
    assert!((1..=3).contains(&asked), "it has asked {asked} times");
}
