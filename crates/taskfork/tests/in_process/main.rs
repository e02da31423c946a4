//! Clients whose workers are threads of this process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod blocking;
mod inputs;
mod several;
mod streams;
mod typed;

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskfork::blob::OpenFile;
use taskfork::client::{Caller, ConfigError, Protocol};
use taskfork::error::{CallError, FatalError, Stage, TimeoutOption};
use taskfork::trace_context::{self, TraceContext};
use taskfork::worker::{context, logger};
use taskfork::{Blob, BoxError, Client, Error, Methods, log_defer};

#[taskfork::interface]
trait Account {
    /// Adds to the sum, and returns it.
    fn add(&mut self, more: i64) -> Result<i64, TooMuch>;
}

#[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{sum} is too much")]
struct TooMuch {
    sum: i64,
}

/// A state that cannot be sent to another thread, and which tells when it is dropped.
struct State {
    sum: Rc<i64>,
    dropped: Option<mpsc::Sender<()>>,
}

impl Account for State {
    fn add(&mut self, more: i64) -> Result<i64, TooMuch> {
        let sum = *self.sum + more;
        if sum > 100 {
            return Err(TooMuch { sum });
        }
        self.sum = Rc::new(sum);
        Ok(sum)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.dropped.iter().for_each(|dropped| dropped.send(()).unwrap());
    }
}

fn account(sum: i64) -> Client {
    Client::in_process(move || (AccountInterface, State { sum: Rc::new(sum), dropped: None }))
        .unwrap()
}

fn methods() -> Methods<u64> {
    Methods::new()
        .method("next", |count: &mut u64| {
            *count += 1;
            Ok(*count)
        })
        .method("thread", |_: &mut u64| Ok(format!("{:?}", std::thread::current().id())))
        .method("panic", |_: &mut u64| -> Result<(), BoxError> { panic!("no such row") })
        .method("fail", |_: &mut u64| -> Result<(), BoxError> { Err("no".into()) })
        .method("until_cancelled", |_: &mut u64| -> Result<(), BoxError> {
            while !context().is_cancelled() {
                std::thread::yield_now();
            }
            Err("cancelled, and cleaned up".into())
        })
        .method("left", |_: &mut u64| Ok((context().remaining(), context().peer().is_none())))
        .method("trace", |_: &mut u64| {
            Ok(trace_context::current().map(|trace| trace.traceparent().to_owned()))
        })
        .method("log", |_: &mut u64| {
            logger().info("a line");
            logger().debug("one that nobody wants");
            Ok(())
        })
        .method("length", |_: &mut u64, blob: Blob| Ok((blob.len(), blob)))
        .method("file", |_: &mut u64, _: OpenFile| Ok(()))
}

fn client() -> Client {
    Client::in_process(|| (methods(), 0)).unwrap()
}

#[tokio::test]
async fn typed_calls_reach_a_state_that_cannot_be_sent() {
    // Side by side, each with a state of its own.
    let (one, other) = (account(0), account(50));
    let checkout = one.checkout();
    assert_eq!(checkout.add(1).await.unwrap(), 1);
    assert_eq!(checkout.add(2).await.unwrap(), 3);
    assert_eq!(other.add(1).await.unwrap(), 51);
    let error = other.add(70).await.unwrap_err();
    assert!(matches!(
        error,
        Error::Call { error: CallError::Interface(TooMuch { sum: 121 | 120 }), .. }
    ));
}

