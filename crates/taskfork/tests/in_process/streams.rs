//! Streams and progress of workers that are threads of this process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use taskfork::blob::OpenFile;
use taskfork::client::ProgressUpdates;
use taskfork::error::{CallError, FatalError};
use taskfork::worker::{EmitError, context};
use taskfork::{Blob, BoxError, Client, Emitter, Error, Methods, Progress, blocking};

#[taskfork::interface]
trait Streams {
    fn numbers(&mut self, count: u64, out: &mut Emitter<u64>) -> Result<u64, BoxError>;
    /// Sends texts of this length.
    fn texts(&mut self, length: usize, count: u64, out: &mut Emitter<String>) -> u64;
    /// Sends at most so many numbers, slowly, until nobody wants them.
    fn slowly(&mut self, count: u64, out: &mut Emitter<u64>);
    fn blobs(&mut self, lengths: Vec<usize>, out: &mut Emitter<Blob>);
    fn file(&mut self, out: &mut Emitter<OpenFile>) -> String;
    /// Makes two reports, and waits behind each for the test.
    fn report(&mut self) -> u32;
    fn report_and_stream(&mut self, out: &mut Emitter<u64>) -> u32;
}

/// What the methods do to the test, and the test to them.
#[derive(Clone)]
struct Shared {
    sent: Arc<AtomicU64>,
    /// How a method's last emission ended.
    ends: mpsc::Sender<Result<(), String>>,
    steps: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Shared {
    fn report(&self) -> u32 {
        for done in 1..=2 {
            context().progress(done, 2, "steps");
            self.steps.lock().unwrap().recv().unwrap();
        }
        2
    }
}

impl Streams for Shared {
    fn numbers(&mut self, count: u64, out: &mut Emitter<u64>) -> Result<u64, BoxError> {
        for number in 0..count {
            out.send(&number)?;
        }
        Ok(count)
    }

    fn texts(&mut self, length: usize, count: u64, out: &mut Emitter<String>) -> u64 {
        for number in 0..count {
            if let Err(error) = out.send(&"x".repeat(length)) {
                self.ends.send(Err(error.to_string())).unwrap();
                return number;
            }
            self.sent.fetch_add(1, Ordering::SeqCst);
        }
        count
    }

