//! The pools in Rust, and threads, behind one interface.

use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;
use taskfork::blob::BlobMut;
use taskfork::client::BusyPoll;
use taskfork::server::{ServerHandle, Stderr};
use taskfork::{Blob, BoxError, Client, Methods, Server, ServerBuilder, ServerError};
use tokio::runtime::{Builder, Runtime};

use crate::sample::Sample;

pub const COST: u32 = 8;

/// What is measured of each.
pub trait Pool {
    /// One call after the other, of 64 bytes each way.
    fn latencies(&mut self, calls: usize) -> Vec<Duration>;
    /// The number of concurrent calls of 64 bytes.
    fn outstanding(&mut self, calls: usize);
    /// Sends `bytes` to a worker, which returns them.
    fn echo(&mut self, bytes: Vec<u8>) -> Result<Body, String>;
    /// The number of concurrent hashes.
    fn hash(&mut self, tasks: usize);
    /// The worker that answers next, if there are processes.
    fn pid(&mut self) -> Option<u32>;
    /// All workers' processes.
    fn pids(&mut self) -> Vec<u32>;
}

/// What comes back.
pub type Body = Box<dyn AsRef<[u8]>>;

/// What was sent is kept until the time has been taken, as the bare socket keeps its buffer.
struct Exchanged {
    back: Blob,
    _sent: Blob,
}

impl AsRef<[u8]> for Exchanged {
    fn as_ref(&self) -> &[u8] {
        &self.back
    }
}

pub fn text() -> String {
    "x".repeat(64)
}

fn hash() -> String {
    bcrypt::hash("correct horse", COST).expect("a valid cost")
}

pub fn methods<S: 'static>() -> Methods<S> {
    Methods::new()
        .function("echo", |text: String| Ok(text))
        .function("bytes", |bytes: Blob| Ok(bytes))
        .function("hash", || Ok(hash()))
        .function("pid", || Ok(std::process::id()))
        .function("sleep", || {
            std::thread::sleep(crate::nats::SLEEP);
            Ok(())
        })
}

pub const LIMIT: usize = 300 << 20;

fn describe(server: ServerBuilder) -> ServerBuilder {
    server.max_frame(LIMIT)
}

pub const ENTRIES: &[(&str, taskfork::server::Entry)] = &[
    ("plain", |server| describe(server).interface(methods::<()>()).run()),
    ("asleep", |server| describe(server).busy_poll(BusyPoll::Off).interface(methods::<()>()).run()),
    ("many", |server| {
        // With the default there would be a pipe for each worker, and twice as many open files.
        let server = server.max_workers(20_000).stderr(Stderr::Inherit);
        server.interface(methods::<()>()).run()
    }),
    ("spares", |server| describe(server).spare_workers(2).interface(methods::<()>()).run()),
    ("preloaded", preloaded),
    ("listening", |server| {
        let address: String = server.config()?;
        describe(server).listen(address).busy_poll(BusyPoll::Off).interface(methods::<()>()).run()
    }),
    ("typed", |server| {
        describe(server).setup(|| Ok::<_, BoxError>(Worker)).interface(EchoInterface).run()
    }),
];

