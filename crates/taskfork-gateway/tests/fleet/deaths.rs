//! The ends of workers, servers and nodes, and whether a call may have run.

use std::time::Duration;

use rustix::process::Signal;
use taskfork::Error;
use taskfork::error::CallError;

use crate::any_client::{self, death};
use crate::fixture::{Fleet, HEARTBEAT, lost_node};
use crate::program::NodeProcess;
use crate::support::{is_gone, signal, trial, until};

trial!(a_death_is_reported_with_its_cause, async || {
    let (fleet, _node) = Fleet::with_node().await;
    any_client::assert_a_death_is_reported(&fleet.client()).await;
});

trial!(a_panic_is_an_error_of_its_call, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let checkout = fleet.client().checkout();
    let error = checkout.call::<i64>("add", (i64::MAX, 1)).await.unwrap_err();
    let Error::Call { error: CallError::Panic(panic), .. } = error else { panic!("{error:?}") };
    assert!(panic.message.contains("overflow"), "{panic:?}");
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(an_idle_death_is_replaced_without_an_error, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let client = fleet.client_builder().max_workers(1).build().unwrap();
    for _ in 0..3 {
        let pid: u32 = client.call("pid", ()).await.unwrap();
        signal(pid, Signal::KILL);
        until("the worker's end", || is_gone(pid)).await;
        assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), pid);
    }
});

/// The end of a call whose node does something while the call runs.
async fn during_a_call(change: impl FnOnce(&mut NodeProcess)) -> (String, Duration, bool) {
    let fleet = Fleet::start();
    let mut node = NodeProcess::start(&fleet, "one");
    let client = fleet.client();
    let checkout = client.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = fleet.folder.path().join("runs");
    let call = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    until("the call", || marker.exists()).await;
    change(&mut node);
    let lost = lost_node(call.await.unwrap());
    // Later calls of the checkout say the same, and have not run.
    let (node_name, _, may_have_run) = lost_node(checkout.call::<i64>("add", (1, 2)).await);
    assert_eq!((node_name, may_have_run), ("one".to_owned(), false));
    assert_eq!(client.stats().deaths.get("node_lost"), Some(&1));
    // A node with another name serves the client now.
    let _other = fleet.node("two", 8).start(&fleet.nats.url()).await.unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    drop(node);
    until("the worker's end", || is_gone(worker)).await;
    lost
}

trial!(a_killed_node_is_lost_within_two_heartbeats, async || {
    let (node, last_contact, may_have_run) = during_a_call(NodeProcess::kill).await;
    assert_eq!(node, "one");
    assert!(may_have_run);
    // The client looks at the time when it is due; a busy machine looks later.
    assert!(last_contact >= 2 * HEARTBEAT && last_contact < 60 * HEARTBEAT, "{last_contact:?}");
});

trial!(a_stopped_node_is_lost, async || {
    let lost = during_a_call(|node| signal(node.pid(), Signal::STOP)).await;
    assert_eq!((lost.0.as_str(), lost.2), ("one", true));
});

trial!(an_idle_connection_to_a_lost_node_is_replaced_without_an_error, async || {
    let fleet = Fleet::start();
    let mut node = NodeProcess::start(&fleet, "one");
    let client = fleet.client();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let _other = fleet.node("two", 8).start(&fleet.nats.url()).await.unwrap();
    node.kill();
    until("the loss", || client.stats().deaths.contains_key("node_lost")).await;
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(all_calls_that_were_sent_to_a_lost_node_may_have_run, async || {
    let fleet = Fleet::start();
    let mut node = NodeProcess::start(&fleet, "one");
    let checkout = fleet.client().checkout();
    let _: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = fleet.folder.path().join("runs");
    let first = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    until("the call", || marker.exists()).await;
    // It goes out behind the first one.
    let second = tokio::spawn(checkout.call::<i64>("add", (1, 2)));
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.kill();
    let (_, _, first) = lost_node(first.await.unwrap());
    let (_, _, second) = lost_node(second.await.unwrap());
    // The answers may have been on their way.
    assert_eq!([first, second], [true, true]);
});

trial!(a_node_that_drains_ends_its_sessions_with_a_reason, async || {
    let (fleet, node) = Fleet::with_node().await;
    let checkout = fleet.client().checkout();
    let _: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = fleet.folder.path().join("runs");
    let call = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    until("the call", || marker.exists()).await;
    node.drain(Duration::from_millis(50)).await;
    let (death, may_have_run) = death(call.await.unwrap());
    let reason = death.reason.unwrap();
    assert!(reason.contains("the node one has ended the session"), "{reason}");
    assert!(may_have_run);
});
