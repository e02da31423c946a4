//! More or fewer workers while a client is in use.

use taskfork::client::{ConfigError, Stats};
use taskfork::{Checkout, Client, blocking};

use crate::support::processes::is_gone;
use crate::support::{start_with, trial, until};

async fn hold(client: &Client, count: usize) -> Vec<Checkout> {
    let checkouts: Vec<_> = (0..count).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        checkout.ready().await.unwrap();
    }
    checkouts
}

async fn pid(checkout: &Checkout) -> u32 {
    checkout.call("pid", ()).await.unwrap()
}

trial!(a_smaller_client_closes_idle_workers_at_once, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(4));
    let held = hold(&client, 4).await;
    let mut pids = Vec::new();
    for checkout in &held {
        pids.push(pid(checkout).await);
    }
    drop(held);
    assert_eq!(client.stats().idle, 4);
    client.resize(0, 1).unwrap();
    assert_eq!(client.stats().idle, 1);
    let gone = || pids.iter().filter(|&&pid| is_gone(pid)).count() == 3;
    until("three workers are gone", gone).await;
    assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
    assert_eq!(client.stats().deaths.len(), 0, "the client has closed them itself");
});

trial!(held_workers_leave_at_the_end_of_their_checkouts_and_no_call_fails, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(4).timeout(None));
    let mut held = hold(&client, 4).await;
    let waiting: Vec<_> = (0..20_i64).map(|x| client.call::<i64>("add", (x, 1))).collect();
    client.resize(0, 2).unwrap();
    for checkout in &held {
        assert_eq!(checkout.call::<i64>("add", (1, 1)).await.unwrap(), 2);
    }
    let busy = |stats: Stats| (stats.busy, stats.queued);
    held.truncate(3);
    assert_eq!(busy(client.stats()), (3, 20));
    held.truncate(2);
    assert_eq!(busy(client.stats()), (2, 20));
    drop(held);
    for (x, call) in (1..).zip(waiting) {
        assert_eq!(call.await.unwrap(), x);
    }
    assert_eq!(client.stats().idle + client.stats().busy, 2);
});

trial!(a_larger_client_connects_at_once_what_is_missing, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1).timeout(None));
    let held = client.checkout();
    held.ready().await.unwrap();
    let waiting = client.call::<i64>("add", (2, 3));
    client.resize(3, 4).unwrap();
    // The first checkout still has its worker.
    assert_eq!(waiting.await.unwrap(), 5);
    until("three workers are connected", || client.stats().idle == 2).await;
    drop(held);
    assert_eq!(client.stats().idle, 3);
});

trial!(impossible_sizes_change_nothing, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(2));
    assert_eq!(client.resize(0, 0), Err(ConfigError::NoWorkers));
    let error = ConfigError::MaxBelowMin { min_workers: 3, max_workers: 2 };
    assert_eq!(client.resize(3, 2), Err(error));
    drop(hold(&client, 2).await);
    assert_eq!(client.stats().idle, 2);
});

trial!(a_client_for_threads_changes_too, async || {
    let work = || {
        let server = taskfork::Server::spawn("general").unwrap();
        let options = blocking::Client::builder().address(server.address()).min_workers(0);
        let client = options.max_workers(1).build_blocking().unwrap();
        let held = client.checkout();
        held.ready().unwrap();
        assert!(client.resize(0, 0).is_err());
        client.resize(0, 2).unwrap();
        assert_eq!(client.with_priority(1).call::<i64>("add", (2, 3)).unwrap(), 5);
    };
    tokio::task::spawn_blocking(work).await.unwrap();
});