    fn slowly(&mut self, count: u64, out: &mut Emitter<u64>) {
        let mut sent = Ok(());
        for number in 0..count {
            sent = out.send(&number);
            if sent.is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.ends.send(sent.map_err(|error| error.to_string())).unwrap();
    }

    fn blobs(&mut self, lengths: Vec<usize>, out: &mut Emitter<Blob>) {
        for length in lengths {
            out.send(&Blob::from(vec![7; length])).unwrap();
        }
    }

    fn file(&mut self, out: &mut Emitter<OpenFile>) -> String {
        let file = OpenFile::from(std::fs::File::open("/dev/null").unwrap());
        out.send(&file).unwrap_err().to_string()
    }

    fn report(&mut self) -> u32 {
        Shared::report(self)
    }

    fn report_and_stream(&mut self, out: &mut Emitter<u64>) -> u32 {
        out.send(&7).unwrap();
        Shared::report(self)
    }
}

struct Worker {
    client: Client,
    sent: Arc<AtomicU64>,
    ends: mpsc::Receiver<Result<(), String>>,
    step: mpsc::Sender<()>,
}

fn worker() -> Worker {
    let (ends, ended) = mpsc::channel();
    let (step, steps) = mpsc::channel();
    let sent = Arc::new(AtomicU64::new(0));
    let shared = Shared { sent: sent.clone(), ends, steps: Arc::new(Mutex::new(steps)) };
    let shared = Mutex::new(shared);
    let make = move || (StreamsInterface, shared.lock().unwrap().clone());
    let builder = Client::builder().in_process(make).grace(Duration::ZERO);
    Worker { client: builder.build().unwrap(), sent, ends: ended, step }
}

/// Waits for what a method tells. The runtime goes on meanwhile.
async fn told(ends: mpsc::Receiver<Result<(), String>>) -> Result<(), String> {
    tokio::task::spawn_blocking(move || ends.recv().unwrap()).await.unwrap()
}

#[tokio::test]
async fn items_arrive_in_order_and_the_result_behind_them() {
    let Worker { client, .. } = worker();
    let checkout = client.checkout();
    for count in [0, 3, 20_000] {
        let mut numbers = checkout.numbers(count);
        for expected in 0..count {
            assert_eq!(numbers.next().await.unwrap(), Some(expected));
        }
        assert_eq!(numbers.next().await.unwrap(), None);
        assert_eq!(numbers.finish().await.unwrap(), count);
    }
    // By its name, and without reading the items. The call behind it waits.
    let unread = checkout.stream::<u64, u64>("numbers", (5000,));
    let behind = checkout.numbers(1);
    assert_eq!(unread.finish().await.unwrap(), 5000);
    assert_eq!(behind.finish().await.unwrap(), 1);
}

#[tokio::test]
async fn an_emitter_that_is_ahead_of_its_reader_waits() {
    const LENGTH: u64 = 10_000;
    // What the window holds, and the item that exceeds it.
    const AHEAD: u64 = (256 << 10) / LENGTH + 1;
    let Worker { client, sent, .. } = worker();
    let mut texts = client.texts(LENGTH as usize, 200);
    for read in 0..200 {
        let ahead = sent.load(Ordering::SeqCst).saturating_sub(read);
        assert!(ahead <= AHEAD, "{ahead} were sent and not read");
        assert_eq!(texts.next().await.unwrap().unwrap().len() as u64, LENGTH);
        // It may be ahead now, if it wants to.
        tokio::task::yield_now().await;
    }
    assert_eq!(texts.finish().await.unwrap(), 200);
}

#[tokio::test]
async fn the_next_item_of_a_dropped_stream_is_not_sent() {
    // With its checkout, the connection ends too.
    for keeps_checkout in [true, false] {
        let Worker { client, ends, .. } = worker();
        let checkout = client.checkout();
        // Their credit holds all of these.
        let mut numbers = checkout.slowly(900);
        assert_eq!(numbers.next().await.unwrap(), Some(0));
        drop(numbers);
        let checkout = Some(checkout).filter(|_| keeps_checkout);
        let error = told(ends).await.unwrap_err();
        assert_eq!(error, EmitError::Closed.to_string());
        if let Some(checkout) = checkout {
            assert_eq!(checkout.numbers(2).finish().await.unwrap(), 2, "the worker goes on");
        }
    }
}

#[tokio::test]
async fn the_end_of_the_time_ends_the_wait_for_a_reader() {
    let Worker { client, sent, ends, .. } = worker();
    // Of a limit that counts from an earlier moment, the call could miss its begin.
    let limited = client.with_timeout(None).with_run_timeout(Duration::from_millis(200));
    let mut texts = limited.texts(100_000, 100);
    // Nobody reads until the time is over.
    let error = told(ends).await.unwrap_err();
    assert_eq!(error, EmitError::Closed.to_string());
    let mut read = 0;
    let error = loop {
        match texts.next().await {
            Ok(Some(_)) => read += 1,
            Ok(None) => panic!("it has ended without an error"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Fatal { cause: FatalError::TimedOut { .. }, .. }), "{error:?}");
    assert!(read <= sent.load(Ordering::SeqCst));
    assert_eq!(client.numbers(3).finish().await.unwrap(), 3, "another thread serves on");
}

#[tokio::test]
async fn blobs_are_items_and_open_files_are_not() {
    let Worker { client, .. } = worker();
    let lengths = [0, 1, 100_000, 5_000_000, 3];
    let mut blobs = client.blobs(lengths.to_vec());
    for length in lengths {
        let blob = blobs.next().await.unwrap().unwrap();
        assert_eq!(blob.len(), length);
        assert!(blob.iter().all(|&byte| byte == 7));
    }
    blobs.finish().await.unwrap();
    let error = client.file().finish().await.unwrap();
    assert!(error.contains("open files"), "{error}");
}

async fn see(mut reports: ProgressUpdates, step: mpsc::Sender<()>) -> u64 {
    let mut seen = 0;
    while let Some(Progress { done, total, what, .. }) = reports.changed().await {
        assert_eq!((done, total, what.as_str()), (seen + 1, Some(2), "steps"));
        seen = done;
        // The method makes no other report before this one has arrived.
        step.send(()).unwrap();
    }
    seen
}

#[tokio::test]
async fn reports_of_progress_arrive_while_the_call_runs() {
    let Worker { client, step, .. } = worker();
    let checkout = client.checkout();
    for _ in 0..2 {
        let call = checkout.report();
        let (seen, result) = tokio::join!(see(call.progress(), step.clone()), call);
        assert_eq!((seen, result.unwrap()), (2, 2));
        let mut stream = checkout.report_and_stream();
        let reports = stream.progress();
        assert_eq!(stream.next().await.unwrap(), Some(7));
        let (seen, result) = tokio::join!(see(reports, step.clone()), stream.finish());
        assert_eq!((seen, result.unwrap()), (2, 2));
    }
    assert_eq!(checkout.numbers(1).progress().latest(), None);
}

#[tokio::test]
async fn wrong_uses_are_explained() {
    let Worker { client, .. } = worker();
    let checkout = client.checkout();
    let error = checkout.stream::<u64, u32>("report", ()).finish().await.unwrap_err();
    assert!(error.to_string().contains("`report` streams no items"), "{error}");
    let error = checkout.call::<u64>("numbers", (3,)).await.unwrap_err();
    assert!(error.to_string().contains("`numbers` streams items"), "{error}");
    let error = checkout.stream::<u64, u64>("nubmers", (3,)).finish().await.unwrap_err();
    let Error::Call { error: CallError::UnknownMethod { method, known }, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(method.as_deref(), Some("nubmers"));
    assert!(known.contains(&"numbers".to_owned()), "{known:?}");
}

#[test]
fn threads_without_a_runtime_read_items_too() {
    let make = || {
        let (ends, _) = mpsc::channel();
        let (_, steps) = mpsc::channel();
        let steps = Arc::new(Mutex::new(steps));
        (StreamsInterface, Shared { sent: Arc::default(), ends, steps })
    };
    let client = blocking::Client::in_process(make).unwrap();
    let mut numbers = client.stream::<u64, u64>("numbers", (3,));
    let all: Vec<u64> = numbers.by_ref().map(Result::unwrap).collect();
    assert_eq!((all, numbers.finish().unwrap()), (vec![0, 1, 2], 3));
}

#[tokio::test]
async fn functions_of_untyped_interfaces_stream() {
    let make = || {
        let methods = Methods::new()
            .stream_method("all", |words: &mut Vec<String>, out: &mut Emitter<String>| {
                words.iter().try_for_each(|word| out.send(word))?;
                Ok(words.len())
            })
            .method("add", |words: &mut Vec<String>, word: String| {
                words.push(word);
                Ok(())
            })
            .stream_function("between", |from: i64, to: i64, out: &mut Emitter<i64>| {
                (from..to).try_for_each(|number| out.send(&number))?;
                if to < from { Err("they go down".into()) } else { Ok(()) }
            });
        (methods, vec!["one".to_owned()])
    };
    let client = Client::in_process(make).unwrap();
    let checkout = client.checkout();
    checkout.call::<()>("add", ("two",)).await.unwrap();
    let mut all = checkout.stream::<String, usize>("all", ());
    assert_eq!(all.next().await.unwrap().as_deref(), Some("one"));
    assert_eq!(all.next().await.unwrap().as_deref(), Some("two"));
    assert_eq!(all.finish().await.unwrap(), 2);
    let mut between = checkout.stream::<i64, ()>("between", (-1, 1));
    assert_eq!((between.next().await.unwrap(), between.next().await.unwrap()), (Some(-1), Some(0)));
    between.finish().await.unwrap();

    let error = |error: Result<(), Error>| error.unwrap_err().to_string();
    assert_eq!(error(checkout.stream::<i64, ()>("between", (2, 1)).finish().await), "they go down");
    let wrong = error(checkout.stream::<i64, ()>("between", ("x", 1)).finish().await);
    assert!(wrong.contains("bad arguments"), "{wrong}");
    let wrong = error(checkout.call::<()>("between", (1, 2)).await);
    assert!(wrong.contains("`between` streams items"), "{wrong}");
    let wrong = error(checkout.stream::<i64, ()>("add", ("x",)).finish().await);
    assert!(wrong.contains("`add` streams no items"), "{wrong}");
    let wrong = error(checkout.stream::<i64, ()>("betwen", (1, 2)).finish().await);
    assert_eq!(wrong, "unknown method `betwen`: there is add, all, between");
}