fn preloaded(server: ServerBuilder) -> Result<(), ServerError> {
    describe(server)
        .preload(|| Ok::<_, BoxError>(vec![b'x'; 256 << 20]))
        .setup(Ok::<&'static Vec<u8>, BoxError>)
        .interface(methods())
        .run()
}

#[taskfork::interface]
pub trait Echo {
    fn echo(&mut self, text: String) -> String;
    fn bytes(&mut self, bytes: Blob) -> Blob;
    fn hash(&mut self) -> String;
    fn pid(&mut self) -> u32;
}

struct Worker;

impl Echo for Worker {
    fn echo(&mut self, text: String) -> String {
        text
    }

    fn bytes(&mut self, bytes: Blob) -> Blob {
        bytes
    }

    fn hash(&mut self) -> String {
        hash()
    }

    fn pid(&mut self) -> u32 {
        std::process::id()
    }
}

/// taskfork from a program with tokio.
pub struct Ours {
    runtime: Runtime,
    client: Client,
    /// It ends with this.
    _server: ServerHandle,
    typed: bool,
    workers: usize,
}

impl Ours {
    pub fn new(entry: &str, workers: usize, busy_poll: BusyPoll) -> Self {
        let server = Server::spawn(entry).expect("a server");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let guard = runtime.enter();
        let client = Client::builder().address(server.address()).min_workers(0);
        let client =
            client.max_workers(workers).max_frame(LIMIT).busy_poll(busy_poll).timeout(None);
        let client = client.build().expect("a client");
        drop(guard);
        Self { runtime, client, _server: server, typed: entry == "typed", workers }
    }

    /// Time of the second exchange of `bytes` bytes, in memory that the caller has filled in place.
    pub fn hand_over(&mut self, bytes: usize) -> Duration {
        let mut times = [Duration::ZERO; 2];
        for time in &mut times {
            let mut blob = BlobMut::new(bytes).expect("memory");
            blob.fill(b'x');
            let blob = blob.freeze().expect("sealed memory");
            let start = Instant::now();
            let back = self.runtime.block_on(self.client.call::<Blob>("bytes", (&blob,)));
            *time = start.elapsed();
            assert_eq!(back.expect("an answer").len(), bytes);
        }
        times[1]
    }

    /// Time of an exchange of `bytes` bytes through pooled shared memory, with the copy into it.
    pub fn lend(&mut self, bytes: usize) -> Duration {
        // Before there is such memory it has to pay.
        const BEFORE: usize = 8;
        let body = Blob::from(vec![b'x'; bytes]);
        let checkout = self.client.checkout();
        let mut times = [Duration::ZERO; 5];
        for round in 0..BEFORE + times.len() {
            let start = Instant::now();
            let back = self.runtime.block_on(checkout.call::<Blob>("bytes", (&body,)));
            if let Some(time) = round.checked_sub(BEFORE).and_then(|place| times.get_mut(place)) {
                *time = start.elapsed();
            }
            assert_eq!(back.expect("an answer").len(), bytes);
        }
        times.sort();
        times[times.len() / 2]
    }

    /// Connect, fork and first answer. The workers live until all have been measured, as no other
    /// process is to exit meanwhile.
    pub fn new_workers(&mut self) -> Sample {
        let (text, mut held) = (text(), Vec::new());
        self.runtime.block_on(async {
            let mut times = Vec::new();
            for _ in 0..21 {
                let start = Instant::now();
                let checkout = self.client.checkout();
                checkout.call::<String>("echo", (&text,)).await.expect("an answer");
                times.push(start.elapsed());
                held.push(checkout);
            }
            Sample::times(times)
        })
    }

    /// Calls made at once on one checkout.
    pub fn queued(&mut self, calls: usize) -> Duration {
        self.runtime.block_on(async {
            let checkout = self.client.checkout();
            checkout.ready().await.expect("a worker");
            let start = Instant::now();
            let calls: Vec<_> =
                (0..calls).map(|_| checkout.call::<String>("echo", (text(),))).collect();
            for call in calls {
                call.await.expect("an answer");
            }
            start.elapsed()
        })
    }
}

impl Pool for Ours {
    fn latencies(&mut self, calls: usize) -> Vec<Duration> {
        let text = text();
        self.runtime.block_on(async {
            let checkout = self.client.checkout();
            let mut times = Vec::with_capacity(calls);
            for _ in 0..calls {
                let start = Instant::now();
                let answer: String = if self.typed {
                    checkout.echo(&text).await.expect("an answer")
                } else {
                    checkout.call("echo", (&text,)).await.expect("an answer")
                };
                times.push(start.elapsed());
                assert_eq!(answer.len(), 64);
            }
            times
        })
    }

    fn outstanding(&mut self, calls: usize) {
        self.runtime.block_on(async {
            let calls: Vec<_> =
                (0..calls).map(|_| self.client.call::<String>("echo", (text(),))).collect();
            for call in calls {
                call.await.expect("an answer");
            }
        });
    }

    fn echo(&mut self, bytes: Vec<u8>) -> Result<Body, String> {
        let sent = Blob::from(bytes);
        let call = self.client.call::<Blob>("bytes", (&sent,));
        let back = self.runtime.block_on(call).map_err(|error| error.to_string())?;
        Ok(Box::new(Exchanged { back, _sent: sent }))
    }

    fn hash(&mut self, tasks: usize) {
        self.runtime.block_on(async {
            let calls: Vec<_> =
                (0..tasks).map(|_| self.client.call::<String>("hash", ())).collect();
            for call in calls {
                call.await.expect("a hash");
            }
        });
    }

    fn pid(&mut self) -> Option<u32> {
        self.runtime.block_on(self.client.call("pid", ())).ok()
    }

    fn pids(&mut self) -> Vec<u32> {
        self.runtime.block_on(async {
            let held: Vec<_> = (0..self.workers).map(|_| self.client.checkout()).collect();
            let mut pids = Vec::new();
            for checkout in &held {
                pids.push(checkout.call("pid", ()).await.expect("a worker"));
            }
            pids
        })
    }
}

/// taskfork from a program without async.
pub struct Blocking {
    client: taskfork::blocking::Client,
    _server: ServerHandle,
    workers: usize,
}

impl Blocking {
    pub fn new(entry: &str, workers: usize, busy_poll: BusyPoll) -> Self {
        let server = Server::spawn(entry).expect("a server");
        let client = Client::builder().address(server.address()).min_workers(0);
        let client =
            client.max_workers(workers).max_frame(LIMIT).busy_poll(busy_poll).timeout(None);
        let client = client.build_blocking().expect("a client");
        Self { client, _server: server, workers }
    }
}

impl Pool for Blocking {
    fn latencies(&mut self, calls: usize) -> Vec<Duration> {
        let (text, checkout) = (text(), self.client.checkout());
        let time = |_| {
            let start = Instant::now();
            let _: String = checkout.call("echo", (&text,)).expect("an answer");
            start.elapsed()
        };
        (0..calls).map(time).collect()
    }

    fn outstanding(&mut self, calls: usize) {
        // Without async, a program can have one outstanding call for each thread: one thread for each worker.
        std::thread::scope(|scope| {
            for _ in 0..self.workers {
                scope.spawn(|| {
                    for _ in 0..calls / self.workers {
                        let _: String = self.client.call("echo", (text(),)).expect("an answer");
                    }
                });
            }
        });
    }

    fn echo(&mut self, bytes: Vec<u8>) -> Result<Body, String> {
        let sent = Blob::from(bytes);
        let back = self.client.call("bytes", (&sent,)).map_err(|error| error.to_string())?;
        Ok(Box::new(Exchanged { back, _sent: sent }))
    }

    fn hash(&mut self, tasks: usize) {
        std::thread::scope(|scope| {
            for _ in 0..self.workers {
                scope.spawn(|| {
                    for _ in 0..tasks / self.workers {
                        let _: String = self.client.call("hash", ()).expect("a hash");
                    }
                });
            }
        });
    }

    fn pid(&mut self) -> Option<u32> {
        self.client.call("pid", ()).ok()
    }

    fn pids(&mut self) -> Vec<u32> {
        self.pid().into_iter().collect()
    }
}

/// procspawn's pool.
pub struct Procspawn(procspawn::Pool);

impl Procspawn {
    pub fn new(workers: usize) -> Self {
        Self(procspawn::Pool::new(workers).expect("a pool"))
    }
}

impl Pool for Procspawn {
    fn latencies(&mut self, calls: usize) -> Vec<Duration> {
        let time = |_| {
            let start = Instant::now();
            self.0.spawn(text(), |text: String| text).join().expect("an answer");
            start.elapsed()
        };
        (0..calls).map(time).collect()
    }

    fn outstanding(&mut self, calls: usize) {
        // With more at once it runs out of descriptors.
        let mut left = calls;
        while left > 0 {
            let now = left.min(200);
            let calls: Vec<_> =
                (0..now).map(|_| self.0.spawn(text(), |text: String| text)).collect();
            calls.into_iter().for_each(|call| drop(call.join().expect("an answer")));
            left -= now;
        }
    }

    fn echo(&mut self, bytes: Vec<u8>) -> Result<Body, String> {
        let call = self.0.spawn(ByteBuf::from(bytes), |bytes: ByteBuf| bytes);
        Ok(Box::new(call.join().map_err(|error| error.to_string())?))
    }

    fn hash(&mut self, tasks: usize) {
        let calls: Vec<_> = (0..tasks).map(|_| self.0.spawn((), |()| hash())).collect();
        calls.into_iter().for_each(|call| drop(call.join().expect("a hash")));
    }

    fn pid(&mut self) -> Option<u32> {
        self.0.spawn((), |()| std::process::id()).join().ok()
    }

    fn pids(&mut self) -> Vec<u32> {
        let slow = |()| {
            std::thread::sleep(Duration::from_millis(50));
            std::process::id()
        };
        let calls: Vec<_> = (0..8).map(|_| self.0.spawn((), slow)).collect();
        let mut pids: Vec<u32> =
            calls.into_iter().map(|call| call.join().expect("a pid")).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// Threads of one's own process, for what a user gives isolation up.
pub struct Threads(Runtime);

impl Threads {
    pub fn new(workers: usize) -> Self {
        let mut runtime = Builder::new_multi_thread();
        runtime.worker_threads(1).max_blocking_threads(workers);
        Self(runtime.enable_all().build().expect("a runtime"))
    }
}

impl Pool for Threads {
    fn latencies(&mut self, calls: usize) -> Vec<Duration> {
        self.0.block_on(async {
            let mut times = Vec::new();
            for _ in 0..calls {
                let (start, text) = (Instant::now(), text());
                tokio::task::spawn_blocking(move || text).await.expect("an answer");
                times.push(start.elapsed());
            }
            times
        })
    }

    fn outstanding(&mut self, calls: usize) {
        self.0.block_on(async {
            let calls: Vec<_> = (0..calls)
                .map(|_| {
                    let text = text();
                    tokio::task::spawn_blocking(move || text)
                })
                .collect();
            for call in calls {
                call.await.expect("an answer");
            }
        });
    }

    fn echo(&mut self, bytes: Vec<u8>) -> Result<Body, String> {
        let call = async { tokio::task::spawn_blocking(move || bytes).await };
        Ok(Box::new(self.0.block_on(call).map_err(|error| error.to_string())?))
    }

    fn hash(&mut self, tasks: usize) {
        self.0.block_on(async {
            let calls: Vec<_> = (0..tasks).map(|_| tokio::task::spawn_blocking(hash)).collect();
            for call in calls {
                call.await.expect("a hash");
            }
        });
    }

    fn pid(&mut self) -> Option<u32> {
        None
    }

    fn pids(&mut self) -> Vec<u32> {
        Vec::new()
    }
}
