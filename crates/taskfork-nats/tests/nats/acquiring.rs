//! Nodes and clients that find each other.

use std::time::Duration;

use taskfork_nats::async_nats::RequestErrorKind;
use taskfork_nats::{Error, Label};
use tokio::time::timeout;

use crate::backend::{Backend, LONG, assert_echoes, fleet};
use crate::server::NatsServer;

fn label(text: &str) -> Label {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nodes_there_is_no_room() {
    let server = NatsServer::start();

    let error = fleet(&server, "s").await.acquire(&[], None).await.unwrap_err();

    assert!(error.is_no_room() && error.is_temporary(), "{error}");
    assert!(error.to_string().contains("no node of the service s has room now"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_nodes_is_told_from_a_full_one() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let fleet = fleet(&server, "s").await;
    assert!(!fleet.has_nodes().await.unwrap());

    let _node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let _session = fleet.acquire_within(&[], None, LONG).await.unwrap();

    assert!(fleet.acquire(&[], None).await.unwrap_err().is_no_room());
    assert!(fleet.has_nodes().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_leaves_the_group_and_returns() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 2).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    for _ in 0..3 {
        let mut sessions = Vec::new();
        for _ in 0..2 {
            // The node's return may still be on its way to the server.
            sessions.push(fleet.acquire_within(&[], None, LONG).await.unwrap());
        }

        node.wait_for_free(0).await;
        assert!(fleet.acquire(&[], None).await.unwrap_err().is_no_room());
        let request = server.client().await.request("s.acquire.any", "{}".into()).await;
        let kind = request.unwrap_err().kind();
        assert_eq!(kind, RequestErrorKind::NoResponders);

        for session in &mut sessions {
            assert_echoes(session).await;
        }
        drop(sessions);
        node.wait_for_free(2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_filled_at_one_subject_leaves_the_others() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let gpu = [label("gpu=a100")];
    let node = backend.node("s", "n", 1).labels(&gpu).start(&server.url()).await.unwrap();
    let client = server.client().await;
    let _session = fleet(&server, "s").await.acquire(&gpu, None).await.unwrap();
    node.wait_for_free(0).await;

    // Behind the node's departure on its way to the server.
    client.request(format!("$SRV.PING.s.{}", node.id()), "".into()).await.unwrap();
    for subject in ["s.acquire.any", "s.acquire.any.gpu=a100", "s.acquire.node.n"] {
        let error = client.request(subject, "{}".into()).await.unwrap_err();
        assert_eq!(error.kind(), RequestErrorKind::NoResponders, "{subject}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_never_full_is_always_asked() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 2).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;

    for _ in 0..7 {
        let mut session = timeout(LONG, async {
            loop {
                match fleet.acquire(&[], None).await {
                    Ok(session) => break session,
                    // The node's next quota is on its way to the server.
                    Err(error) => assert!(error.is_no_room(), "{error}"),
                }
            }
        })
        .await
        .unwrap();
        assert_echoes(&mut session).await;
        drop(session);
        node.wait_for_free(2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_use_all_room_and_no_more() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(backend.node("s", name, 5).start(&server.url()).await.unwrap());
    }
    let fleet = fleet(&server, "s").await;
    let tasks: Vec<_> = (0..40)
        .map(|_| {
            let fleet = fleet.clone();
            tokio::spawn(async move { fleet.acquire(&[], None).await })
        })
        .collect();
    let (mut sessions, mut errors) = (Vec::new(), Vec::new());
    for task in tasks {
        match task.await.unwrap() {
            Ok(session) => sessions.push(session),
            Err(error) => errors.push(error),
        }
    }

    assert!(errors.iter().all(Error::is_no_room), "{errors:?}");
    assert!(sessions.len() <= 15, "{errors:?}");
    // On a busy machine an answer can come too late, and then its place is given back after the others have been refused.
    timeout(LONG, async {
        while sessions.len() < 15 {
            match fleet.acquire(&[], None).await {
                Ok(session) => sessions.push(session),
                Err(error) => assert!(error.is_no_room(), "{error}"),
            }
        }
    })
    .await
    .unwrap();
    let error = fleet.acquire(&[], None).await.unwrap_err();
    assert!(error.is_no_room(), "{error}");
    for node in &nodes {
        assert_eq!(node.free(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_choose_nodes() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let gpu = [label("gpu=a100"), label("zone=b")];
    let _gpu = backend.node("s", "gpu", 2).labels(&gpu).start(&server.url()).await.unwrap();
    let zone = [label("zone=b")];
    let _zone = backend.node("s", "zone", 2).labels(&zone).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;

    for wanted in [&gpu[..1], &gpu[..]] {
        let session = fleet.acquire(wanted, None).await.unwrap();
        assert_eq!(session.peer(), "gpu");
    }
    for _ in 0..2 {
        std::mem::forget(fleet.acquire(&zone, None).await.unwrap());
    }
    let error = fleet.acquire(&[label("gpu=h100")], None).await.unwrap_err();
    assert!(error.is_no_room() && error.to_string().contains("gpu=h100"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_prefers_a_node_and_falls_back() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(backend.node("s", name, 2).start(&server.url()).await.unwrap());
    }
    let (one, other) = (fleet(&server, "s").await, fleet(&server, "s").await);

    let mut sessions = Vec::new();
    let first = one.acquire(&[], Some("tenant-7")).await.unwrap();
    let second = other.acquire(&[], Some("tenant-7")).await.unwrap();
    assert_eq!(first.peer(), second.peer(), "both clients choose the same node");
    sessions.extend([first, second]);
    for _ in 0..4 {
        sessions.push(one.acquire(&[], Some("tenant-7")).await.unwrap());
    }

    let mut names: Vec<&str> = sessions.iter().map(|session| session.peer()).collect();
    assert!(names[2] != names[0] && names[2] == names[3], "{names:?}");
    names.sort_unstable();
    assert_eq!(names, ["a", "a", "b", "b", "c", "c"]);
    assert!(one.acquire(&[], Some("tenant-7")).await.unwrap_err().is_no_room());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_wait_get_room_in_turn() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let busy = fleet(&server, "s").await;
    let session = busy.acquire(&[], None).await.unwrap();
    let mut waiting = Vec::new();
    let (order, mut turns) = tokio::sync::mpsc::unbounded_channel();
    for turn in 0..4 {
        let fleet = fleet(&server, "s").await;
        let order = order.clone();
        waiting.push(tokio::spawn(async move {
            let wait = Duration::from_secs(60);
            let mut session = fleet.acquire_within(&[], None, wait).await.unwrap();
            order.send(turn).unwrap();
            assert_echoes(&mut session).await;
        }));
        // The next one begins to wait later than this one.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A client that asks all the time gets nothing while others wait.
    let greedy = tokio::spawn(async move { while busy.acquire(&[], None).await.is_err() {} });

    drop(session);
    for task in waiting {
        task.await.unwrap();
    }

    let mut seen = Vec::new();
    while let Ok(turn) = turns.try_recv() {
        seen.push(turn);
    }
    assert_eq!(seen, [0, 1, 2, 3]);
    greedy.await.unwrap();
    node.wait_for_free(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_waiting_gives_its_place_up() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    let session = fleet.acquire(&[], None).await.unwrap();

    let wait = Duration::from_millis(300);
    let late = fleet.acquire_within(&[], None, wait).await.unwrap_err();
    drop(session);
    node.wait_for_free(1).await;

    assert!(late.is_no_room(), "{late}");
    let mut next = fleet.acquire_within(&[], None, Duration::from_secs(60)).await.unwrap();
    assert_echoes(&mut next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_waits_for_a_node_that_starts_later() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let client = fleet(&server, "s").await;
    let waiting = tokio::spawn(async move {
        client.acquire_within(&[label("gpu=a100")], None, Duration::from_secs(60)).await
    });

    // This one has room, and not the label.
    let _other = backend.node("s", "other", 1).start(&server.url()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let gpu = [label("gpu=a100")];
    let _node = backend.node("s", "n", 1).labels(&gpu).start(&server.url()).await.unwrap();

    let mut session = waiting.await.unwrap().unwrap();
    assert_eq!(session.peer(), "n");
    assert_echoes(&mut session).await;
}