#[tokio::test]
async fn the_state_is_dropped_with_the_client() {
    let (sender, dropped) = mpsc::channel();
    let sender = Mutex::new(sender);
    let make = move || {
        let sender = sender.lock().unwrap().clone();
        (AccountInterface, State { sum: Rc::new(0), dropped: Some(sender) })
    };
    let client = Client::in_process(make).unwrap();
    client.add(1).await.unwrap();
    assert!(dropped.try_recv().is_err());
    client.close().await;
    tokio::task::spawn_blocking(move || dropped.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_checkout_has_its_thread_alone() {
    let client = Client::builder().in_process(|| (methods(), 0)).max_workers(2).build().unwrap();
    let held = [client.checkout(), client.checkout()];
    let mut threads = Vec::new();
    for checkout in &held {
        threads.push(checkout.call::<String>("thread", ()).await.unwrap());
        assert_eq!(checkout.call::<u64>("next", ()).await.unwrap(), 1);
    }
    assert_ne!(threads[0], threads[1]);
    assert!(client.try_checkout().is_none());
    let waiting = client.call::<u64>("next", ());
    assert_eq!(client.stats().queued, 1);
    drop(held);
    assert_eq!(waiting.await.unwrap(), 2, "the state stays with its thread");
}

#[tokio::test]
async fn errors_and_panics_end_calls_and_the_next_checkout_has_a_new_state() {
    let client = client();
    let checkout = client.checkout();
    assert_eq!(checkout.call::<u64>("next", ()).await.unwrap(), 1);
    let error = checkout.call::<()>("panic", ()).await.unwrap_err();
    let Error::Call { error: CallError::Panic(panic), .. } = error else { panic!("{error:?}") };
    assert_eq!(panic.message, "no such row");
    assert!(panic.location.unwrap().file.ends_with("in_process/main.rs"));
    let error = checkout.call::<()>("missing", ()).await.unwrap_err();
    assert!(error.to_string().contains("there is fail, file"), "{error}");
    let error = checkout.call::<u64>("next", (1,)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error:?}");
    assert_eq!(checkout.call::<u64>("next", ()).await.unwrap(), 2);
    drop(checkout);
    assert_eq!(client.call::<u64>("next", ()).await.unwrap(), 1);
}

#[tokio::test]
async fn calls_behind_a_failed_one_do_not_run() {
    let client = client();
    let checkout = client.checkout();
    let (failed, behind) = (checkout.call::<()>("fail", ()), checkout.call::<u64>("next", ()));
    assert_eq!(failed.await.unwrap_err().to_string(), "no");
    let error = behind.await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Dropped { .. }, .. }), "{error:?}");
    assert_eq!(checkout.call::<u64>("next", ()).await.unwrap(), 1);
}

#[tokio::test]
async fn the_method_knows_its_time_and_the_client_ends_the_wait() {
    let client = client();
    let checkout = client.checkout().timeout(None);
    type Left = (Option<Duration>, bool);
    assert_eq!(checkout.call::<Left>("left", ()).await.unwrap(), (None, true));
    let checkout = checkout.timeout(Duration::from_secs(100));
    let (left, _) = checkout.call::<Left>("left", ()).await.unwrap();
    assert!(left.is_some_and(|left| left > Duration::from_secs(50)), "{left:?}");
    let (left, _) =
        client.with_run_timeout(Duration::from_secs(9)).call::<Left>("left", ()).await.unwrap();
    assert!(left.is_some_and(|left| left <= Duration::from_secs(9)), "{left:?}");

    // The answer of a method that sees the end of its time counts.
    let builder = Client::builder().in_process(|| (methods(), 0)).grace(Duration::from_secs(100));
    let client = builder.timeout(Duration::from_millis(20)).build().unwrap();
    let error = client.call::<()>("until_cancelled", ()).await.unwrap_err();
    assert_eq!(error.to_string(), "cancelled, and cleaned up");
}

#[tokio::test]
async fn a_thread_that_hangs_is_left_behind() {
    let (release, hangs) = mpsc::channel::<()>();
    let (hangs, runs) = (Arc::new(Mutex::new(hangs)), Arc::new(AtomicUsize::new(0)));
    let begun = runs.clone();
    let make = move || {
        let (hangs, begun) = (hangs.clone(), begun.clone());
        let methods = Methods::<()>::new().function("hang", move || {
            begun.fetch_add(1, Ordering::SeqCst);
            // Until the test ends.
            let _ = hangs.lock().unwrap().recv();
            Ok(())
        });
        (methods.function("pid", || Ok(std::process::id())), ())
    };
    let client = Client::builder().in_process(make).max_workers(1).timeout(None).build().unwrap();
    for limit in [TimeoutOption::Timeout, TimeoutOption::RunTimeout] {
        let time = Duration::from_millis(20);
        let limited = match limit {
            TimeoutOption::Timeout => client.with_timeout(time),
            _ => client.with_run_timeout(time),
        };
        let error = limited.call::<()>("hang", ()).await.unwrap_err();
        let Error::Fatal { cause: FatalError::TimedOut { limit: named, stage, .. }, .. } = error
        else {
            panic!("{error:?}")
        };
        assert_eq!((named, stage), (limit, Stage::Running));
        // Another thread serves on.
        assert_eq!(client.call::<u32>("pid", ()).await.unwrap(), std::process::id());
    }
    // A call that is dropped lets its thread go on too.
    let before = runs.load(Ordering::SeqCst);
    let mut hanging = client.call::<()>("hang", ());
    while runs.load(Ordering::SeqCst) == before {
        let _ = tokio::time::timeout(Duration::from_millis(1), &mut hanging).await;
    }
    drop(hanging);
    assert_eq!(client.call::<u32>("pid", ()).await.unwrap(), std::process::id());
    drop(release);
}

