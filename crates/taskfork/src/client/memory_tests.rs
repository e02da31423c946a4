//! The client over a transport in memory, which splits messages, has bad timing and ends connections as a seed
//! says.

use std::future::poll_fn;
use std::io::IoSlice;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::io::transport::Transport;
use super::io::transport::memory::{Faults, Memory, Server};
use super::{Address, BusyPoll, Client};
use crate::address::AddressKind;
use crate::error::Error;
use crate::sync::lock;
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::hello::WorkerHello;
use crate::wire::native::{self, FromClient};

/// The longest frame of these tests.
const MAX_FRAME: usize = 1 << 16;

/// The calls that workers have begun, in that order.
type Begun = Arc<Mutex<Vec<u64>>>;

/// A worker. The result of a call is its argument, which is a number.
struct Worker {
    stream: Memory,
    inbox: BytesMut,
}

impl Worker {
    async fn serve(stream: Memory, pipeline_window: usize, begun: Begun) -> Option<()> {
        let mut worker = Self { stream, inbox: BytesMut::new() };
        while !frame::take_preamble(&mut worker.inbox).unwrap() {
            worker.receive().await?;
        }
        worker.take().await?;
        let mut hello = PREAMBLE.to_vec();
        let contents = WorkerHello { version: 1, pid: 1, pipeline_window, ..Default::default() };
        frame::put(&mut hello, |out| contents.put(out));
        worker.send(&hello).await?;
        let mut number = 0;
        loop {
            let message = worker.take().await?;
            let FromClient::Call { args, .. } = FromClient::decode(&message).unwrap() else {
                continue;
            };
            number += 1;
            lock(&begun).push(rmp_serde::from_slice(args.encoded()).unwrap());
            let mut answer = Vec::new();
            frame::put(&mut answer, |out| {
                native::put_ok(out, Some(number), args.format());
                out.extend_from_slice(args.encoded());
            });
            worker.send(&answer).await?;
        }
    }

    /// Takes the next message. `None` at the end of the connection.
    async fn take(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = frame::take(&mut self.inbox, MAX_FRAME).unwrap() {
                return Some(message);
            }
            self.receive().await?;
        }
    }

    async fn receive(&mut self) -> Option<()> {
        self.inbox.reserve(100);
        let (stream, inbox) = (&mut self.stream, &mut self.inbox);
        let mut files = Vec::new();
        let length = poll_fn(|context| stream.poll_read(context, inbox, &mut files)).await.ok()?;
        (length > 0).then_some(())
    }

    async fn send(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let slices = [IoSlice::new(bytes)];
            let write = poll_fn(|context| self.stream.poll_write(context, &slices, &[]));
            bytes = &bytes[write.await.ok()?..];
        }
        Some(())
    }
}

/// What a seed decides.
#[derive(Debug, Clone, Copy)]
struct Plan {
    seed: u64,
    pipeline_window: usize,
    workers: usize,
    checkouts: u64,
    calls: u64,
}

impl Plan {
    fn of(seed: u64) -> Self {
        // The seeds are consecutive, so their remainders are all there.
        Self {
            seed,
            pipeline_window: [0, 50, 1 << 16][seed as usize % 3],
            workers: 1 + seed as usize % 4,
            checkouts: 1 + seed % 5,
            calls: 1 + seed % 7,
        }
    }

    fn faults(self, connection: u64) -> Faults {
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) ^ connection;
        let ends = self.seed.is_multiple_of(2) && connection < 4;
        Faults {
            seed,
            max_piece: 1 + (seed % 60) as usize,
            capacity: 1 + (seed % 500) as usize,
            bad_timing: seed.is_multiple_of(3),
            // The hello has some 40 bytes.
            cut_after: ends.then_some(1 + (seed % 120) as usize),
        }
    }
}

/// The result of each call, in the order of its checkout.
async fn run(plan: Plan) -> (Vec<Vec<Result<u64, Error>>>, Vec<u64>) {
    let (begun, connections) = (Begun::default(), Mutex::new(0));
    let for_workers = begun.clone();
    let server = Server::shared(
        move || {
            let mut connections = lock(&connections);
            *connections += 1;
            plan.faults(*connections - 1)
        },
        move |stream| {
            let worker = Worker::serve(stream, plan.pipeline_window, for_workers.clone());
            tokio::spawn(worker);
        },
    );
    let client = Client::builder()
        .address(Address(AddressKind::Memory(server)))
        .max_workers(plan.workers)
        .min_workers(0)
        .max_frame(MAX_FRAME)
        .busy_poll(BusyPoll::Off)
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    let mut results = Vec::new();
    let checkouts: Vec<_> = (0..plan.checkouts)
        .map(|checkout| {
            let first = checkout * plan.calls;
            let checkout = client.checkout();
            (first..first + plan.calls)
                .map(|call| checkout.call("echo", (call,)))
                .collect::<Vec<_>>()
        })
        .collect();
    for calls in checkouts {
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await);
        }
        results.push(answers);
    }
    drop(client);
    let begun = lock(&begun).clone();
    (results, begun)
}

/// Checks what must hold whatever happens to the connections.
fn check(plan: Plan, results: &[Vec<Result<u64, Error>>], begun: &[u64]) {
    let context = || format!("{plan:?}: {results:?}; begun: {begun:?}");
    let mut once = begun.to_vec();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), begun.len(), "a call ran twice: {}", context());
    for (results, first) in results.iter().zip((0..).step_by(plan.calls as usize)) {
        let of_checkout = |call: &&u64| (first..first + plan.calls).contains(*call);
        let ran: Vec<_> = begun.iter().filter(of_checkout).copied().collect();
        assert!(ran.is_sorted(), "calls ran in another order: {}", context());
        let mut has_failed = false;
        for (result, call) in results.iter().zip(first..) {
            match result {
                Ok(answer) => {
                    assert_eq!(*answer, call, "another call's answer: {}", context());
                    assert!(!has_failed, "a call behind a failed one succeeds: {}", context());
                }
                Err(error) => {
                    has_failed = true;
                    assert!(!error.to_string().contains("timed out"), "it hangs: {}", context());
                    let is_begun = ran.contains(&call);
                    assert!(error.may_have_run() || !is_begun, "call {call} ran: {}", context());
                }
            }
        }
    }
}

#[test]
fn each_call_ends_once_whatever_happens_to_its_connection() {
    const SEEDS: u64 = 400;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // A call waits for the notice of its worker's death, so all seeds run at once.
    let outcomes = runtime.block_on(async {
        let runs: Vec<_> = (0..SEEDS).map(|seed| tokio::spawn(run(Plan::of(seed)))).collect();
        let mut outcomes = Vec::new();
        for run in runs {
            outcomes.push(run.await.unwrap());
        }
        outcomes
    });
    let (mut succeeded, mut failed) = (0, 0);
    for (seed, (results, begun)) in (0..).zip(outcomes) {
        check(Plan::of(seed), &results, &begun);
        succeeded += results.iter().flatten().filter(|result| result.is_ok()).count();
        failed += results.iter().flatten().filter(|result| result.is_err()).count();
    }
    assert!(succeeded > 1000 && failed > 50, "{succeeded} succeed and {failed} fail");
}
