//! Calls that stream items.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use taskfork::blob::OpenFile;
use taskfork::client::{Protocol, Value};
use taskfork::error::{CallError, FatalError, Stage};
use taskfork::worker::EmitError;
use taskfork::{Blob, BoxError, Client, Emitter, Error, ServerBuilder, ServerError};

use crate::support::raw::{Raw, map, text};
use crate::support::{address_in, programs, start, start_with, trial, until};

#[taskfork::interface]
pub(crate) trait Streams {
    /// Sends the numbers below `count`.
    fn numbers(&mut self, count: u64, out: &mut Emitter<u64>) -> Result<u64, BoxError>;
    /// Sends texts of this length, and writes how many it has sent to a file.
    fn texts(&mut self, out: &mut Emitter<String>, length: usize, count: u64, file: PathBuf)
    -> u64;
    fn blobs(&mut self, lengths: Vec<usize>, out: &mut Emitter<Blob>) -> Result<(), BoxError>;
    /// Sends this many open files, and writes how many it has sent to a file.
    fn files(&mut self, count: u64, out: &mut Emitter<OpenFile>, file: PathBuf);
    /// Sends two numbers, and then does this.
    fn two_and_then(&mut self, what: String, out: &mut Emitter<u64>) -> Result<(), BoxError>;
    /// Sends numbers until nobody wants them. Returns how many.
    fn endless(&mut self, out: &mut Emitter<u64>) -> u64;
    /// The same with pauses, so that few numbers are sent in the time that a cancellation takes.
    fn endless_slowly(&mut self, out: &mut Emitter<u64>) -> u64;
    /// How many numbers the last endless call has sent, once it has ended, and the worker's process id.
    fn sent(&mut self) -> (u64, u32);
    /// Sends a text of this length, and then does nothing for ever.
    fn long_and_hang(&mut self, length: usize, out: &mut Emitter<String>);
    fn unsendable(&mut self, out: &mut Emitter<Fussy>) -> String;
    fn fail(&mut self) -> Result<(), BoxError>;
    fn echo(&mut self, text: String) -> String;
}

/// A number that cannot be sent if it is 0.
#[derive(Debug, PartialEq, serde::Deserialize)]
pub(crate) struct Fussy(u64);

impl serde::Serialize for Fussy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            0 => Err(serde::ser::Error::custom("it is nothing")),
            1 => serializer.serialize_bytes(&vec![0; 2 << 20]),
            number => serializer.serialize_newtype_struct("Fussy", &number),
        }
    }
}

#[derive(Default)]
struct State {
    sent: u64,
}

impl Streams for State {
    fn numbers(&mut self, count: u64, out: &mut Emitter<u64>) -> Result<u64, BoxError> {
        for number in 0..count {
            out.send(&number)?;
        }
        Ok(count)
    }

    fn texts(
        &mut self,
        out: &mut Emitter<String>,
        length: usize,
        count: u64,
        file: PathBuf,
    ) -> u64 {
        for number in 0..count {
            if out.send(&"x".repeat(length)).is_err() {
                return number;
            }
            std::fs::write(&file, (number + 1).to_string()).unwrap();
        }
        count
    }

    fn blobs(&mut self, lengths: Vec<usize>, out: &mut Emitter<Blob>) -> Result<(), BoxError> {
        for (number, length) in lengths.into_iter().enumerate() {
            out.send(&Blob::from(vec![number as u8; length]))?;
        }
        Ok(())
    }

    fn files(&mut self, count: u64, out: &mut Emitter<OpenFile>, file: PathBuf) {
        for number in 0..count {
            out.send(&File::open("/dev/null").unwrap().into()).unwrap();
            std::fs::write(&file, (number + 1).to_string()).unwrap();
        }
    }

