//! Calls of clients through the node, and what the server and the client learn.

use rustix::process::Signal;
use taskfork::error::End;

use crate::any_client::{self, death};
use crate::fixture::NodeServed;
use crate::support::{is_gone, signal, trial, until};

trial!(the_server_knows_who_calls, async || {
    let served = NodeServed::start().await;
    let checkout = served.client().checkout();
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let status = served.server.status().unwrap();
    let peer = status.workers[0].peer.clone().unwrap();
    assert_eq!(peer.to_string(), "NATS client named `tester`");
});

trial!(a_death_is_reported_with_its_cause, async || {
    let served = NodeServed::start().await;
    any_client::assert_a_death_is_reported(&served.client()).await;
});

trial!(a_call_that_was_not_read_has_not_run, async || {
    let served = NodeServed::start().await;
    let checkout = served.client().checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    signal(worker, Signal::STOP);
    let call = tokio::spawn(checkout.call::<i64>("add", (1, 2)));
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    // Without any notice of the server.
    signal(served.server.pid(), Signal::KILL);
    until("the worker's end", || is_gone(worker)).await;
    let (death, may_have_run) = death(call.await.unwrap());
    assert_eq!(death.end, End::Unknown, "there was a notice");
    assert!(!may_have_run);
});

trial!(a_cancelled_call_ends_its_worker, async || {
    let served = NodeServed::start().await;
    let checkout = served.client().checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = served.folder.path().join("runs");
    let call = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    until("the call", || marker.exists()).await;
    call.abort();
    drop(checkout);
    until("the worker's end", || is_gone(worker)).await;
});
