//! Streams of calls, one for each item.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use taskfork::client::ClientBuilder;
use taskfork::{BoxError, Client, Error, Methods, ServerBuilder, ServerError};

use crate::support::processes::is_gone;
use crate::support::{start, start_with, trial, until};

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("late", |number: u64, milliseconds: u64| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(number)
        })
        .function("even", |number: u64| -> Result<u64, BoxError> {
            if number % 2 == 1 { Err(format!("{number} is odd").into()) } else { Ok(number) }
        })
        .function("turn", || {
            static TURNS: AtomicU64 = AtomicU64::new(0);
            Ok(TURNS.fetch_add(1, Ordering::Relaxed))
        })
        .function("hang", |path: String| -> Result<(), BoxError> {
            std::fs::write(path, std::process::id().to_string())?;
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
    server.interface(methods).run()
}

trial!(results_come_in_the_order_of_the_items, async || {
    let (_server, client) = start("map");
    // The first takes longest.
    let make = |client: &Client, number| client.call::<u64>("late", (number, 30 - number));
    let mut results = client.map(0..30_u64, make).concurrency(3);
    for number in 0..30 {
        assert_eq!(results.next().await.unwrap().unwrap(), number);
    }
    assert!(results.next().await.is_none());
    assert!(results.next().await.is_none());
});

trial!(results_come_as_they_are_there_if_order_does_not_matter, async || {
    let (_server, client) = start("map");
    let make = |client: &Client, number| {
        // The first one ends when the others have.
        let checkout = client.checkout();
        let time = if number == 0 { 60_000_u64 } else { 0 };
        let call = checkout.call::<u64>("late", (number, time));
        async move {
            let result = call.await;
            drop(checkout);
            result
        }
    };
    let mut results = client.map(0..10_u64, make).concurrency(2).unordered();
    let mut others = BTreeSet::new();
    while others.len() < 9 {
        others.insert(results.next().await.unwrap().unwrap());
    }
    assert_eq!(others, (1..10).collect());
});

trial!(an_error_is_an_item_and_the_stream_goes_on, async || {
    let (_server, client) = start_with("map", |client| client.reuse_after_error(true));
    let mut results = client.map(0..20_u64, |client, number| client.call::<u64>("even", (number,)));
    for number in 0..20 {
        let result = results.next().await.unwrap();
        match number % 2 {
            0 => assert_eq!(result.unwrap(), number),
            _ => assert_eq!(result.unwrap_err().to_string(), format!("{number} is odd")),
        }
    }
    assert!(results.next().await.is_none());
});

/// How many items a stream takes before its first result is there.
async fn taken(options: impl FnOnce(ClientBuilder) -> ClientBuilder, most: Option<usize>) -> usize {
    let (_server, client) = start_with("map", options);
    let taken = Rc::new(Cell::new(0));
    let counted = taken.clone();
    let items = (0..100_u64).inspect(move |_| counted.set(counted.get() + 1));
    let mut results = client.map(items, |client, number| client.call::<u64>("late", (number, 20)));
    if let Some(most) = most {
        results = results.concurrency(most);
    }
    assert_eq!(taken.get(), 0, "it has begun by itself");
    results.next().await.unwrap().unwrap();
    taken.get()
}

trial!(items_are_taken_when_they_may_begin, async || {
    assert_eq!(taken(|client| client.max_workers(3), None).await, 3);
    assert_eq!(taken(|client| client.max_workers(3), Some(7)).await, 7);
    assert_eq!(taken(|client| client.max_workers(3), Some(0)).await, 1);
});

trial!(a_result_that_waits_for_an_earlier_one_counts, async || {
    let (_server, client) = start("map");
    let taken = Rc::new(Cell::new(0));
    let counted = taken.clone();
    let items = (0..100_u64).inspect(move |_| counted.set(counted.get() + 1));
    let mut results = client
        .map(items, |client, number| {
            let time = if number == 0 { 60_000_u64 } else { 0 };
            client.call::<u64>("late", (number, time))
        })
        .concurrency(4);
    let next = tokio::time::timeout(Duration::from_millis(300), results.next()).await;
    assert!(next.is_err());
    assert_eq!(taken.get(), 4);
});

trial!(dropping_the_stream_ends_the_calls, async || {
    let (_server, client) = start("map");
    let folder = tempfile::tempdir().unwrap();
    let path = |number| folder.path().join(number).display().to_string();
    let mut results =
        client.map(["a", "b"], |client, number| client.call::<()>("hang", (path(number),)));
    let pid = |number| std::fs::read_to_string(path(number)).ok()?.parse::<u32>().ok();
    let both = || pid("a").is_some() && pid("b").is_some();
    tokio::select! {
        _ = results.next() => panic!("a hung call has a result"),
        () = until("both run", both) => {}
    }
    drop(results);
    for number in ["a", "b"] {
        let pid = pid(number).unwrap();
        until("the worker is gone", || is_gone(pid)).await;
    }
});

/// A stream can be sent to another thread: this must compile.
fn _is_send(client: Client) -> impl Send {
    client.map(0..3, |client, x| client.call::<i64>("late", (x, 0)))
}

trial!(threads_get_an_iterator, async || {
    let work = || {
        let server = taskfork::Server::spawn("map").unwrap();
        let options = taskfork::blocking::Client::builder().address(server.address());
        let client = options.build_blocking().unwrap();
        let make = |client: &Client, number| client.call::<u64>("even", (number,));
        let results = client.map([0, 2, 4, 5, 6], make).concurrency(2);
        assert_eq!(results.size_hint(), (5, Some(5)));
        let error = results.collect::<Result<Vec<_>, _>>().unwrap_err();
        assert_eq!(error.to_string(), "5 is odd");
        let results = client.map([0, 2, 4], make).unordered().map(Result::unwrap);
        assert_eq!(results.collect::<BTreeSet<_>>(), [0, 2, 4].into());
    };
    tokio::task::spawn_blocking(work).await.unwrap();
});

trial!(a_stream_can_give_the_items, async || {
    let (_server, client) = start("map");
    let first = client.map(0..20_u64, |client, x| client.call::<u64>("late", (x * 2, 1)));
    let make = |client: &Client, number: Result<u64, Error>| {
        client.call::<u64>("even", (number.unwrap(),))
    };
    let mut second = client.map_stream(first, make).concurrency(2);
    for number in 0..20 {
        assert_eq!(second.next().await.unwrap().unwrap(), number * 2);
    }
    assert!(second.next().await.is_none());
});