    fn two_and_then(&mut self, what: String, out: &mut Emitter<u64>) -> Result<(), BoxError> {
        out.send(&1)?;
        out.send(&2)?;
        match &*what {
            "fail" => Err("failed".into()),
            "panic" => panic!("panicked"),
            "abort" => std::process::abort(),
            _ => loop {
                std::thread::park();
            },
        }
    }

    fn endless(&mut self, out: &mut Emitter<u64>) -> u64 {
        self.sent = 0;
        while out.send(&self.sent).is_ok() {
            self.sent += 1;
        }
        assert!(matches!(out.send(&0), Err(EmitError::Closed)));
        self.sent
    }

    fn endless_slowly(&mut self, out: &mut Emitter<u64>) -> u64 {
        self.sent = 0;
        while out.send(&self.sent).is_ok() {
            self.sent += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        self.sent
    }

    fn sent(&mut self) -> (u64, u32) {
        (self.sent, std::process::id())
    }

    fn long_and_hang(&mut self, length: usize, out: &mut Emitter<String>) {
        out.send(&"x".repeat(length)).unwrap();
        loop {
            std::thread::park();
        }
    }

    fn unsendable(&mut self, out: &mut Emitter<Fussy>) -> String {
        out.send(&Fussy(7)).unwrap();
        let first = out.send(&Fussy(0)).unwrap_err();
        let second = out.send(&Fussy(1)).unwrap_err();
        out.send(&Fussy(8)).unwrap();
        format!("{first}; {second}")
    }

    fn fail(&mut self) -> Result<(), BoxError> {
        Err("failed".into())
    }

    fn echo(&mut self, text: String) -> String {
        text
    }
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let setup = || Ok::<_, BoxError>(State::default());
    server.setup(setup).interface(StreamsInterface).run()
}

fn count_in(file: &Path) -> u64 {
    std::fs::read_to_string(file).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A client with one worker.
fn single(entry: &str) -> (taskfork::server::ServerHandle, Client) {
    start_with(entry, |client| client.max_workers(1))
}

trial!(items_arrive_in_order_and_the_result_behind_them, async || {
    for entry in ["streams", "streams_tcp"] {
        let (_server, client) = start(entry);
        let mut numbers = client.numbers(100_000);
        for expected in 0..100_000 {
            assert_eq!(numbers.next().await.unwrap(), Some(expected));
        }
        assert_eq!(numbers.next().await.unwrap(), None);
        assert_eq!(numbers.next().await.unwrap(), None);
        assert_eq!(numbers.finish().await.unwrap(), 100_000);

        let checkout = client.checkout();
        assert_eq!(checkout.numbers(0).finish().await.unwrap(), 0);
        // Items that nobody has read are discarded.
        assert_eq!(checkout.numbers(50_000).finish().await.unwrap(), 50_000);
        let mut untyped = checkout.stream::<u64, u64>("numbers", (2,));
        assert_eq!(untyped.next().await.unwrap(), Some(0));
        assert_eq!(untyped.finish().await.unwrap(), 2);
    }
});

trial!(a_stream_is_a_stream_and_an_iterator_in_programs_without_async, async || {
    let (server, client) = start("streams");
    let mut numbers = Box::pin(client.numbers(3));
    let mut all = Vec::new();
    while let Some(number) =
        std::future::poll_fn(|context| futures_core::Stream::poll_next(numbers.as_mut(), context))
            .await
    {
        all.push(number.unwrap());
    }
    assert_eq!(all, [0, 1, 2]);

    let address = server.address().clone();
    let blocking = tokio::task::spawn_blocking(move || {
        let client = Client::builder().address(address).build_blocking().unwrap();
        let mut numbers = StreamsBlockingCalls::numbers(&client, 3);
        let all: Result<Vec<u64>, _> = numbers.by_ref().collect();
        let failing = client.stream::<u64, ()>("two_and_then", ("fail",));
        let failed: Vec<_> = failing.map(|item| item.map_err(|error| error.to_string())).collect();
        (all.unwrap(), numbers.finish().unwrap(), failed)
    });
    let (all, count, failed) = blocking.await.unwrap();
    assert_eq!((all, count), (vec![0, 1, 2], 3));
    assert_eq!((failed.len(), &failed[..2]), (3, &[Ok(1), Ok(2)][..]));
    assert!(failed[2].as_ref().is_err_and(|error| error.contains("failed")), "{failed:?}");
});

trial!(a_worker_that_is_ahead_of_its_reader_waits, async || {
    let (_server, client) = single("streams");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sent");
    const LENGTH: u64 = 10_000;
    // What the window holds, and the item that exceeds it.
    const AHEAD: u64 = (256 << 10) / LENGTH + 1;
    let mut texts = client.texts(LENGTH as usize, 200, file.clone());
    until("the first items", || count_in(&file) >= AHEAD - 2).await;
    // If it did not wait, it would send all of them in this time.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(count_in(&file) <= AHEAD, "{} were sent", count_in(&file));
    for _ in 0..100 {
        assert_eq!(texts.next().await.unwrap().map(|text| text.len() as u64), Some(LENGTH));
    }
    until("more items", || count_in(&file) >= 100).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(count_in(&file) <= 100 + AHEAD, "{} were sent", count_in(&file));
    assert_eq!(texts.finish().await.unwrap(), 200);
});

trial!(few_descriptors_wait_for_their_reader, async || {
    let (_server, client) = single("streams");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sent");
    // Each counts as 4,096 bytes of the window.
    const AHEAD: u64 = (256 << 10) / 4096;
    let mut files = client.files(1000, file.clone());
    until("the first items", || count_in(&file) >= AHEAD / 2).await;
    // If it did not wait, it would send all of them in this time.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(count_in(&file) <= AHEAD, "{} were sent", count_in(&file));
    for _ in 0..1000 {
        let open = files.next().await.unwrap().unwrap();
        assert!(open.try_into_owned().is_ok());
    }
    files.finish().await.unwrap();
});

trial!(large_items_and_blobs_pass, async || {
    for entry in ["streams", "streams_tcp"] {
        let (_server, client) = start(entry);
        let folder = tempfile::tempdir().unwrap();
        let mut texts = client.texts(9 << 20, 3, folder.path().join("sent"));
        while let Some(text) = texts.next().await.unwrap() {
            assert_eq!(text.len(), 9 << 20);
        }
        assert_eq!(texts.finish().await.unwrap(), 3);

        let checkout = client.checkout();
        // Memory is shared from the first answer on.
        for _ in 0..2 {
            let lengths = [1, 100_000, 5 << 20, 0, 3 << 20, 200_000, 4 << 20, 16 << 10];
            let mut blobs = checkout.blobs(lengths.to_vec());
            for (number, length) in lengths.into_iter().enumerate() {
                let blob = blobs.next().await.unwrap().unwrap();
                assert_eq!(blob.len(), length);
                assert!(blob.iter().all(|&byte| byte == number as u8));
            }
            blobs.finish().await.unwrap();
        }
    }
});

trial!(blobs_of_other_lengths_take_the_place_of_earlier_ones, async || {
    let (_server, client) = start_with("streams", |client| client.max_workers(1));
    let checkout = client.checkout();
    // Together they are longer than the memory that is kept for them.
    for length in [100_000, 100_000, 300_000, 50_000] {
        let mut blobs = checkout.blobs(vec![length; 40]);
        while let Some(blob) = blobs.next().await.unwrap() {
            assert_eq!(blob.len(), length);
        }
        blobs.finish().await.unwrap();
    }
});

trial!(a_call_behind_a_dropped_stream_runs, async || {
    let (_server, client) = start_with("streams", |client| client.max_workers(1));
    let checkout = client.checkout();
    for _ in 0..10 {
        let mut numbers = checkout.numbers(1_000_000);
        assert_eq!(numbers.next().await.unwrap(), Some(0));
        drop(numbers);
        // The method has failed, because nobody reads on.
        assert_eq!(checkout.echo("on").await.unwrap(), "on");
    }
});

trial!(the_items_before_an_error_come_before_it, async || {
    let (_server, client) = start_with("streams", |client| {
        client.timeout(Duration::from_secs(60)).grace(Duration::from_millis(50))
    });
    for what in ["fail", "panic", "abort", "hang"] {
        let mut checkout = client.checkout();
        if what == "hang" {
            checkout = checkout.timeout(Duration::from_millis(500));
        }
        let mut numbers = checkout.two_and_then(what);
        assert_eq!(numbers.next().await.unwrap(), Some(1), "{what}");
        assert_eq!(numbers.next().await.unwrap(), Some(2), "{what}");
        let error = numbers.next().await.unwrap_err();
        let is_right = match what {
            "fail" => matches!(&error, Error::Call { error: CallError::Interface(_), .. }),
            "panic" => matches!(&error, Error::Call { error: CallError::Panic(_), .. }),
            "abort" => {
                matches!(
                    &error,
                    Error::Fatal { cause: FatalError::WorkerDied(_), may_have_run: true, .. }
                )
            }
            _ => matches!(&error, Error::Fatal { cause: FatalError::TimedOut { .. }, .. }),
        };
        assert!(is_right, "{what}: {error:?}");
        assert_eq!(numbers.next().await.unwrap(), None, "{what}");
    }
});

trial!(a_dropped_stream_stops_its_call, async || {
    let (_server, client) = single("streams");
    let checkout = client.checkout();
    let (_, pid) = checkout.sent().await.unwrap();
    let mut numbers = checkout.endless();
    assert_eq!(numbers.next().await.unwrap(), Some(0));
    drop(numbers);
    // The same worker serves the next call, once the dropped one has ended.
    let (sent, same) = checkout.sent().await.unwrap();
    assert_eq!(same, pid);
    assert!(sent > 0);

    // One that is dropped before it began does not begin.
    let failing = checkout.fail();
    drop(checkout.endless());
    failing.await.unwrap_err();
    assert_eq!(checkout.echo("on").await.unwrap(), "on");
    drop(checkout);

    // Without its checkout, the worker is killed.
    let mut numbers = client.endless();
    assert_eq!(numbers.next().await.unwrap(), Some(0));
    drop(numbers);
    let (_, other) = client.sent().await.unwrap();
    assert_ne!(other, pid);
});

trial!(a_worker_that_need_not_wait_notices_that_nobody_reads_on, async || {
    let (_server, client) = single("streams");
    let checkout = client.checkout();
    let mut numbers = checkout.endless_slowly();
    assert_eq!(numbers.next().await.unwrap(), Some(0));
    drop(numbers);
    let (sent, _) = checkout.sent().await.unwrap();
    // Its window holds this many.
    let window = (256 << 10) / 290;
    assert!(sent < window, "it has sent {sent} numbers");
});

trial!(calls_before_and_behind_a_stream_run_in_order, async || {
    let (_server, client) = single("streams");
    let checkout = client.checkout();
    let before = checkout.echo("before");
    let numbers = checkout.numbers(30_000);
    let behind = checkout.echo("behind");
    let more = checkout.numbers(30_000);
    let last = checkout.echo("last");
    assert_eq!(before.await.unwrap(), "before");
    assert_eq!(numbers.finish().await.unwrap(), 30_000);
    assert_eq!(behind.await.unwrap(), "behind");
    assert_eq!(more.finish().await.unwrap(), 30_000);
    assert_eq!(last.await.unwrap(), "last");

    // A stream behind a call that fails does not run, and none of its items come.
    let fails = checkout.fail();
    let mut dropped = checkout.numbers(3);
    let behind = checkout.echo("behind");
    fails.await.unwrap_err();
    let error = dropped.next().await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Dropped { .. }, .. }), "{error:?}");
    behind.await.unwrap_err();
    // Calls behind a stream that fails do not run either.
    let failing = checkout.two_and_then("fail");
    let behind = checkout.echo("behind");
    failing.finish().await.unwrap_err();
    let error = behind.await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Dropped { .. }, .. }), "{error:?}");
    assert_eq!(checkout.echo("on").await.unwrap(), "on");
});

