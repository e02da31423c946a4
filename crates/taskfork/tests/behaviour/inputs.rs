//! Calls whose callers stream an input.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use taskfork::blob::{BlobMut, OpenFile};
use taskfork::client::{Input, Protocol, Value};
use taskfork::error::{CallError, FatalError, TimeoutOption};
use taskfork::{Blob, Client, Error};
use tokio::sync::mpsc;

use crate::support::inputs::{InputsBlockingCalls, InputsCalls, InputsClient, channel, iter};
use crate::support::raw::{Raw, map, text};
use crate::support::{address_in, programs, start, start_with, trial, until};

/// The items that are sent through a channel with room for one, so that a sender knows what has been taken.
struct Narrow(mpsc::Receiver<u64>);

impl Stream for Narrow {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<u64>> {
        self.0.poll_recv(context)
    }
}

/// Makes a call of this input, and drops it once the method has begun and so many numbers were taken.
async fn drop_behind(count: u64, call: impl FnOnce(Narrow) -> taskfork::Call<u64>) {
    let (sender, numbers) = mpsc::channel(1);
    let call = call(Narrow(numbers));
    tokio::select! {
        ended = call => panic!("the input goes on: {ended:?}"),
        () = async {
            for number in 0..count {
                sender.send(number).await.unwrap();
            }
            // Nothing is taken before the method has begun.
            drop(sender.reserve().await.unwrap());
        } => {}
    }
    assert!(sender.is_closed());
}

/// A client with one worker.
fn single(entry: &str) -> (taskfork::server::ServerHandle, Client) {
    start_with(entry, |client| client.max_workers(1))
}

#[derive(Debug)]
struct Own;

impl fmt::Display for Own {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the disk is gone")
    }
}

impl std::error::Error for Own {}

