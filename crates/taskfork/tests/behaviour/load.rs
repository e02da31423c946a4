//! Many at once.

use std::collections::HashSet;
use std::time::Duration;

use taskfork::Client;

use crate::support::{address_in, programs, start_with, trial};

trial!(a_surge_of_200_checkouts_over_20_workers, async || {
    let (_server, client) = start_with("general", |client| client.min_workers(2).max_workers(20));
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let checkout = client.checkout();
            (checkout.call::<u32>("pid", ()), checkout.call::<()>("sleep", (5,)), checkout)
        })
        .collect();
    let mut pids = HashSet::new();
    for (pid, slept, _checkout) in calls {
        pids.insert(pid.await.unwrap());
        slept.await.unwrap();
        let stats = client.stats();
        assert!(stats.idle + stats.busy + stats.connecting <= 20, "{stats:?}");
    }
    assert!(pids.len() <= 20, "{}", pids.len());
});

trial!(ten_thousand_checkouts_wait_their_turn, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(2).timeout(None));
    let calls: Vec<_> = (0..10_000).map(|number| client.call::<i64>("add", (number, 1))).collect();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), number as i64 + 1);
    }
});

trial!(cancelling_in_the_middle_of_a_long_queue, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1).timeout(None));
    let busy = client.checkout();
    busy.ready().await.unwrap();
    let mut calls: Vec<_> =
        (0..10_000).map(|number| Some(client.call::<i64>("add", (number, 0)))).collect();
    for call in calls.iter_mut().step_by(2) {
        drop(call.take());
    }
    assert_eq!(client.stats().queued, 5000);
    drop(busy);
    for (number, call) in calls.into_iter().enumerate() {
        if let Some(call) = call {
            assert_eq!(call.await.unwrap(), number as i64);
        }
    }
});

trial!(a_server_restarted_under_load_loses_only_running_calls, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let mut program = programs::start(&["serve", &address]);
    let client = Client::builder().address(&address).max_workers(4).build().unwrap();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let (mut answered, mut lost) = (0, Vec::new());
                for _ in 0..200 {
                    match client.call::<i64>("add", (1, 1)).await {
                        Ok(_) => answered += 1,
                        Err(error) if error.may_have_run() => answered += 1,
                        Err(error) => lost.push(error.to_string()),
                    }
                }
                (answered, lost)
            })
        })
        .collect();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        program.kill().await;
        program = programs::start(&["serve", &address]);
    }
    for caller in callers {
        assert_eq!(caller.await.unwrap(), (200, Vec::new()));
    }
});

trial!(calls_time_out_one_by_one_while_others_go_on, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(5));
    let calls: Vec<_> = (0..12)
        .map(|number| {
            let checkout = client.checkout().timeout(Duration::from_millis(500));
            checkout.call::<()>(if number % 3 == 0 { "hang" } else { "nothing" }, ())
        })
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.is_ok(), number % 3 != 0, "call {number}");
    }
});
