//! More checkouts than may wait, and servers that are not where they were.

use std::time::Duration;

use taskfork::client::{Address, Overload, Value};
use taskfork::error::FatalError;
use taskfork::{Client, Error, Server};

use crate::support::programs;
use crate::support::{address_in, start_with, trial, until};

fn queued(error: &Error) -> usize {
    match error {
        Error::Fatal { cause: FatalError::Overloaded { queued }, may_have_run: false, .. } => {
            *queued
        }
        other => panic!("{other}"),
    }
}

trial!(with_the_queue_full_the_newest_is_refused, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1).max_queue(2));
    let held = client.checkout();
    held.ready().await.unwrap();
    let waiting = [1, 2].map(|number| client.call::<i64>("add", (number, 0)));
    let error = client.call::<i64>("add", (3, 0)).await.unwrap_err();
    assert_eq!(queued(&error), 2);
    assert_eq!(error.to_string(), "overloaded: 2 checkouts wait already (max_queue)");
    drop(held);
    for (call, number) in waiting.into_iter().zip(1..) {
        assert_eq!(call.await.unwrap(), number);
    }
    client.call::<i64>("add", (4, 0)).await.unwrap();
});

trial!(with_the_queue_full_the_oldest_makes_room, async || {
    let (_server, client) = start_with("general", |client| {
        client.max_workers(1).max_queue(2).overload(Overload::DropOldest)
    });
    let held = client.checkout();
    held.ready().await.unwrap();
    let [first, second, third] = [1, 2, 3].map(|number| client.call::<i64>("add", (number, 0)));
    assert_eq!(queued(&first.await.unwrap_err()), 2);
    drop(held);
    assert_eq!((second.await.unwrap(), third.await.unwrap()), (2, 3));
});

trial!(without_a_queue_checkouts_fail_at_once, async || {
    for overload in [Overload::RefuseNewest, Overload::DropOldest] {
        let (_server, client) = start_with("general", |client| {
            client.min_workers(1).max_workers(1).max_queue(0).overload(overload)
        });
        until("a worker is there", || client.stats().idle == 1).await;
        let held = client.checkout();
        held.call::<()>("nothing", ()).await.unwrap();
        assert_eq!(queued(&client.call::<()>("nothing", ()).await.unwrap_err()), 0);
    }
});

trial!(checkouts_for_which_workers_are_connected_are_not_in_the_queue, async || {
    let (_server, client) =
        start_with("general", |client| client.min_workers(0).max_workers(3).max_queue(1));
    let held = [(); 3].map(|()| client.checkout());
    let waits = client.call::<i64>("add", (1, 0));
    assert_eq!(queued(&client.call::<i64>("add", (2, 0)).await.unwrap_err()), 1);
    for checkout in held {
        checkout.call::<()>("nothing", ()).await.unwrap();
    }
    assert_eq!(waits.await.unwrap(), 1);
});

trial!(a_checkout_whose_time_is_over_gets_no_worker, async || {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ran").display().to_string();
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let late: Vec<_> = (0..50)
        .map(|number| {
            let checkout = client.checkout().timeout(Duration::from_millis(number % 20));
            checkout.call::<()>("append", (&file, "x"))
        })
        .collect();
    let mut ran = 0;
    for call in late {
        match call.await {
            Ok(()) => ran += 1,
            Err(error) => ran += usize::from(error.may_have_run()),
        }
    }
    client.call::<()>("nothing", ()).await.unwrap();
    let written = std::fs::read_to_string(&file).unwrap_or_default().len();
    assert!(written <= ran, "{written} ran, and {ran} were told so");
});

trial!(the_next_address_is_tried, async || {
    let server = Server::spawn("general").unwrap();
    let missing = Address::unix("/nonexistent/s").unwrap();
    let client = Client::builder().addresses([missing, server.address()]);
    let client = client.max_workers(1).build().unwrap();
    assert_eq!(client.call::<Value>("echo", (1,)).await.unwrap(), Value::from(1));
});

trial!(a_server_that_moved_is_found, async || {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [here, there] = [0, 1].map(|index: usize| address_in(&folders[index]));
    let client = Client::builder().addresses([&*here, &*there]).min_workers(0);
    let client = client.max_workers(1).build().unwrap();
    let first = programs::start(&["serve", &here]);
    client.call::<()>("nothing", ()).await.unwrap();
    drop(first);
    let _second = programs::start(&["serve", &there]);
    until("the connection's end is seen", || client.stats().idle == 0).await;
    client.call::<()>("nothing", ()).await.unwrap();
});

trial!(with_no_address_answering_all_are_named, async || {
    let client = Client::builder().addresses(["unix:/nonexistent/a", "unix:/nonexistent/b"]);
    let client = client.timeout(Duration::from_millis(100)).build().unwrap();
    let error = client.call::<()>("nothing", ()).await.unwrap_err().to_string();
    assert!(error.contains("at unix:/nonexistent/a or unix:/nonexistent/b"), "{error}");
    assert!(error.contains("unix:/nonexistent/a: No such file"), "{error}");
    assert!(error.contains("unix:/nonexistent/b: No such file"), "{error}");
});