#[tokio::test]
async fn a_setup_that_panics_fails_the_call_and_is_tried_again() {
    let tries = AtomicUsize::new(0);
    let make = move || {
        assert!(tries.fetch_add(1, Ordering::SeqCst) > 0, "not the first time");
        (methods(), 0)
    };
    let client = Client::in_process(make).unwrap();
    let checkout = client.checkout();
    let error = checkout.call::<u64>("next", ()).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Setup { .. }, .. }), "{error:?}");
    assert!(error.to_string().contains("not the first time"), "{error}");
    assert_eq!(checkout.call::<u64>("next", ()).await.unwrap(), 1);
}

#[tokio::test]
async fn logs_and_traces_arrive() {
    let client = client();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    let log = log_defer::Log::builder()
        .verbosity(log_defer::Level::INFO)
        .start(move |message| kept.lock().unwrap().push(message));
    client.checkout().log(&log).call::<()>("log", ()).await.unwrap();
    drop(log);
    let messages = std::mem::take(&mut *lines.lock().unwrap());
    let logs = &messages[0].logs;
    assert_eq!((messages.len(), logs.len()), (1, 1), "{logs:?}");

    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let trace = TraceContext::new(parent).unwrap();
    let checkout = client.checkout().trace_context(trace);
    let seen: Option<String> = checkout.call("trace", ()).await.unwrap();
    assert_eq!(seen.as_deref(), Some(parent));
    assert_eq!(client.call::<Option<String>>("trace", ()).await.unwrap(), None);
    assert_eq!(trace_context::current(), None);
}

#[tokio::test]
async fn blobs_are_copied_and_files_are_refused() {
    let client = client();
    for length in [10, 100_000, 5_000_000] {
        let sent = Blob::from(vec![7; length]);
        let (count, blob): (usize, Blob) = client.call("length", (sent,)).await.unwrap();
        assert_eq!((count, blob.len()), (length, length));
        assert!(blob.iter().all(|&byte| byte == 7));
    }
    let file = OpenFile::from(std::fs::File::open("/dev/null").unwrap());
    let error = client.call::<()>("file", (file,)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error:?}");
    assert!(error.to_string().contains("open file"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_is_an_error_of_build() {
    let builder = Client::builder().in_process(|| (methods(), 0)).protocol(Protocol::Perl);
    let error = builder.build().unwrap_err();
    assert!(matches!(error, ConfigError::Option { option: "protocol", .. }), "{error:?}");
}

#[test]
fn threads_without_a_runtime_use_it_too() {
    let client = taskfork::blocking::Client::in_process(|| (methods(), 0)).unwrap();
    let checkout = client.checkout();
    assert_eq!(checkout.call::<u64>("next", ()).unwrap(), 1);
    assert_eq!(checkout.call::<u64>("next", ()).unwrap(), 2);
    let results = client.map(0..10, |client, _| client.call::<u64>("next", ()));
    assert_eq!(results.filter(Result::is_ok).count(), 10);
}

/// The trait is generic over what makes calls, so a client of threads fits everywhere.
async fn _accepts(caller: &impl Caller) -> Result<i64, Error<TooMuch>> {
    caller.add(1).await
}

#[tokio::test]
async fn a_call_whose_time_ends_while_the_interface_is_made_has_not_run() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let make = move || {
        // Ready for each worker once the sender is dropped.
        let _ = wait.lock().unwrap().recv();
        (Methods::new().function("add", |a: i64, b: i64| Ok(a + b)), ())
    };
    let client = Client::builder().in_process(make).grace(Duration::ZERO).build().unwrap();
    let short = client.with_timeout(Duration::from_millis(200));
    match short.call::<i64>("add", (1, 2)).await.unwrap_err() {
        Error::Fatal { cause: FatalError::TimedOut { stage, .. }, may_have_run, .. } => {
            assert_eq!((stage, may_have_run), (Stage::Setup, false));
        }
        error => panic!("{error:?}"),
    }
    drop(go);
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
}