trial!(a_method_gets_all_items_in_order, async || {
    for entry in ["inputs", "inputs_tcp"] {
        let (_server, client) = start(entry);
        let sum = (0..100_000).sum::<u64>();
        assert_eq!(client.sum(1, iter(0..100_000)).await.unwrap(), sum + 1);
        let checkout = client.checkout();
        for _ in 0..40 {
            assert_eq!(checkout.sum_of(iter([1, 2, 3]), 4).await.unwrap(), 10);
            assert_eq!(checkout.sum(7, iter(0..0)).await.unwrap(), 7);
        }
        let input = Input::iter([1_u64, 2]);
        assert_eq!(checkout.call_with_input::<u64>("sum", (3,), input).await.unwrap(), 6);
        // Items that come one at a time.
        let (sender, numbers) = channel();
        let sends = tokio::spawn(async move {
            for number in 0..100 {
                sender.send(number).unwrap();
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(checkout.sum(0, numbers).await.unwrap(), 4950);
        sends.await.unwrap();
    }
});

trial!(an_input_and_a_stream_of_results_go_on_together, async || {
    for entry in ["inputs", "inputs_tcp"] {
        let (_server, client) = start(entry);
        let texts = (0..3000).map(|number: usize| "x".repeat(number % 1000));
        let mut lengths = client.lengths(iter(texts), 2);
        for number in 0..3000 {
            for _ in 0..2 {
                assert_eq!(lengths.next().await.unwrap(), Some(number % 1000));
            }
        }
        assert_eq!(lengths.next().await.unwrap(), None);
        assert_eq!(lengths.finish().await.unwrap(), 3000);
        // Each is sent back while nothing else is there.
        let (sender, texts) = channel();
        let checkout = client.checkout();
        let mut lengths = checkout.lengths(texts, 1);
        for number in 0..100 {
            sender.send("x".repeat(number)).unwrap();
            assert_eq!(lengths.next().await.unwrap(), Some(number));
        }
        drop(sender);
        assert_eq!(lengths.finish().await.unwrap(), 100);
        let input = Input::iter(["four"]);
        let lengths = checkout.stream_with_input::<usize, usize>("lengths", (5,), input);
        assert_eq!(lengths.finish().await.unwrap(), 1);
    }
});

trial!(a_blocking_client_passes_iterators, async || {
    let (server, _client) = start("inputs");
    let address = server.address().clone();
    let blocking = tokio::task::spawn_blocking(move || {
        let client = Client::builder().address(address).build_blocking().unwrap();
        let sum = InputsBlockingCalls::sum(&client, 1, 0..10_000).unwrap();
        let checkout = client.checkout();
        let rows = vec![Ok(1), Err(Own), Ok(2)];
        let error = InputsBlockingCalls::sum(&checkout, 1, rows).unwrap_err();
        let texts = ["a", "bb"].map(str::to_owned);
        let lengths: Result<Vec<usize>, _> =
            InputsBlockingCalls::lengths(&checkout, texts, 1).collect();
        let input = Input::iter([4_u64]);
        let untyped: u64 = checkout.call_with_input("sum", (3,), input).unwrap();
        (sum, error, lengths.unwrap(), untyped)
    });
    let (sum, error, lengths, untyped) = blocking.await.unwrap();
    assert_eq!((sum, lengths, untyped), (49_995_001, vec![1, 2], 7));
    assert!(error.to_string().contains("the disk is gone"), "{error}");
});

trial!(large_items_and_blobs_reach_the_method, async || {
    for entry in ["inputs", "inputs_tcp"] {
        let (_server, client) = start(entry);
        let checkout = client.checkout();
        let texts = (0..3).map(|number| "x".repeat((9 << 20) + number));
        let mut lengths = checkout.lengths(iter(texts), 1);
        for number in 0..3 {
            assert_eq!(lengths.next().await.unwrap(), Some((9 << 20) + number));
        }
        lengths.finish().await.unwrap();
        // Memory is shared from the first answer on.
        for _ in 0..3 {
            let lengths = [1, 100_000, 5 << 20, 0, 3 << 20, 200_000, 4 << 20, 16 << 10];
            let blobs = lengths.into_iter().enumerate().map(|(number, length)| {
                let bytes = vec![number as u8; length];
                if number % 2 == 0 {
                    return Blob::from(bytes);
                }
                let mut blob = BlobMut::new(length).unwrap();
                blob.copy_from_slice(&bytes);
                blob.freeze().unwrap()
            });
            let found = checkout.blobs(iter(blobs.collect::<Vec<_>>())).await.unwrap();
            for (number, length) in lengths.into_iter().enumerate() {
                let first = (length > 0).then_some(number as u8);
                assert_eq!(found[number], (length, first), "{entry}");
            }
        }
    }
});

trial!(a_client_that_is_ahead_of_its_worker_waits, async || {
    let (_server, client) = single("inputs");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("go");
    // What the window holds, and the item that exceeds it. They are so short that the socket takes more.
    const ITEMS: usize = (256 << 10) / (256 + 100) + 1;
    // Each descriptor counts as 4,096 bytes.
    const FILES: usize = (256 << 10) / 4096;
    for (what, count, most) in [("texts", 2000, ITEMS), ("files", 200, FILES)] {
        let (sender, mut taken) = mpsc::unbounded_channel();
        let texts = (0..count).map(move |_| {
            sender.send(()).unwrap();
            match what {
                "texts" => Ok::<_, Own>(Thing::Text("x".repeat(100))),
                _ => Ok(Thing::File(File::open("/dev/null").unwrap().into())),
            }
        });
        let call =
            client.call_with_input::<u64>("wait_for", (&file,), Input::fallible(iter(texts)));
        let call = tokio::spawn(call);
        for _ in 0..most / 2 {
            if taken.recv().await.is_none() {
                panic!("{what}: {:?}", call.await);
            }
        }
        // If it did not wait, it would send all of them in this time.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let more = std::iter::from_fn(|| taken.try_recv().ok()).count();
        assert!(more <= most - most / 2, "{what}: {more} more were sent");
        std::fs::write(&file, "").unwrap();
        assert_eq!(call.await.unwrap().unwrap(), count, "{what}");
        std::fs::remove_file(&file).unwrap();
    }
});

#[derive(serde::Serialize)]
#[serde(untagged)]
enum Thing {
    Text(String),
    File(OpenFile),
}

trial!(a_method_may_end_before_its_input, async || {
    for entry in ["inputs", "inputs_tcp"] {
        let (_server, client) = single(entry);
        let checkout = client.checkout();
        for count in [0, 1, 3000] {
            // Endless, so the rest cannot be sent.
            let sum = checkout.first(count, iter(0_u64..)).await.unwrap();
            assert_eq!(sum, (0..count as u64).sum::<u64>());
            assert_eq!(checkout.echo("on").await.unwrap(), "on");
        }
        // With long items and with blobs on their way.
        for length in [100_000, 2 << 20] {
            let blobs = std::iter::repeat_with(move || Blob::from(vec![7; length]));
            let error = checkout.blobs_of_no_use(iter(blobs)).await;
            assert!(error.is_err());
            assert_eq!(checkout.echo("on").await.unwrap(), "on");
        }
    }
});

/// Calls whose items are not of the type that the method takes.
trait OfNoUse {
    fn blobs_of_no_use(
        &self,
        blobs: impl Stream<Item = Blob> + Send + 'static,
    ) -> taskfork::Call<u64>;
}

impl OfNoUse for taskfork::Checkout {
    fn blobs_of_no_use(
        &self,
        blobs: impl Stream<Item = Blob> + Send + 'static,
    ) -> taskfork::Call<u64> {
        self.call_with_input("sum", (1,), Input::new(blobs))
    }
}

trial!(a_stream_that_fails_is_the_error_of_its_call, async || {
    let (_server, client) = single("inputs");
    let checkout = client.checkout();
    let rows = || vec![Ok(1), Ok(2), Err(Own), Ok(3)];
    let error = checkout.sum(0, iter(rows())).await.unwrap_err();
    assert!(
        matches!(&error, Error::Call { error: CallError::Input(failure), .. } if failure.message() == "the disk is gone"),
        "{error:?}"
    );
    // Also if the method makes a result of it. It has had the items before.
    let error = checkout.keep_end(iter(rows())).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Input(_), .. }), "{error:?}");
    let (end, _) = checkout.last_end().await.unwrap();
    assert!(end.contains("the disk is gone"), "{end}");
    // And if it streams.
    let texts = vec![Ok("four".to_owned()), Err(Own)];
    let mut lengths = checkout.lengths(iter(texts), 1);
    assert_eq!(lengths.next().await.unwrap(), Some(4));
    let error = lengths.next().await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Input(_), .. }), "{error:?}");
    // An item that cannot be encoded.
    let input = Input::new(iter([Some(1), None].map(Fussy)));
    let error = checkout.call_with_input::<u64>("sum", (0,), input).await.unwrap_err();
    assert!(error.to_string().contains("item 2 cannot be sent: it is nothing"), "{error}");
    assert_eq!(checkout.echo("on").await.unwrap(), "on");
});