trial!(many_streams_at_once_end, async || {
    let (_server, client) = start("streams");
    let streams: Vec<_> = (0..40).map(|number| client.numbers(number * 500)).collect();
    for (number, mut stream) in streams.into_iter().enumerate() {
        let mut count = 0;
        while stream.next().await.unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, number * 500);
    }
});

trial!(wrong_uses_of_streams_are_explained, async || {
    let (server, client) = single("streams");
    let checkout = client.checkout();
    let error = checkout.stream::<u64, String>("echo", ("x",)).finish().await.unwrap_err();
    assert!(error.to_string().contains("`echo` streams no items"), "{error}");
    let error = checkout.stream::<u64, u64>("nubmers", (3,)).finish().await.unwrap_err();
    let Error::Call { error: CallError::UnknownMethod { method, known }, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(method.as_deref(), Some("nubmers"));
    assert!(known.contains(&"numbers".to_owned()), "{known:?}");
    let error = checkout.call::<u64>("numbers", (3,)).await.unwrap_err();
    assert!(error.to_string().contains("make a stream"), "{error}");
    let mut wrong = checkout.stream::<String, u64>("numbers", (3,));
    let error = wrong.next().await.unwrap_err();
    assert!(error.to_string().contains("an item of the stream"), "{error}");
    assert_eq!(wrong.next().await.unwrap(), None);
    assert_eq!(checkout.echo("on").await.unwrap(), "on");
    drop(checkout);

    let perl =
        Client::builder().address(server.address()).protocol(Protocol::Perl).build().unwrap();
    let error = perl.numbers(3).finish().await.unwrap_err();
    assert!(error.to_string().contains("protocol without streams"), "{error}");
    let error = perl.call::<u64>("numbers", (3,)).await.unwrap_err();
    assert!(error.to_string().contains("clients that speak JSON cannot"), "{error}");
});

trial!(an_item_that_cannot_be_sent_is_an_error_of_the_emitter, async || {
    let (_server, client) = start_with("streams", |client| client.max_frame(1 << 20));
    let mut items = client.unsendable();
    assert_eq!(items.next().await.unwrap(), Some(Fussy(7)));
    assert_eq!(items.next().await.unwrap(), Some(Fussy(8)));
    let text = items.finish().await.unwrap();
    assert!(text.contains("it is nothing") && text.contains("1048576 (max_frame): "), "{text}");
});

/// A client by hand that has called `numbers` for 10 items and has given this credit. Gives the items that came.
async fn raw_stream(path: &Path, credit: u64, items: usize) -> (Raw, Vec<Value>) {
    let (mut raw, hello) = Raw::greeted(path).await;
    assert!(hello.to_string().contains("\"items\": true"), "{hello}");
    let meta = map(&[("items", credit.into())]);
    raw.send_message(vec![1.into(), meta, text("numbers"), Value::Array(vec![10.into()])]);
    let items = (0..items).map(|_| raw.receive().unwrap().as_array().unwrap()[2].clone()).collect();
    (raw, items)
}

trial!(a_worker_follows_the_credit_to_the_byte, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_streams", &address_in(&folder)]);
    let path = &folder.path().join("s");
    let credit = |raw: &mut Raw, call: u64, credit: u64| {
        raw.send_message(vec![12.into(), map(&[]), call.into(), credit.into()]);
    };
    let (mut raw, items) = raw_stream(path, 1, 1).await;
    assert_eq!(items, [Value::from(0)]);
    // The body of an item has 32 bytes: with 256 more, one more item has credit.
    credit(&mut raw, 1, 289);
    let next = raw.receive().unwrap();
    assert_eq!(next.as_array().unwrap()[2], 1.into(), "{next}");
    // Credit of another call changes nothing. A queue length may come at any time.
    credit(&mut raw, 7, u64::MAX);
    raw.send_message(vec![5.into(), map(&[]), 3.into()]);
    credit(&mut raw, 1, u64::MAX);
    for number in 2..10 {
        assert_eq!(raw.receive().unwrap().as_array().unwrap()[2], number.into());
    }
    let answer = raw.receive().unwrap();
    assert_eq!(answer.as_array().unwrap()[0], 1.into(), "{answer}");

    // A cancelled call ends without its other items.
    let (mut raw, _) = raw_stream(path, 1, 1).await;
    raw.send_message(vec![4.into(), map(&[]), 1.into()]);
    let answer = raw.receive().unwrap();
    assert_eq!(answer.as_array().unwrap()[0], 2.into(), "{answer}");
    assert!(answer.to_string().contains("no longer reads"), "{answer}");
});

