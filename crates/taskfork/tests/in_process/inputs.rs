//! Inputs that callers stream to workers that are threads of this process.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};

use futures_core::Stream;
use taskfork::blob::OpenFile;
use taskfork::client::{Input, IntoInput, StreamCall};
use taskfork::error::CallError;
use taskfork::worker::ReceiveError;
use taskfork::{Blob, BoxError, Call, Client, Emitter, Error, Methods, Receiver};

#[taskfork::interface]
trait Inputs {
    fn sum(&mut self, from: u64, input: &mut Receiver<u64>) -> Result<u64, BoxError>;
    fn first(&mut self, count: usize, input: &mut Receiver<u64>) -> Result<u64, BoxError>;
    fn doubled(
        &mut self,
        input: &mut Receiver<u64>,
        out: &mut Emitter<u64>,
    ) -> Result<u64, BoxError>;
    fn bytes(&mut self, input: &mut Receiver<Blob>) -> Result<usize, BoxError>;
    fn files(&mut self, input: &mut Receiver<OpenFile>) -> Result<usize, BoxError>;
    /// Takes everything, and tells the test how the input has ended.
    fn until_the_end(&mut self, input: &mut Receiver<u64>);
    /// Takes nothing.
    fn none(&mut self, input: &mut Receiver<String>);
    fn no_input(&mut self) -> u64;
}

struct State {
    ends: mpsc::Sender<Result<(), ReceiveError>>,
}

impl Inputs for State {
    fn sum(&mut self, from: u64, input: &mut Receiver<u64>) -> Result<u64, BoxError> {
        let mut sum = from;
        while let Some(number) = input.next()? {
            sum += number;
        }
        Ok(sum)
    }

    fn first(&mut self, count: usize, input: &mut Receiver<u64>) -> Result<u64, BoxError> {
        Ok(input.take(count).sum::<Result<u64, _>>()?)
    }

    fn doubled(
        &mut self,
        input: &mut Receiver<u64>,
        out: &mut Emitter<u64>,
    ) -> Result<u64, BoxError> {
        let mut count = 0;
        while let Some(number) = input.next()? {
            out.send(&(2 * number))?;
            count += 1;
        }
        Ok(count)
    }

    fn bytes(&mut self, input: &mut Receiver<Blob>) -> Result<usize, BoxError> {
        let lengths = input.map(|blob| blob.map(|blob| blob.len()));
        Ok(lengths.sum::<Result<usize, _>>()?)
    }

    fn files(&mut self, input: &mut Receiver<OpenFile>) -> Result<usize, BoxError> {
        Ok(input.count())
    }

    fn until_the_end(&mut self, input: &mut Receiver<u64>) {
        let end = loop {
            match input.next() {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.ends.send(end).unwrap();
    }

    fn none(&mut self, _: &mut Receiver<String>) {}

    fn no_input(&mut self) -> u64 {
        7
    }
}

/// The items of an iterator, as a stream.
struct Iter<I>(I);

impl<I: Iterator + Unpin> Stream for Iter<I> {
    type Item = I::Item;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.0.next())
    }
}

fn iter<I: IntoIterator<IntoIter: Unpin>>(items: I) -> Iter<I::IntoIter> {
    Iter(items.into_iter())
}

/// The items that are sent through a channel.
struct Channel(tokio::sync::mpsc::Receiver<u64>);

impl Stream for Channel {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<u64>> {
        self.0.poll_recv(context)
    }
}

fn client() -> (InputsClient, mpsc::Receiver<Result<(), ReceiveError>>) {
    let (sender, ends) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let make = move || (InputsInterface, State { ends: sender.lock().unwrap().clone() });
    let builder = Client::builder().in_process(make).max_workers(1).timeout(None);
    (builder.build_as().unwrap(), ends)
}