/// A number that cannot be sent if there is none.
struct Fussy(Option<u64>);

impl serde::Serialize for Fussy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(number) => serializer.serialize_u64(number),
            None => Err(serde::ser::Error::custom("it is nothing")),
        }
    }
}

trial!(a_call_with_an_input_that_is_dropped_stops, async || {
    let (_server, client) = single("inputs");
    let checkout = client.checkout();
    let (_, pid) = checkout.last_end().await.unwrap();
    drop_behind(10, |numbers| checkout.keep_end(numbers)).await;
    // The same worker serves the next call, once the dropped one has ended.
    let (end, same) = checkout.last_end().await.unwrap();
    assert!(end.contains("no longer waits"), "{end}");
    assert_eq!(same, pid);

    // One that is dropped before it began takes nothing.
    let failing = checkout.fail();
    let (sender, numbers) = channel::<u64>();
    drop(checkout.sum(0, numbers));
    assert!(sender.is_closed());
    failing.await.unwrap_err();
    drop(checkout);

    // Without its checkout, the worker is killed.
    drop_behind(1, |numbers| client.keep_end(numbers)).await;
    let (_, other) = client.last_end().await.unwrap();
    assert_ne!(other, pid);
});

trial!(an_error_ends_a_call_while_its_input_goes_on, async || {
    let (_server, client) = start_with("inputs", |client| {
        client.timeout(Duration::from_secs(60)).grace(Duration::from_millis(50))
    });
    for what in ["return", "fail", "panic", "abort", "hang", "wait"] {
        for endless in [false, true] {
            let mut checkout = client.checkout();
            let limit = Duration::from_millis(300);
            checkout = match (what, endless) {
                ("hang" | "wait", true) => checkout.run_timeout(limit),
                ("hang" | "wait", false) => checkout.timeout(limit),
                _ => checkout,
            };
            let result = match endless && what != "wait" {
                true => checkout.two_and_then(what, iter(1_u64..)).await,
                false => {
                    let (sender, numbers) = channel();
                    (1..4).for_each(|number| sender.send(number).unwrap());
                    let result = checkout.two_and_then(what, numbers).await;
                    drop(sender);
                    result
                }
            };
            let is_right = match (what, &result) {
                ("return", Ok(3)) => true,
                ("fail", Err(Error::Call { error: CallError::Interface(_), .. })) => true,
                ("panic", Err(Error::Call { error: CallError::Panic(_), .. })) => true,
                (
                    "abort",
                    Err(Error::Fatal { cause: FatalError::WorkerDied(_), may_have_run, .. }),
                ) => *may_have_run,
                ("hang" | "wait", Err(Error::Fatal { cause, .. })) => {
                    let expected =
                        if endless { TimeoutOption::RunTimeout } else { TimeoutOption::Timeout };
                    matches!(cause, FatalError::TimedOut { limit, .. } if *limit == expected)
                }
                _ => false,
            };
            assert!(is_right, "{what}, {endless}: {result:?}");
        }
    }
});

