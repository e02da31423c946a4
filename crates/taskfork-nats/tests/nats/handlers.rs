//! What a program adds to a node: its own relay, and details of the status.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use taskfork_nats::{NodeStatus, SessionError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::time::timeout;

use crate::backend::{Backend, LONG, assert_echoes, fleet, session_error};
use crate::server::NatsServer;

#[tokio::test]
async fn a_handler_relays_and_hears_of_draining() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let drained = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&drained);
    let node = backend.node("s", "n", 2).relay(move |mut accepted| {
        let count = Arc::clone(&count);
        async move {
            assert_eq!(accepted.caller.client, "test");
            let draining = accepted.draining();
            tokio::select! {
                _ = copy_bidirectional(&mut accepted.session, &mut accepted.stream) => {}
                () = draining => { count.fetch_add(1, Ordering::SeqCst); }
            }
        }
    });
    let node = node.start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    let mut session = fleet.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;
    drop(session);
    node.wait_for_free(2).await;
    let mut session = fleet.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;
    timeout(LONG, node.drain(LONG)).await.unwrap();
    assert_eq!(drained.load(Ordering::SeqCst), 1);
    assert_eq!(timeout(LONG, session.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_handler_that_goes_on_ends_with_the_grace() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).relay(|accepted| async move {
        std::future::pending::<()>().await;
        drop(accepted);
    });
    let node = node.start(&server.url()).await.unwrap();
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();
    timeout(LONG, node.drain(Duration::from_millis(50))).await.unwrap();
    let error = timeout(LONG, session.read(&mut [0])).await.unwrap().unwrap_err();
    let SessionError::Ended { detail, .. } = session_error(&error) else { panic!("{error:?}") };
    assert!(detail.contains("shuts down"), "{detail}");
}

#[tokio::test]
async fn a_failed_session_is_no_end_of_the_stream() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).relay(|mut accepted| async move {
        accepted.session.write_all(b"half").await.unwrap();
        accepted.session.fail("the disk\nis full");
    });
    let _node = node.start(&server.url()).await.unwrap();
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();
    let mut read = Vec::new();
    let error = timeout(LONG, session.read_to_end(&mut read)).await.unwrap().unwrap_err();
    assert_eq!(read, b"half");
    assert!(error.to_string().contains("the disk is full"), "{error}");
}

#[tokio::test]
async fn a_draining_node_leaves_its_name() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    let mut session = fleet.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;
    backend.node("s", "n", 1).check(&server.url()).await.unwrap_err();
    let draining = tokio::spawn(node.drain(LONG));
    while !fleet.status(false).await.unwrap()[0].draining {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    backend.node("s", "n", 1).check(&server.url()).await.unwrap();
    let successor = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    assert_echoes(&mut fleet.acquire(&[], None).await.unwrap()).await;
    assert_echoes(&mut session).await;
    drop((session, successor));
    timeout(LONG, draining).await.unwrap().unwrap();
}

#[tokio::test]
async fn only_a_node_by_its_name_is_asked_for_what_happened_lately() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let told = |bounds: taskfork_nats::Bounds| async move {
        Ok(json!(bounds.recent.map(|recent| recent.after)))
    };
    let _node = backend.node("s", "n", 1).status(told).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    let recent = fleet.node_recent("n", taskfork_nats::Recent::new(7, None)).await.unwrap();
    assert_eq!(recent.unwrap().details, json!(7));
    let client = server.client().await;
    let question = r#"{"recent": {"after": 7}}"#;
    let mut details = Vec::new();
    for subject in ["s.status.n", "s.status"] {
        let answer = client.request(subject, question.into()).await.unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        details.push(answer["details"].clone());
    }
    assert_eq!(details, [json!(7), json!(null)]);
}

#[tokio::test]
async fn nodes_tell_their_status_with_details() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let told = |bounds: taskfork_nats::Bounds| async move {
        assert!(bounds.most > 100_000);
        Ok(json!({ "full": bounds.full }))
    };
    let one = backend.node("s", "one", 3).labels(&["gpu=a100".parse().unwrap()]).status(told);
    let _one = one.start(&server.url()).await.unwrap();
    let two = backend.node("s", "two", 1).status(|_| async { Err("it\nhangs".to_owned()) });
    let _two = two.start(&server.url()).await.unwrap();
    let _three = backend.node("s", "three", 1).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    let _session = fleet.acquire(&["gpu=a100".parse().unwrap()], None).await.unwrap();

    let nodes = fleet.status(false).await.unwrap();
    let names: Vec<_> = nodes.iter().map(|node| &*node.node).collect();
    assert_eq!(names, ["one", "three", "two"]);
    let [one, three, two] = &nodes[..] else { unreachable!() };
    assert_eq!((one.sessions, one.free, one.draining), (3, 2, false));
    assert_eq!(
        (&one.details, &*one.labels),
        (&json!({ "full": false }), &["gpu=a100".to_owned()][..])
    );
    assert_eq!((&three.details, &three.error), (&json!(null), &None));
    assert_eq!(two.error.as_deref(), Some("it hangs"));
    let full = fleet.node_status("one", true).await.unwrap().unwrap();
    assert_eq!(full.details, json!({ "full": true }));
    assert_eq!(fleet.node_status("four", true).await.unwrap(), None);
}

#[tokio::test]
async fn a_status_that_is_too_long_is_an_error_in_its_place() {
    let server = NatsServer::with_config("max_payload: 2048\n");
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).status(|_| async { Ok(json!("x".repeat(4096))) });
    let _node = node.start(&server.url()).await.unwrap();
    let nodes: Vec<NodeStatus> = fleet(&server, "s").await.status(true).await.unwrap();
    assert!(nodes[0].error.as_deref().unwrap().contains("longer than a message"), "{nodes:?}");
}
