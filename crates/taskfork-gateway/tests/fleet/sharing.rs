//! A full node shares its places: clients that have many lose some to clients that wait and have none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use futures_util::future::join_all;
use taskfork::Client;
use taskfork::client::NatsRoute;

use crate::direct::Served;
use crate::support::{trial, until};

const ROUTES: [NatsRoute; 2] = [NatsRoute::Relayed, NatsRoute::Direct];

/// A client that keeps all four places of the node, without using them.
async fn idle_client(served: &Served, route: NatsRoute) -> Client {
    let client = served.client_builder(route).name("idle").min_workers(4).build().unwrap();
    let checkouts: Vec<_> = (0..4).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        checkout.ready().await.unwrap();
    }
    drop(checkouts);
    until("idle workers", || client.stats().idle == 4).await;
    client
}

trial!(idle_workers_make_room_for_a_client_that_waits, async || {
    for route in ROUTES {
        let served = Served::with_direct().await;
        let idle = idle_client(&served, route).await;

        let client = served.client_builder(route).name("waits").timeout(None).build().unwrap();
        assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);

        // It has lost one worker, which it does not get back while the other one has only one.
        assert_eq!(idle.call::<i64>("add", (1, 2)).await.unwrap(), 3);
        assert_eq!(idle.stats().deaths.values().sum::<u64>(), 1, "{:?}", idle.stats());
    }
});

trial!(idle_workers_of_one_pool_make_room_for_another_of_the_same_client, async || {
    let served = Served::with_direct().await;
    let idle = idle_client(&served, NatsRoute::Relayed).await;
    let other = idle.by_key("tenant-7").unwrap();
    assert_eq!(other.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(workers_in_use_make_room_after_their_checkouts_and_no_call_is_lost, async || {
    for route in ROUTES {
        let served = Served::with_direct().await;
        let busy = served.client_builder(route).name("busy").timeout(None).build().unwrap();
        let (is_over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let loops = (0..8).map(|_| {
            let (busy, is_over, calls) = (busy.clone(), is_over.clone(), calls.clone());
            tokio::spawn(async move {
                while !is_over.load(SeqCst) {
                    assert_eq!(busy.call::<i64>("add", (1, 2)).await.unwrap(), 3);
                    calls.fetch_add(1, SeqCst);
                }
            })
        });
        let loops: Vec<_> = loops.collect();
        until("busy workers", || busy.stats().connected == 4 && calls.load(SeqCst) > 100).await;

        // The second one waits behind calls of its own client and of the other one.
        for name in ["first", "second"] {
            let client = served.client_builder(route).name(name).timeout(None).build().unwrap();
            assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
        }
        is_over.store(true, SeqCst);
        for ended in join_all(loops).await {
            ended.unwrap();
        }
    }
});

trial!(a_client_with_one_worker_keeps_it, async || {
    let served = Served::start(|nats| nats.sessions(1), |gateway, _| gateway).await;
    let client = || served.client_builder(NatsRoute::Relayed).build().unwrap();
    let (one, other) = (client(), client());
    let checkout = one.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let waiting = tokio::spawn(other.call::<u32>("pid", ()));
    until("the other one waits", || other.stats().unreachable.is_some()).await;
    // The worker stays as long as its checkout, whoever waits.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), worker);
    assert!(!waiting.is_finished());
    drop(checkout);
    assert_ne!(waiting.await.unwrap().unwrap(), worker);
});
