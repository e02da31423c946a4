//! Workers that are replaced though they do nothing wrong, and how many there can be.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use taskfork::client::Value;
use taskfork::error::FatalError;
use taskfork::server::ServerStatus;
use taskfork::{Client, Error, Server};

use crate::support::processes::{children, is_gone};
use crate::support::{address_in, programs, start, start_with, trial, until};

trial!(a_worker_is_replaced_after_max_calls_and_its_checkout, async || {
    let (_server, client) = start_with("max_calls", |client| client.max_workers(1));
    let mut pids = Vec::new();
    for _ in 0..3 {
        // The checkout keeps its worker for as long as it lasts.
        let checkout = client.checkout();
        let mut own = HashSet::new();
        for _ in 0..5 {
            own.insert(checkout.call::<u32>("pid", ()).await.unwrap());
        }
        assert_eq!(own.len(), 1);
        pids.extend(own);
    }
    assert_eq!(pids.iter().collect::<HashSet<_>>().len(), 3, "{pids:?}");
    for _ in 0..3 {
        pids.push(client.call::<u32>("pid", ()).await.unwrap());
    }
    assert_eq!(pids[3..].iter().collect::<HashSet<_>>().len(), 1, "{pids:?}");
});

trial!(no_call_is_lost_to_a_worker_that_leaves, async || {
    let (_server, client) = start("max_calls");
    let calls: Vec<_> = (0..300).map(|n| client.call::<i64>("add", (n, 1))).collect();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), number as i64 + 1);
    }
});

trial!(an_old_worker_is_replaced_between_checkouts, async || {
    let (_server, client) = start_with("max_age", |client| client.max_workers(1));
    let checkout = client.checkout();
    let first: u32 = checkout.call("pid", ()).await.unwrap();
    // Over its age, and held.
    checkout.call::<()>("sleep", (500,)).await.unwrap();
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), first);
    drop(checkout);
    until("the old worker is gone", || is_gone(first)).await;
    assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), first);
});

trial!(an_idle_worker_ends, async || {
    let (server, client) = start_with("max_idle", |client| client.max_workers(1));
    let began = Instant::now();
    let pid: u32 = client.call("pid", ()).await.unwrap();
    until("the idle worker is gone", || is_gone(pid)).await;
    assert!(began.elapsed() >= Duration::from_millis(100));
    // No other worker was requested. This one may wait to be reaped.
    assert!(children(server.pid()).iter().all(|&child| child == pid));
    // Work keeps one alive, whatever it takes.
    let checkout = client.checkout();
    checkout.call::<()>("sleep", (300,)).await.unwrap();
    checkout.call::<()>("nothing", ()).await.unwrap();
});

trial!(a_worker_that_has_grown_is_replaced, async || {
    let (_server, client) = start_with("max_memory", |client| client.max_workers(1));
    let small: u32 = client.call("pid", ()).await.unwrap();
    assert_eq!(client.call::<u32>("pid", ()).await.unwrap(), small);
    client.call::<()>("leak", (300_u64 << 20,)).await.unwrap();
    until("the grown worker is gone", || is_gone(small)).await;
    client.call::<()>("nothing", ()).await.unwrap();
});

trial!(clients_beyond_max_workers_are_served_in_turn, async || {
    let server = Server::spawn("max_workers").unwrap();
    let client = |timeout: u64| {
        let options = Client::builder().address(server.address()).min_workers(0).max_workers(4);
        options.timeout(Duration::from_millis(timeout)).build().unwrap()
    };
    let (first, second) = (client(20_000), client(300));
    let held = [first.checkout(), first.checkout()];
    for checkout in &held {
        checkout.call::<()>("nothing", ()).await.unwrap();
    }
    // A client that has workers goes on with them; one that has none says why.
    let queued = first.call::<Value>("echo", ("queued",));
    let error = second.call::<Value>("echo", (1,)).await.unwrap_err();
    let Error::Fatal { cause: FatalError::CannotConnect { reason, .. }, .. } = &error else {
        panic!("{error}")
    };
    let expected = "the server has no worker yet: it has all of its 2 workers (max_workers)";
    assert_eq!(reason.to_string(), expected);
    assert!(!error.may_have_run());
    drop(held);
    assert_eq!(queued.await.unwrap(), Value::from("queued"));
    drop(first);
    until("there is room", || children(server.pid()).is_empty()).await;
    second.call::<Value>("echo", (1,)).await.unwrap();
});

trial!(a_server_whose_workers_could_serve_nothing_does_not_start, async || {
    let error = Server::spawn("max_calls_none").unwrap_err().to_string();
    assert!(error.contains("the option `max_calls` cannot be so"), "{error}");
});

trial!(replaced_workers_are_counted_by_reason, async || {
    let folder = tempfile::tempdir().unwrap();
    let program = programs::start(&["serve_recycling", &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).min_workers(0).max_workers(1);
    let client = client.build().unwrap();
    let deaths = || ServerStatus::read(folder.path().join("s.status")).unwrap().deaths;
    let counted = async |reason: &str| {
        until(reason, || deaths().get(reason) == Some(&1)).await;
    };
    let checkout = client.checkout();
    for _ in 0..3 {
        checkout.call::<()>("nothing", ()).await.unwrap();
    }
    drop(checkout);
    counted("max_calls").await;
    client.call::<()>("leak", (300_u64 << 20,)).await.unwrap();
    counted("max_memory").await;
    client.call::<()>("nothing", ()).await.unwrap();
    counted("max_idle").await;
    let old = client.checkout();
    old.call::<()>("sleep", (4500,)).await.unwrap();
    drop(old);
    counted("max_age").await;
    assert_eq!(deaths().values().sum::<u64>(), 4, "{:?}", deaths());
    drop(program);
});