async fn received<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> T {
    tokio::task::spawn_blocking(move || receiver.recv().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_method_takes_the_items_of_a_stream() {
    let (client, _ends) = client();
    let checkout = client.checkout();
    // More than the window, so that credit must be given.
    assert_eq!(checkout.sum(7, iter(0..10_000)).await.unwrap(), 7 + 49_995_000);
    assert_eq!(checkout.sum(1, iter(Vec::<u64>::new())).await.unwrap(), 1);
    assert_eq!(checkout.no_input().await.unwrap(), 7);
    let blobs = (0..20).map(|_| Blob::from(vec![7; 100_000]));
    assert_eq!(checkout.bytes(iter(blobs)).await.unwrap(), 2_000_000);
}

#[tokio::test]
async fn a_method_that_ends_early_takes_no_more() {
    let (client, _ends) = client();
    let checkout = client.checkout();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let endless = iter((0..).inspect(move |_: &u64| {
        counted.fetch_add(1, Ordering::SeqCst);
    }));
    assert_eq!(checkout.first(3, endless).await.unwrap(), 3);
    assert!(taken.load(Ordering::SeqCst) < 5_000, "{taken:?}");
    let long = iter(std::iter::repeat("x".repeat(10_000)));
    checkout.none(long).await.unwrap();
    // What was under way belongs to no other call.
    assert_eq!(checkout.sum(0, iter(1..=3)).await.unwrap(), 6);
}

#[tokio::test]
async fn a_method_streams_both_ways() {
    let (client, _ends) = client();
    let mut doubled = client.doubled(iter(0..5_000));
    for number in 0..5_000 {
        assert_eq!(doubled.next().await.unwrap(), Some(2 * number));
    }
    assert_eq!(doubled.next().await.unwrap(), None);
    assert_eq!(doubled.finish().await.unwrap(), 5_000);
}

#[tokio::test]
async fn a_stream_that_fails_fails_the_call_and_the_method_learns_it() {
    let (client, ends) = client();
    let failing = iter([Ok(1), Err("no more rows")]);
    let error = client.until_the_end(failing).await.unwrap_err();
    let Error::Call { error: CallError::Input(failure), .. } = &error else { panic!("{error:?}") };
    assert_eq!(failure.message(), "no more rows");
    let end = received(ends).await;
    assert!(matches!(&end, Err(ReceiveError::Failed(text)) if text == "no more rows"), "{end:?}");
}

#[tokio::test]
async fn a_call_that_is_dropped_closes_its_input() {
    let (client, ends) = client();
    let (sender, items) = tokio::sync::mpsc::channel(1);
    let mut call = client.until_the_end(Channel(items));
    // Once two are taken, the method runs.
    tokio::select! {
        biased;
        _ = &mut call => panic!("the input has not ended"),
        () = async {
            for number in 0..2 {
                sender.send(number).await.unwrap();
            }
            sender.reserve().await.unwrap();
        } => {}
    }
    drop(call);
    assert!(matches!(received(ends).await, Err(ReceiveError::Closed)));
    assert_eq!(client.no_input().await.unwrap(), 7, "another thread serves on");
}

#[tokio::test]
async fn what_cannot_be_an_input_is_an_error() {
    let (client, _ends) = client();
    let checkout = client.untyped().checkout();
    let error = checkout.call_with_input::<u64>("no_input", (), Input::iter(0..3_u64)).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("`no_input` takes no input"), "{error}");
    let error = checkout.call::<u64>("sum", (1,)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error:?}");
    drop(checkout);
    let file = OpenFile::from(std::fs::File::open("/dev/null").unwrap());
    let error = client.files(iter([file])).await.unwrap_err();
    assert!(error.to_string().contains("open file"), "{error}");
}

#[test]
fn threads_without_a_runtime_stream_too() {
    let (sender, _ends) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let make = move || (InputsInterface, State { ends: sender.lock().unwrap().clone() });
    let client = taskfork::blocking::Client::in_process(make).unwrap();
    assert_eq!(InputsBlockingCalls::sum(&client, 1, 2..=4).unwrap(), 10);
    let mut doubled = InputsBlockingCalls::doubled(&client, 0..3);
    let items: Vec<u64> = doubled.by_ref().map(Result::unwrap).collect();
    assert_eq!((items, doubled.finish().unwrap()), (vec![0, 2, 4], 3));
}

/// Takes the items that are there, and fails for a number above 100.
struct Mock;

impl InputsCalls for Mock {
    fn sum(&self, from: u64, input: impl IntoInput<u64>) -> Call<u64> {
        let numbers = input.into_input().ready_items::<u64>();
        let sum = numbers.sum::<Result<u64, _>>();
        match sum {
            Ok(sum) => Call::ready(Ok(from + sum)),
            Err(failure) => Call::ready(Ok(failure.message().len() as u64)),
        }
    }

    fn first(&self, count: usize, input: impl IntoInput<u64>) -> Call<u64> {
        let numbers = input.into_input().ready_items::<u64>().take(count);
        Call::ready(Ok(numbers.map(Result::unwrap).sum()))
    }

    fn doubled(&self, input: impl IntoInput<u64>) -> StreamCall<u64, u64> {
        let numbers = input.into_input().ready_items::<u64>();
        let doubled: Vec<_> = numbers.map(|number| 2 * number.unwrap()).collect();
        StreamCall::ready(doubled, Ok(0))
    }

    fn bytes(&self, input: impl IntoInput<Blob>) -> Call<usize> {
        let blobs = input.into_input().ready_items::<Blob>();
        Call::ready(Ok(blobs.map(|blob| blob.unwrap().len()).sum()))
    }

    fn files(&self, input: impl IntoInput<OpenFile>) -> Call<usize> {
        Call::ready(Ok(input.into_input().ready_items::<OpenFile>().filter(Result::is_err).count()))
    }

    fn until_the_end(&self, _: impl IntoInput<u64>) -> Call<()> {
        Call::ready(Ok(()))
    }

    fn none(&self, _: impl IntoInput<String>) -> Call<()> {
        Call::ready(Ok(()))
    }

    fn no_input(&self) -> Call<u64> {
        Call::ready(Ok(8))
    }
}

#[tokio::test]
async fn a_mock_reads_its_input_and_can_be_a_trait_object() {
    assert_eq!(Mock.sum(1, iter([2, 3])).await.unwrap(), 6);
    assert_eq!(Mock.first(2, iter(1..)).await.unwrap(), 3);
    let doubled: Vec<u64> = {
        let mut items = Mock.doubled(iter([1, 2]));
        let mut doubled = Vec::new();
        while let Some(item) = items.next().await.unwrap() {
            doubled.push(item);
        }
        doubled
    };
    assert_eq!(doubled, [2, 4]);
    let blobs = [3, 2 << 20].map(|length| Blob::from(vec![7; length]));
    assert_eq!(Mock.bytes(iter(blobs)).await.unwrap(), 3 + (2 << 20));
    let file = OpenFile::from(std::fs::File::open("/dev/null").unwrap());
    assert_eq!(Mock.files(iter([file])).await.unwrap(), 1, "a mock is no worker");
    // The items before an error are there, and nothing behind it.
    let rows = [Ok(1), Err("the disk is gone"), Ok(2)];
    assert_eq!(Mock.sum(1, iter(rows)).await.unwrap(), "the disk is gone".len() as u64);
    let mut rows = IntoInput::<u64>::into_input(iter(rows)).ready_items::<u64>();
    assert!(rows.next().unwrap().is_ok() && rows.next().unwrap().is_err() && rows.next().is_none());
    // The methods without an input can be called by any mock.
    let calls: &dyn InputsCalls = &Mock;
    assert_eq!(calls.no_input().await.unwrap(), 8);
}

#[tokio::test]
async fn functions_of_untyped_interfaces_take_inputs() {
    let make = || {
        let methods = Methods::new()
            .stream_method("add", |words: &mut Vec<String>, input: &mut Receiver<String>| {
                for word in input {
                    words.push(word?);
                }
                Ok(words.len())
            })
            .stream_method(
                "find",
                |words: &mut Vec<String>,
                 most: u64,
                 input: &mut Receiver<String>,
                 out: &mut Emitter<bool>| {
                    let mut count = 0;
                    while let Some(word) = input.next()? {
                        count += 1;
                        if count > most {
                            return Err("too many".into());
                        }
                        out.send(&words.contains(&word))?;
                    }
                    Ok(count)
                },
            )
            .stream_function("sum", |from: u64, input: &mut Receiver<u64>| {
                Ok(from + input.sum::<Result<u64, _>>()?)
            })
            .stream_function("doubled", |input: &mut Receiver<u64>, out: &mut Emitter<u64>| {
                for number in input {
                    out.send(&(2 * number?))?;
                }
                Ok(())
            })
            .function("three", || Ok(3));
        (methods, Vec::<String>::new())
    };
    let client = Client::in_process(make).unwrap();
    let checkout = client.checkout();
    let words = || Input::iter(["one", "two"].map(str::to_owned));
    assert_eq!(checkout.call_with_input::<usize>("add", (), words()).await.unwrap(), 2);
    let asked = Input::iter(["two", "three", "one"]);
    let mut found = checkout.stream_with_input::<bool, u64>("find", (3,), asked);
    for expected in [true, false, true] {
        assert_eq!(found.next().await.unwrap(), Some(expected));
    }
    assert_eq!(found.finish().await.unwrap(), 3);
    let numbers = || Input::iter([1_u64, 2]);
    assert_eq!(checkout.call_with_input::<u64>("sum", (4,), numbers()).await.unwrap(), 7);
    let mut doubled = checkout.stream_with_input::<u64, ()>("doubled", (), numbers());
    assert_eq!((doubled.next().await.unwrap(), doubled.next().await.unwrap()), (Some(2), Some(4)));
    doubled.finish().await.unwrap();

    let error = checkout.stream_with_input::<bool, u64>("find", (1,), words()).finish().await;
    assert_eq!(error.unwrap_err().to_string(), "too many");
    let error = checkout.call_with_input::<u64>("sum", ("x",), numbers()).await.unwrap_err();
    assert!(error.to_string().contains("bad arguments"), "{error}");
    let error = checkout.call_with_input::<u64>("three", (), numbers()).await.unwrap_err();
    assert!(error.to_string().contains("`three` takes no input"), "{error}");
    // The error says what the call must do, so that a program can.
    let needs = |error: Error| match error {
        Error::Call { error: CallError::Arguments { needs, .. }, .. } => (needs.items, needs.input),
        other => panic!("{other:?}"),
    };
    let error = checkout.call::<u64>("sum", (4,)).await.unwrap_err();
    assert_eq!(needs(error), (false, true));
    let error = checkout.stream::<bool, u64>("find", (4,)).finish().await.unwrap_err();
    assert_eq!(needs(error), (false, true));
    let error = checkout.call_with_input::<u64>("find", (4,), words()).await.unwrap_err();
    assert_eq!(needs(error), (true, false));
    let error = checkout.call::<u64>("three", ("x",)).await.unwrap_err();
    assert_eq!(needs(error), (false, false));
}