trial!(calls_before_and_behind_an_input_run_in_order, async || {
    let (_server, client) = single("inputs");
    let checkout = client.checkout();
    let before = checkout.echo("before");
    let sum = checkout.sum(0, iter(0..30_000));
    let behind = checkout.echo("behind");
    let more = checkout.lengths(iter((0..1000).map(|_| "x".repeat(1000))), 1);
    let last = checkout.echo("last");
    // All at once, in another order than that of the calls.
    let (last, more, behind, sum, before) = tokio::join!(last, more.finish(), behind, sum, before);
    assert_eq!((before.unwrap(), sum.unwrap()), ("before".to_owned(), 449_985_000));
    assert_eq!((behind.unwrap(), more.unwrap()), ("behind".to_owned(), 1000));
    assert_eq!(last.unwrap(), "last");

    // Behind a call that fails it does not run, and takes nothing.
    let fails = checkout.fail();
    let (sender, numbers) = channel();
    sender.send(1).unwrap();
    let dropped = checkout.sum(0, numbers);
    fails.await.unwrap_err();
    let error = dropped.await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Dropped { .. }, .. }), "{error:?}");
    // Calls behind one that fails do not run either.
    let failing = checkout.two_and_then("fail", iter(0..));
    let behind = checkout.echo("behind");
    failing.await.unwrap_err();
    let error = behind.await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Dropped { .. }, .. }), "{error:?}");
    assert_eq!(checkout.echo("on").await.unwrap(), "on");
});

trial!(a_call_is_made_again_only_before_anything_of_its_input_was_taken, async || {
    let (_server, client) = start("inputs");
    let folder = tempfile::tempdir().unwrap();
    let client = InputsClient::from(client).retry(3);
    let runs = |name: &str| folder.path().join(name);
    let count = |runs: &Path| std::fs::read(runs).map_or(0, |runs| runs.len());
    let (sender, numbers) = channel();
    let file = runs("before");
    let waiting = async {
        let call = client.die_once(file.clone(), 0, numbers);
        call.await
    };
    let sends = async {
        until("the second run", || count(&file) == 2).await;
        sender.send(7).unwrap();
        drop(sender);
    };
    let (sum, ()) = tokio::join!(waiting, sends);
    assert_eq!(sum.unwrap(), 7);
    for taken in [1, 100_000] {
        let file = runs(&taken.to_string());
        let error = client.die_once(file.clone(), taken, iter(0..200_000)).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Fatal { cause: FatalError::WorkerDied(_), may_have_run: true, .. }
            ),
            "{error:?}"
        );
        assert_eq!(count(&file), 1);
    }
});

trial!(wrong_uses_of_inputs_are_explained, async || {
    let (server, client) = single("inputs");
    let checkout = client.checkout();
    let input = Input::iter([1]);
    let error = checkout.call_with_input::<String>("echo", ("x",), input).await.unwrap_err();
    assert!(error.to_string().contains("takes no input"), "{error}");
    let error = checkout.call::<u64>("sum", (3,)).await.unwrap_err();
    assert!(error.to_string().contains("takes an input"), "{error}");
    let input = Input::iter(["one"]);
    let error = checkout.call_with_input::<u64>("sum", (3,), input).await.unwrap_err();
    assert!(error.to_string().contains("an item of the input is not of the type"), "{error}");
    let (sender, numbers) = channel();
    sender.send(1).unwrap();
    let error = checkout.stream::<u64, u64>("sum", (3,)).finish().await.unwrap_err();
    assert!(error.to_string().contains("streams no items"), "{error}");
    assert_eq!(checkout.echo("on").await.unwrap(), "on");
    drop(checkout);

    let perl =
        Client::builder().address(server.address()).protocol(Protocol::Perl).build().unwrap();
    let error = perl.sum(3, numbers).await.unwrap_err();
    assert!(error.to_string().contains("streams an input, and this server cannot"), "{error}");
    let error = perl.call::<u64>("sum", (3,)).await.unwrap_err();
    assert!(error.to_string().contains("`sum` takes an input"), "{error}");
});

