//! Full nodes make room for clients that wait and have no sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use taskfork_nats::{Holder, NodeBuilder, Route};
use tokio::io::copy_bidirectional;

use crate::backend::{Backend, LONG, assert_echoes, fleet, wait_until};
use crate::server::NatsServer;

/// A node whose sessions are never in use. It counts those that leave.
fn unused(node: NodeBuilder, left: &Arc<AtomicUsize>) -> NodeBuilder {
    let left = Arc::clone(left);
    node.relay(move |mut accepted| {
        let left = Arc::clone(&left);
        async move {
            let usage = accepted.usage().clone();
            usage.set_used(false);
            tokio::select! {
                _ = copy_bidirectional(&mut accepted.session, &mut accepted.stream) => {}
                () = usage.leaves() => { left.fetch_add(1, Ordering::SeqCst); }
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_of_many_makes_room_for_a_client() {
    let (server, backend, left) = (NatsServer::start(), Backend::echo(), Arc::default());
    let mut nodes = Vec::new();
    for name in ["one", "two", "three"] {
        let node = unused(backend.node("s", name, 2), &left);
        nodes.push(node.start(&server.url()).await.unwrap());
    }
    let (full, waiting) = (fleet(&server, "s").await, fleet(&server, "s").await);
    let mut sessions = Vec::new();
    for _ in 0..6 {
        sessions.push(full.acquire_within(&[], None, LONG).await.unwrap());
    }
    assert!(full.acquire(&[], None).await.is_err());

    assert_echoes(&mut waiting.acquire_within(&[], None, LONG).await.unwrap()).await;
    assert_eq!(left.load(Ordering::SeqCst), 1);
    drop(nodes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_make_room_leaves_it_to_others() {
    let (server, backend, left) = (NatsServer::start(), Backend::echo(), Arc::default());
    // Those of the first one could be in use: nobody says.
    let unknown = backend.node("s", "unknown", 3).start(&server.url()).await.unwrap();
    let unused = unused(backend.node("s", "unused", 1), &left).start(&server.url()).await.unwrap();
    let full = fleet(&server, "s").await;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(full.acquire_within(&[], None, LONG).await.unwrap());
    }
    unknown.wait_for_free(0).await;
    unused.wait_for_free(0).await;

    for turn in 1..4 {
        let session = fleet(&server, "s").await.acquire_within(&[], None, LONG).await.unwrap();
        assert_eq!(session.peer(), "unused");
        assert_eq!(left.load(Ordering::SeqCst), turn);
        // It goes on, and makes room for the next one.
        sessions.push(session);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_counts_its_sessions() {
    let (server, backend) = (NatsServer::start(), Backend::echo());
    let _node = backend.node("s", "n", 2).start(&server.url()).await.unwrap();
    let (fleet, holder) = (fleet(&server, "s").await, Holder::new());
    let acquired = fleet.acquire_by(&holder, &[], None, None, Route::Relayed).await.unwrap();
    let other = fleet.acquire(&[], None).await.unwrap();
    assert_eq!(holder.sessions(), 1, "the other one is not its own");
    drop((acquired, other));
    wait_until("the end of the session", || holder.sessions() == 0).await;
}
