//! The ends of workers, servers and gateways, and whether a call may have run.

use std::time::Duration;

use rustix::process::Signal;
use taskfork::error::End;
use taskfork::{Blob, Client};

use crate::any_client::{self, death};
use crate::program;
use crate::support::{Served, client_builder, is_gone, signal, trial, until};

trial!(a_death_is_reported_with_its_cause, async || {
    let served = Served::start().await;
    any_client::assert_a_death_is_reported(&served.client()).await;
});

trial!(the_calls_behind_a_death_have_not_run, async || {
    let served = Served::start().await;
    let checkout = served.client().checkout();
    let calls = [(); 3].map(|()| checkout.call::<()>("exit", (1,)));
    let mut ran = Vec::new();
    for call in calls {
        ran.push(death(call.await).1);
    }
    assert_eq!(ran, [true, false, false]);
});

trial!(an_idle_death_is_replaced_without_an_error, async || {
    let served = Served::start().await;
    let client = served.client_builder().max_workers(1).build().unwrap();
    for _ in 0..5 {
        let pid: u32 = client.call("pid", ()).await.unwrap();
        signal(pid, Signal::KILL);
        assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), pid);
    }
});

/// Ends a server without any notice to its clients, and its workers with it.
async fn kill_server(served: &Served, worker: u32) {
    signal(served.server.pid(), Signal::KILL);
    until("the worker's end", || is_gone(worker)).await;
}

trial!(a_call_that_was_not_read_has_not_run, async || {
    for milliseconds in [0, 1, 100] {
        let served = Served::start().await;
        let checkout = served.client().checkout();
        let worker: u32 = checkout.call("pid", ()).await.unwrap();
        signal(worker, Signal::STOP);
        let call = tokio::spawn(checkout.call::<i64>("add", (1, 2)));
        // Wherever the call is by now, the worker cannot read it.
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        kill_server(&served, worker).await;
        let (death, may_have_run) = death(call.await.unwrap());
        assert_eq!(death.end, End::Unknown, "there was a notice");
        assert!(!may_have_run, "after {milliseconds} ms");
    }
});

trial!(a_call_that_was_read_may_have_run, async || {
    let served = Served::start().await;
    let checkout = served.client().checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = served.folder.path().join("runs");
    let call = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    until("the call", || marker.exists()).await;
    kill_server(&served, worker).await;
    let (death, may_have_run) = death(call.await.unwrap());
    assert_eq!(death.end, End::Unknown, "there was a notice");
    assert!(may_have_run);
});

trial!(only_the_first_of_several_calls_that_were_read_may_have_run, async || {
    let served = Served::start().await;
    let checkout = served.client().checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = served.folder.path().join("runs");
    let first = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    let second = tokio::spawn(checkout.call::<i64>("add", (1, 2)));
    until("the call", || marker.exists()).await;
    kill_server(&served, worker).await;
    let ran = [death(first.await.unwrap()).1, death(second.await.unwrap()).1];
    assert_eq!(ran, [true, false]);
});

/// A client of a gateway in a process of its own.
async fn through_a_process(served: &Served) -> (program::Process, Client) {
    let identity = served.authority.issue(&["localhost"]);
    let process = program::Process::start(&served.server.address().to_string(), &identity).await;
    let client = client_builder(process.address, &served.authority).build().unwrap();
    (process, client)
}

trial!(the_calls_of_a_killed_gateway_end_and_so_do_their_workers, async || {
    let served = Served::start().await;
    let (mut process, client) = through_a_process(&served).await;
    let checkout = client.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = served.folder.path().join("runs");
    let call = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    until("the call", || marker.exists()).await;
    process.kill();
    let error = call.await.unwrap().unwrap_err();
    assert!(error.is_fatal() && error.may_have_run(), "{error:?}");
    until("the worker's end", || is_gone(worker)).await;
    // Other gateways of the server are not concerned.
    assert_eq!(served.client().call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

// The server sends no notice into the middle of an answer.
trial!(the_calls_behind_an_answer_that_was_cut_have_not_run, async || {
    let served = Served::start().await;
    let (process, client) = through_a_process(&served).await;
    let checkout = client.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let file = |name| served.folder.path().join(name);
    let (runs, go) = (file("runs"), file("go"));
    let first = checkout.call::<Blob>("make_after", (&runs, &go, 50 << 20));
    let first = tokio::spawn(first);
    let second = tokio::spawn(checkout.call::<i64>("add", (1, 2)));
    until("the call", || runs.exists()).await;
    signal(process.pid(), Signal::STOP);
    std::fs::write(go, "").unwrap();
    // Most likely the worker waits for room by then. If it has not begun to write, there is a notice.
    tokio::time::sleep(Duration::from_millis(200)).await;
    signal(worker, Signal::KILL);
    until("the worker's end", || is_gone(worker)).await;
    signal(process.pid(), Signal::CONT);
    let ran = [death(first.await.unwrap()).1, death(second.await.unwrap()).1];
    assert_eq!(ran, [true, false]);
});

trial!(the_worker_of_a_killed_client_ends, async || {
    let served = Served::start().await;
    let marker = served.folder.path().join("worker");
    let mut client = program::start_client(served.gateway.address, &served.authority, &marker);
    let mut worker = None;
    until("the call", || {
        worker = std::fs::read_to_string(&marker).ok().and_then(|pid| pid.parse::<u32>().ok());
        worker.is_some()
    })
    .await;
    client.kill();
    until("the worker's end", || is_gone(worker.unwrap())).await;
});