trial!(many_calls_with_inputs_at_once_end, async || {
    let (_server, client) = start("inputs");
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..40_u64 {
        let client = client.clone();
        calls.spawn(async move {
            let sum = client.sum(0, iter(0..number * 500)).await.unwrap();
            assert_eq!(sum, (0..number * 500).sum::<u64>());
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
});

/// A client by hand that has called `sum` with an input, and has got the first credit.
async fn raw_input(path: &Path) -> Raw {
    let (mut raw, hello) = Raw::greeted(path).await;
    assert!(hello.to_string().contains("\"input\": true"), "{hello}");
    raw.send_message(vec![1.into(), input(), text("sum"), Value::Array(vec![10.into()])]);
    let credit = raw.receive().unwrap();
    assert_eq!(credit, Value::Array(vec![12.into(), map(&[]), 1.into(), (256 << 10).into()]));
    raw
}

fn input() -> Value {
    map(&[("input", true.into())])
}

fn item(call: u64, cost: u64, value: impl Into<Value>) -> Vec<Value> {
    vec![11.into(), map(&[("cost", cost.into()), ("call", call.into())]), value.into()]
}

trial!(a_worker_takes_what_the_protocol_says, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_inputs", &address_in(&folder)]);
    let path = &folder.path().join("s");
    let mut raw = raw_input(path).await;
    raw.send_message(item(1, 300, 5));
    // A queue length may come at any time.
    raw.send_message(vec![5.into(), map(&[]), 3.into()]);
    raw.send_message(item(1, 100_000, 6));
    raw.send_message(item(1, 100_000, 7));
    // More credit for what the method has taken.
    let credit = raw.receive().unwrap();
    assert_eq!(credit.as_array().unwrap()[3], ((256 << 10) + 200_300).into(), "{credit}");
    raw.send_message(vec![13.into(), map(&[]), 1.into()]);
    let answer = raw.receive().unwrap();
    assert_eq!(answer.as_array().unwrap()[2], 28.into(), "{answer}");
    // Items and ends of a call that has been answered are ignored.
    raw.send_message(item(1, 300, 5));
    raw.send_message(vec![13.into(), map(&[]), 1.into()]);
    raw.send_message(vec![1.into(), map(&[]), text("echo"), Value::Array(vec![text("on")])]);
    let answer = raw.receive().unwrap();
    assert_eq!(answer.as_array().unwrap()[2], text("on"), "{answer}");

    // A cancelled call ends.
    let mut raw = raw_input(path).await;
    raw.send_message(vec![4.into(), map(&[]), 1.into()]);
    let answer = raw.receive().unwrap();
    assert!(answer.to_string().contains("no longer waits"), "{answer}");
});

trial!(a_client_that_breaks_the_rules_of_inputs_is_disconnected, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_inputs", &address_in(&folder)]);
    let path = &folder.path().join("s");
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    let none = || map(&[]);
    let end = || vec![13.into(), none(), 1.into()];
    let texts = |cost| vec![item(1, cost, text("x"))];
    let call = vec![3.into(), none(), text("echo"), Value::Array(vec![text("x")])];
    let cases = [
        ("a call", vec![call]),
        ("a done", vec![vec![2.into(), none()]]),
        ("another call's item", vec![item(2, 300, 5)]),
        ("another call's end", vec![vec![13.into(), none(), 2.into()]]),
        ("a cheap item", vec![item(1, 256, 5)]),
        ("no credit", [texts(300), texts(1 << 30), texts(300)].concat()),
        ("two ends", [texts(300), vec![end(), end()]].concat()),
        ("an item behind the end", [texts(300), vec![end()], texts(300)].concat()),
        ("missing files", vec![vec![6.into(), none(), 1.into()], item(1, 10_000, 5)]),
        ("a wrong kind", vec![vec![99.into(), none()]]),
    ];
    for (name, wrong) in cases {
        let mut raw = match name {
            // The method waits until its own items are read, and takes none meanwhile.
            "no credit" | "two ends" | "an item behind the end" => {
                let (mut raw, _) = Raw::greeted(path).await;
                let meta = map(&[("input", true.into()), ("items", 1.into())]);
                let args = Value::Array(vec![3.into()]);
                raw.send_message(vec![1.into(), meta, text("lengths"), args]);
                raw.receive().unwrap();
                raw
            }
            _ => raw_input(path).await,
        };
        for message in wrong {
            raw.send_message(message);
        }
        // Nothing but more credit and the notice that the worker has ended: no result.
        let rest = raw.drain();
        assert!(!rest.windows(2).any(|bytes| bytes == [0x93, 1]), "{name}: {rest:?}");
    }
    assert_eq!(client.echo("on").await.unwrap(), "on");
});
