//! Nodes as micro services of NATS, and calls of any client.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use taskfork_nats::CallError;
use taskfork_nats::async_nats::RequestErrorKind::NoResponders;
use taskfork_nats::async_nats::service::{Info, PingResponse, Stats};
use taskfork_nats::async_nats::{Client, Message};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::backend::{Backend, LONG, fleet};
use crate::round_trip::round_trip;
use crate::server::NatsServer;

/// Where calls wait: each says that it has begun, and goes on when the gate is opened.
#[derive(Clone)]
struct Gate {
    started: UnboundedSender<()>,
    open: watch::Receiver<bool>,
}

impl Gate {
    /// With what tells of calls that have begun, and what opens it.
    fn new() -> (Self, UnboundedReceiver<()>, watch::Sender<bool>) {
        let (started, starts) = unbounded_channel();
        let (release, open) = watch::channel(false);
        (Self { started, open }, starts, release)
    }

    async fn pass(mut self, arguments: Bytes) -> Result<Bytes, CallError> {
        self.started.send(()).unwrap();
        self.open.wait_for(|open| *open).await.unwrap();
        Ok(arguments)
    }
}

/// A request with an inbox of its own, so that all answers are seen.
async fn answers(client: &Client, subject: &str, count: usize) -> Vec<Message> {
    let inbox = client.new_inbox();
    let subscriber = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply(subject.to_owned(), inbox, "".into()).await.unwrap();
    timeout(LONG, subscriber.take(count).collect()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_answer_as_micro_services() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let labels = ["gpu=a100".parse().unwrap()];
    let configured = backend.node("s", "a", 3).labels(&labels).workers(7).version("1.2.3");
    let a = configured.methods(["resize", "crop"]).start(&server.url()).await.unwrap();
    let _b = backend.node("s", "b", 3).start(&server.url()).await.unwrap();
    let client = server.client().await;
    let fleet = fleet(&server, "s").await;
    let session = fleet.acquire(&labels, None).await.unwrap();
    a.wait_for_free(2).await;

    for subject in ["$SRV.PING", "$SRV.PING.s"] {
        let pings: Vec<PingResponse> = answers(&client, subject, 2)
            .await
            .iter()
            .map(|message| serde_json::from_slice(&message.payload).unwrap())
            .collect();
        assert!(pings.iter().all(|ping| ping.kind == "io.nats.micro.v1.ping_response"));
        assert!(pings.iter().all(|ping| ping.name == "s"));
        assert_ne!(pings[0].id, pings[1].id);
    }
    let info = client.request(format!("$SRV.INFO.s.{}", a.id()), "".into()).await.unwrap();
    let info: Info = serde_json::from_slice(&info.payload).unwrap();
    assert_eq!(info.kind, "io.nats.micro.v1.info_response");
    assert_eq!((&*info.id, &*info.version), (a.id(), "1.2.3"));
    let expected = [
        ("node", "a"),
        ("sessions", "3"),
        ("free", "2"),
        ("workers", "7"),
        ("methods", "resize,crop"),
        ("labels", "gpu=a100"),
    ];
    let metadata: HashMap<&str, &str> =
        info.metadata.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(metadata, HashMap::from(expected));
    assert_eq!(info.endpoints[0].subject, "s.acquire.any");

    let stats = client.request(format!("$SRV.STATS.s.{}", a.id()), "".into()).await.unwrap();
    let stats: Stats = serde_json::from_slice(&stats.payload).unwrap();
    assert_eq!(stats.kind, "io.nats.micro.v1.stats_response");
    assert_eq!(stats.endpoints[0].requests, 1);
    assert_eq!(stats.endpoints[0].errors, 0);

    let nodes = fleet.nodes().await.unwrap();
    assert_eq!(nodes.len(), 2);
    assert_eq!((&*nodes[0].name, nodes[0].free, nodes[0].workers), ("a", Some(2), Some(7)));
    assert_eq!(nodes[0].methods, ["resize", "crop"]);
    drop(session);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_client_can_call_in_json() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let _node = backend
        .node("s", "n", 1)
        .max_call_size(1000)
        .call_timeout(Duration::from_millis(200))
        .calls(|method, arguments| async move {
            match &*method {
                "echo" => Ok(arguments),
                "sleep" => std::future::pending().await,
                "long" => Ok(vec![b' '; 2 * 1024 * 1024].into()),
                _ => Err(CallError::new(404, format!("there is no\nmethod {method}"))),
            }
        })
        .start(&server.url())
        .await
        .unwrap();
    let client = server.client().await;
    let call = async |method: &str, arguments: String| {
        let subject = format!("s.call.{method}");
        client.request(subject, arguments.into()).await.unwrap()
    };

    assert_eq!(call("echo", r#"[1, "two"]"#.into()).await.payload, r#"[1, "two"]"#);
    assert_eq!(call("echo", String::new()).await.payload, "[]");
    for (method, arguments, code, text) in [
        ("other", "[]".into(), "404", "there is no method other"),
        ("echo", "{}".into(), "400", "must be a JSON array"),
        ("echo", "[1".into(), "400", "must be a JSON array"),
        ("echo", format!("[\"{}\"]", "x".repeat(1000)), "413", "at most 1000"),
        ("sleep", "[]".into(), "504", "longer than 200ms"),
        ("long", "[]".into(), "500", "use a session"),
    ] {
        let answer = call(method, arguments).await;
        let headers = answer.headers.unwrap();
        assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), code);
        let error = headers.get("Nats-Service-Error").unwrap().as_str();
        assert!(error.contains(text), "{error}");
        assert!(answer.payload.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_many_calls_is_not_asked_for_more() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let (gate, mut starts, release) = Gate::new();
    let _node = backend
        .node("s", "n", 1)
        .max_calls(2)
        .calls(move |_, arguments| gate.clone().pass(arguments))
        .start(&server.url())
        .await
        .unwrap();
    let client = server.client().await;
    let call = || {
        let client = client.clone();
        tokio::spawn(async move { client.request("s.call.x", "[]".into()).await })
    };

    let running = [call(), call()];
    starts.recv().await.unwrap();
    starts.recv().await.unwrap();
    let third = call().await.unwrap().unwrap_err();
    release.send(true).unwrap();

    assert_eq!(third.kind(), NoResponders);
    for call in running {
        assert_eq!(call.await.unwrap().unwrap().payload, "[]");
    }
    // The node is in the group again.
    assert_eq!(call().await.unwrap().unwrap().payload, "[]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_its_answer_finds_the_node_again() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let builder = backend.node("s", "n", 1).max_calls(1);
    let _node =
        builder.calls(|_, arguments| async { Ok(arguments) }).start(&server.url()).await.unwrap();
    let client = server.client().await;

    for number in 0..200 {
        let argument = format!("[{number}]");
        let answer = client.request("s.call.x", argument.clone().into()).await.unwrap();
        assert_eq!(answer.payload, argument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_short_calls_find_a_node_with_room() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let builder = backend.node("s", "n", 1).max_calls(8);
    let _node =
        builder.calls(|_, arguments| async { Ok(arguments) }).start(&server.url()).await.unwrap();
    let client = server.client().await;

    // Never more than there is room for.
    let callers = (0..8).map(async |_| {
        for _ in 0..50 {
            client.request("s.call.x", "[]".into()).await.unwrap();
        }
    });
    futures_util::future::join_all(callers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_handler_is_an_error_of_its_call() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let _node = backend
        .node("s", "n", 1)
        .calls(|_, _| async { panic!("the handler's own panic") })
        .start(&server.url())
        .await
        .unwrap();
    let client = server.client().await;

    let answer = client.request("s.call.x", "[]".into()).await.unwrap();
    let headers = answer.headers.unwrap();
    assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "500");
    assert_eq!(headers.get("Nats-Service-Error").unwrap().as_str(), "the node has panicked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_finishes_its_calls() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let (gate, mut starts, release) = Gate::new();
    let node = backend
        .node("s", "n", 1)
        .calls(move |_, arguments| gate.clone().pass(arguments))
        .start(&server.url())
        .await
        .unwrap();
    let client = server.client().await;
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.request("s.call.x", "[7]".into()).await }
    });
    starts.recv().await.unwrap();

    let draining = tokio::spawn(node.drain(LONG));
    // Calls that come while the node leaves the group wait at its gate.
    timeout(LONG, async {
        loop {
            let call = client.request("s.call.x", "[]".into());
            match timeout(Duration::from_millis(100), call).await {
                Ok(Err(error)) if error.kind() == NoResponders => break,
                _ => {}
            }
        }
    })
    .await
    .unwrap();
    release.send(true).unwrap();

    assert_eq!(call.await.unwrap().unwrap().payload, "[7]");
    timeout(LONG, draining).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_answer_one_after_the_other_are_all_known() {
    let server = NatsServer::start();
    let client = server.client().await;
    let mut questions = client.subscribe("$SRV.INFO.s").await.unwrap();
    round_trip(&client).await;
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let inbox = question.reply.unwrap();
            for name in ["a", "b", "c"] {
                let info = json!({ "id": name, "version": "1.0.0", "metadata": { "node": name } });
                client.publish(inbox.clone(), info.to_string().into()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        }
    });
    let fleet = fleet(&server, "s").await;
    // On a busy machine an answer may be too late once.
    let all = async { while fleet.nodes().await.unwrap().len() != 3 {} };
    timeout(LONG, all).await.unwrap();
}
