//! Which of the checkouts that wait gets the next worker.

use std::time::Duration;

use taskfork::client::Overload;
use taskfork::error::FatalError;
use taskfork::{Client, Error};

use crate::support::{start_with, trial};

/// In which place the worker ran each of these calls.
async fn places<const N: usize>(client: Client, calls: [taskfork::Call<u64>; N]) -> [u64; N] {
    let mut places = [0; N];
    for (place, call) in places.iter_mut().zip(calls) {
        *place = call.await.unwrap();
    }
    assert_eq!(client.stats().queued, 0);
    let first = *places.iter().min().unwrap();
    places.map(|place| place - first)
}

trial!(a_higher_priority_is_served_first_and_equal_ones_in_order, async || {
    let options = |client: taskfork::client::ClientBuilder| {
        client.max_workers(1).timeout(None).priority_aging(Duration::from_secs(1000))
    };
    let (_server, client) = start_with("map", options);
    let held = client.checkout();
    held.ready().await.unwrap();
    let (low, high) = (client.with_priority(-1), client.with_priority(3));
    let calls =
        [&low, &client, &high, &low, &client, &high].map(|client| client.call::<u64>("turn", ()));
    drop(held);
    assert_eq!(places(client, calls).await, [4, 2, 0, 5, 3, 1]);
});

trial!(waiting_makes_up_for_a_lower_priority, async || {
    let options = |client: taskfork::client::ClientBuilder| {
        client.max_workers(1).timeout(None).priority_aging(Duration::from_millis(1))
    };
    let (_server, client) = start_with("map", options);
    let held = client.checkout();
    held.ready().await.unwrap();
    let old = client.call::<u64>("turn", ());
    tokio::time::sleep(Duration::from_millis(20)).await;
    // It counts as 10 milliseconds older than it is.
    let new = client.with_priority(10).call::<u64>("turn", ());
    drop(held);
    assert_eq!(places(client, [old, new]).await, [0, 1]);
});

trial!(a_full_queue_drops_the_oldest_of_the_lowest_priority, async || {
    let options = |client: taskfork::client::ClientBuilder| {
        client.max_workers(1).timeout(None).max_queue(2).overload(Overload::DropOldest)
    };
    let (_server, client) = start_with("map", options);
    let held = client.checkout();
    held.ready().await.unwrap();
    let high = client.with_priority(1);
    let first = high.call::<u64>("turn", ());
    let second = client.call::<u64>("turn", ());
    let third = high.call::<u64>("turn", ());
    let is_overload =
        |error: Error| matches!(error, Error::Fatal { cause: FatalError::Overloaded { .. }, .. });
    assert!(is_overload(second.await.unwrap_err()), "its priority is the lowest");
    let lower = client.call::<u64>("turn", ());
    assert!(is_overload(lower.await.unwrap_err()), "all others have a higher one");
    drop(held);
    assert_eq!(places(client, [first, third]).await, [0, 1]);
});
