//! Peers that break the protocol.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use taskfork_nats::async_nats::{Client, Subject, Subscriber};
use taskfork_nats::{Fleet, FleetOptions, SessionError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::time::timeout;

use crate::backend::{Backend, LONG, assert_echoes, fleet, session_error, wait_until};
use crate::round_trip::round_trip;
use crate::server::NatsServer;

const WINDOW: usize = 64 * 1024;

fn message(kind: u8, number: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(number.to_le_bytes());
    bytes.extend(body);
    bytes
}

fn offer() -> Value {
    json!({ "window": WINDOW, "piece": 4096, "heartbeat_ms": 30_000 })
}

/// What a peer sends after the beginning of a session, and a part of the error that follows.
fn lies() -> Vec<(&'static str, Vec<Vec<u8>>, &'static str)> {
    let mut overrun: Vec<_> = (0..1000).map(|number| message(1, number, &[7; 1000])).collect();
    overrun.extend((1000..3000).map(|number| message(1, number, &[7; 1000])));
    vec![
        ("a gap", vec![message(3, 0, b""), message(1, 2, b"x")], "number 2 came where 1"),
        ("a repetition", vec![message(1, 0, b"x"), message(1, 0, b"x")], "number 0 came where 1"),
        ("too much", overrun, "more came than was asked for"),
        ("a long piece", vec![message(1, 0, &vec![7; 600_000])], "a piece of 600000 bytes"),
        ("garbage", vec![b"\xff\xfe\xfd garbage".to_vec()], "unknown kind 255"),
        ("no reply", vec![b"{ is how replies begin".to_vec()], "unknown kind 123"),
        ("nothing", vec![vec![]], "shorter than its header"),
        ("an empty piece", vec![message(1, 0, b"")], "with 0 bytes after its header"),
        ("a credit that shrinks", vec![message(2, 0, &[0; 8])], "a credit of 0 came"),
        ("a huge credit", vec![message(2, 0, &[0xff; 8])], "a credit of 18446744073709551615"),
        ("a wrong end", vec![message(5, 0, &[99])], "an end with an unknown reason"),
        ("data after the end", vec![message(4, 0, b""), message(1, 1, b"x")], "after the end"),
    ]
}

async fn send(client: &Client, subject: &Subject, messages: Vec<Vec<u8>>) {
    for message in messages {
        client.publish(subject.clone(), message.into()).await.unwrap();
    }
}

/// A node by hand: it accepts one session.
async fn accept(client: &Client, requests: &mut Subscriber) -> (Subject, Subscriber) {
    let request = requests.next().await.unwrap();
    let inbox = client.new_inbox();
    let subscriber = client.subscribe(inbox.clone()).await.unwrap();
    let accept = json!({ "accept": { "node": "liar", "subject": inbox, "offer": offer() } });
    let client_inbox = request.reply.unwrap();
    client.publish(client_inbox.clone(), accept.to_string().into()).await.unwrap();
    (client_inbox, subscriber)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_ends_sessions_of_nodes_that_lie() {
    let server = NatsServer::start();
    let liar = server.client().await;
    let mut requests = liar.subscribe("s.acquire.any").await.unwrap();
    round_trip(&liar).await;
    // Longer than the test: a liar sends no heartbeats.
    let options = FleetOptions::new().heartbeat(Duration::from_secs(30));
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();
    for (name, messages, expected) in lies() {
        let (session, (subject, mut own)) =
            tokio::join!(fleet.acquire(&[], None), accept(&liar, &mut requests));
        let mut session = session.unwrap();
        send(&liar, &subject, messages).await;

        // Nobody reads: the session's own task notices, long before its next heartbeat.
        let noticed = wait_until(name, || session.error().is_some());
        timeout(Duration::from_secs(20), noticed).await.unwrap();
        let mut all = Vec::new();
        let error = timeout(LONG, session.read_to_end(&mut all)).await.unwrap().unwrap_err();
        let error = session_error(&error);
        assert!(all.len() <= 1024 * 1024, "{name}: {} bytes", all.len());
        let kind = matches!(error, SessionError::Gap { .. } | SessionError::Violation { .. });
        assert!(kind && error.to_string().contains(expected), "{name}: {error}");
        assert!(error.to_string().contains("the node liar"), "{name}: {error}");
        // The node is told why.
        let told = timeout(LONG, async {
            loop {
                let message = own.next().await.unwrap();
                if message.payload[0] == 5 {
                    break message;
                }
            }
        });
        let text = String::from_utf8_lossy(&told.await.unwrap().payload[10..]).into_owned();
        assert!(text.contains(expected), "{name}: {text}");
    }
}

/// A client by hand: it gets a session.
async fn acquire(client: &Client) -> (Subject, Subscriber) {
    let inbox = client.new_inbox();
    let mut subscriber = client.subscribe(inbox.clone()).await.unwrap();
    let request = json!({ "version": 1, "client": "liar", "offer": offer() });
    loop {
        let payload = request.to_string().into();
        client.publish_with_reply("s.acquire.any", inbox.clone(), payload).await.unwrap();
        let answer = timeout(LONG, subscriber.next()).await.unwrap().unwrap();
        // Until the node has room again.
        if answer.status.is_none() {
            let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
            if let Some(subject) = answer["accept"]["subject"].as_str() {
                return (subject.into(), subscriber);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_ends_sessions_of_clients_that_lie() {
    let server = NatsServer::start();
    // A server that does not read: all that comes stays in the node.
    let backend = Backend::new(|stream| async move {
        while !stream.ready(Interest::READABLE).await?.is_read_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    });
    let node = backend.node("s", "n", 2).window(WINDOW as u32).heartbeat(Duration::from_secs(30));
    let node = node.start(&server.url()).await.unwrap();
    let liar = server.client().await;
    for (name, messages, expected) in lies() {
        if name == "a long piece" {
            continue;
        }
        let (subject, mut own) = acquire(&liar).await;
        send(&liar, &subject, messages).await;

        let told = timeout(LONG, async {
            loop {
                let message = own.next().await.unwrap();
                if message.payload.first() == Some(&5) {
                    break message;
                }
            }
        });
        let told = told.await.unwrap_or_else(|_| panic!("{name}: nothing was told"));
        let text = String::from_utf8_lossy(&told.payload[10..]).into_owned();
        assert!(text.contains(expected), "{name}: {text}");
        timeout(LONG, node.wait_for_free(2)).await.unwrap();
        backend.wait_until_idle().await;
    }
}

/// NATS says that nobody listens for an earlier request, when a later one has led to a session.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_word_of_nats_itself_is_no_message_of_the_session() {
    let server = NatsServer::start();
    let node = server.client().await;
    let mut requests = node.subscribe("s.acquire.any").await.unwrap();
    round_trip(&node).await;
    let options = FleetOptions::new().heartbeat(Duration::from_secs(30));
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();
    let (session, (subject, _own)) =
        tokio::join!(fleet.acquire(&[], None), accept(&node, &mut requests));
    let mut session = session.unwrap();

    let mut nats = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let no_responders = "NATS/1.0 503\r\n\r\n";
    let length = no_responders.len();
    let text = format!(
        "CONNECT {{\"headers\":true,\"verbose\":false}}\r\n\
         HPUB {subject} {length} {length}\r\n{no_responders}\r\nPING\r\n"
    );
    nats.write_all(text.as_bytes()).await.unwrap();
    let mut said = String::new();
    while !said.contains("PONG") {
        let mut buffer = [0; 4096];
        let length = timeout(LONG, nats.read(&mut buffer)).await.unwrap().unwrap();
        assert!(length > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    send(&node, &subject, vec![message(1, 0, b"x")]).await;

    assert_eq!(timeout(LONG, session.read_u8()).await.unwrap().unwrap(), b'x');
}

/// Whoever may answer for nodes cannot make a client keep all that it says.
#[tokio::test(flavor = "multi_thread")]
async fn endless_answers_for_nodes_are_cut_off() {
    let server = NatsServer::start();
    let liar = server.client().await;
    let mut questions = liar.subscribe("s.status").await.unwrap();
    round_trip(&liar).await;
    let fleet = Fleet::connect(&server.url(), "s", FleetOptions::new()).await.unwrap();
    let answering = tokio::spawn(async move {
        let reply = questions.next().await.unwrap().reply.unwrap();
        for number in 0..100 {
            let long = json!({
                "node": format!("n{number}"), "id": "x".repeat(1_000_000), "version": "1.0.0",
                "labels": [], "sessions": 1, "free": 1, "draining": false,
            });
            liar.publish(reply.clone(), long.to_string().into()).await.unwrap();
        }
        round_trip(&liar).await;
    });

    let nodes = timeout(LONG, fleet.status(false)).await.unwrap().unwrap();

    assert!((1..=40).contains(&nodes.len()), "{} nodes", nodes.len());
    answering.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_comes_frees_its_session() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let liar = server.client().await;

    let _session = acquire(&liar).await;

    timeout(LONG, node.wait_for_free(1)).await.unwrap();
    backend.wait_until_idle().await;
    assert_echoes(&mut fleet(&server, "s").await.acquire_within(&[], None, LONG).await.unwrap())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_and_harm_nobody() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let _node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let liar = server.client().await;
    let offer = |window: u64, piece: u64, heartbeat: u64| json!({ "version": 1, "offer": { "window": window, "piece": piece, "heartbeat_ms": heartbeat } });
    for (request, expected) in [
        (json!({ "version": 2, "offer": offer(WINDOW as u64, 100, 500)["offer"] }), "version 2"),
        (json!({}), "missing field"),
        (json!([1, 2]), "invalid"),
        (offer(0, 100, 500), "the window is 0 bytes"),
        (offer(u64::from(u32::MAX), 100, 500), "the window is"),
        (offer(WINDOW as u64, 0, 500), "the longest piece is 0 bytes"),
        (offer(WINDOW as u64, 1000, 0), "the interval of heartbeats"),
        (offer(WINDOW as u64, 1000, 1_000_000), "the interval of heartbeats"),
        (json!({ "version": 1, "client": "x".repeat(5000) }), "more than 4096"),
    ] {
        let answer = liar.request("s.acquire.any", request.to_string().into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(answer["refuse"]["why"], "request");
        let text = answer["refuse"]["text"].as_str().unwrap();
        assert!(text.contains(expected), "{request}: {text}");
    }
    for subject in ["s.wait", "s.node.n", "$SRV.PING", "s.acquire.node.n", "s.call.x"] {
        for payload in ["", "{", "\u{0}\u{1}"] {
            liar.publish(subject, payload.into()).await.unwrap();
            liar.publish_with_reply(subject, "nowhere", payload.into()).await.unwrap();
        }
    }
    round_trip(&liar).await;

    let mut session =
        fleet(&server, "s").await.acquire_within(&[], None, Duration::from_secs(60)).await.unwrap();
    assert_echoes(&mut session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_that_accept_the_second_is_told_that_it_is_not_wanted() {
    let server = NatsServer::start();
    let by_hand = server.client().await;
    let mut requests = by_hand.subscribe("s.acquire.any").await.unwrap();
    round_trip(&by_hand).await;
    let options = FleetOptions::new().heartbeat(Duration::from_secs(30));
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();
    let (session, (subject, _first)) =
        tokio::join!(fleet.acquire(&[], None), accept(&by_hand, &mut requests));
    let mut session = session.unwrap();
    let inbox = by_hand.new_inbox();
    let mut second = by_hand.subscribe(inbox.clone()).await.unwrap();

    let accept = json!({ "accept": { "node": "second", "subject": inbox, "offer": offer() } });
    send(&by_hand, &subject, vec![accept.to_string().into()]).await;

    let told = timeout(LONG, second.next()).await.unwrap().unwrap();
    assert_eq!(told.payload, message(5, 0, &[4]));
    // The session goes on.
    send(&by_hand, &subject, vec![message(1, 0, b"ping")]).await;
    let mut bytes = [0; 4];
    timeout(LONG, session.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_two_nodes_that_is_not_wanted_gives_the_session_up_at_once() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let heartbeat = 2 * LONG;
    let node = backend.node("s", "n", 1).heartbeat(heartbeat).start(&server.url()).await.unwrap();
    let by_hand = server.client().await;
    let (subject, mut own) = acquire(&by_hand).await;

    send(&by_hand, &subject, vec![message(5, 0, &[4])]).await;

    timeout(LONG / 2, node.wait_for_free(1)).await.unwrap();
    // Nothing was sent to the client, which has a session with another node.
    round_trip(&by_hand).await;
    drop(node);
    assert!(timeout(Duration::from_millis(100), own.next()).await.is_err());
}