trial!(a_client_that_reads_nothing_keeps_a_worker_no_longer_than_its_time, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_streams", &address_in(&folder)]);
    let (mut raw, _) = Raw::greeted(&folder.path().join("s")).await;
    let limits = [("timeout", 500_000), ("grace", 1000), ("items", u64::MAX)];
    let limits = limits.map(|(key, value)| (key, value.into()));
    // Longer than what a socket takes without a reader.
    let length = Value::from(8 << 20);
    raw.send_message(vec![
        1.into(),
        map(&limits),
        text("long_and_hang"),
        Value::Array(vec![length]),
    ]);
    // The end shows though nothing is read.
    let hung_up = || {
        let mut socket = [PollFd::new(&raw.0, PollFlags::empty())];
        poll(&mut socket, Some(&Timespec::default())).unwrap() > 0
    };
    until("the end of the worker", hung_up).await;
    // A part of the item has come, and no notice follows it.
    assert_eq!(raw.receive(), None);
});

// The server sends no notice behind a part of an item.
trial!(a_call_whose_time_is_over_in_the_middle_of_an_item_has_timed_out, async || {
    let (_server, client) = start_with("streams", |client| {
        client.max_workers(1).timeout(Duration::from_millis(300)).grace(Duration::ZERO)
    });
    let checkout = client.checkout();
    let (_, worker) = checkout.sent().await.unwrap();
    let mut items = checkout.long_and_hang(32 << 20);
    // It is made, and then nothing is read until the worker is gone.
    assert!(tokio::time::timeout(Duration::ZERO, items.next()).await.is_err());
    until("the end of the worker", || crate::support::processes::is_gone(worker)).await;
    let error = items.next().await.unwrap_err();
    let Error::Fatal { cause: FatalError::TimedOut { stage, after, .. }, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!((stage, after), (Stage::Running, Duration::from_millis(300)));
    assert_eq!(client.echo("x").await.unwrap(), "x");
});

trial!(a_client_that_breaks_the_rules_of_streams_is_disconnected, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_streams", &address_in(&folder)]);
    let path = &folder.path().join("s");
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    let none = || map(&[]);
    let call = vec![3.into(), none(), text("echo"), Value::Array(vec![text("x")])];
    for wrong in [
        call,
        vec![2.into(), none()],
        vec![12.into(), none(), 1.into(), 0.into()],
        vec![6.into(), none(), 1.into()],
        vec![99.into(), none()],
    ] {
        let name = format!("{wrong:?}");
        let (mut raw, _) = raw_stream(path, 1, 1).await;
        raw.send_message(wrong);
        // Nothing but the notice that the worker has ended: neither an item nor an answer.
        let rest = raw.drain();
        assert!(rest.get(5).is_none_or(|kind| *kind == 3), "{name}: {rest:?}");
    }
    assert_eq!(client.echo("on").await.unwrap(), "on");
});
