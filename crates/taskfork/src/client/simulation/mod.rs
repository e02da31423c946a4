//! The client in virtual time, over streams in memory, against workers and callers that do what a seed says.
//!
//! Streams split messages, have bad timing and end. Workers are slow to greet, fail, hang and die. Callers drop
//! calls and checkouts. One thread runs it all with tokio's paused clock, so a seed always does the same, and
//! a timeout of a minute costs nothing.
//!
//! ```sh
//! SEED=17 cargo test -p taskfork --lib simulation -- --nocapture
//! ```

mod caller;
mod check;
mod plan;
mod worker;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::caller::{Ended, call_all};
use self::check::check;
use self::plan::Plan;
use self::worker::Worker;
use super::io::transport::memory::{Server, Watch};
use super::{Address, BusyPoll, Client};
use crate::address::AddressKind;
use crate::sync::lock;

/// The longest frame, in bytes.
const MAX_FRAME: usize = 1 << 16;

/// What happened in a run.
#[derive(Debug, Default)]
struct Record {
    /// The calls that workers have begun, in that order.
    begun: Vec<u64>,
    /// How many streams there have been.
    connections: u64,
    /// Those that the client has open, and perhaps others.
    open: Vec<Watch>,
    /// The most that the client had open at once.
    most_open: usize,
    /// How many workers run.
    workers: usize,
    /// How the calls of each checkout ended, in their order.
    ended: Vec<Vec<Ended>>,
    /// How many workers still ran after the client was closed.
    workers_left: usize,
}

type SharedRecord = Arc<Mutex<Record>>;

async fn run(plan: Plan) -> Record {
    let record = SharedRecord::default();
    let of_server = record.clone();
    let server = Server::shared(move |connect| {
        let number = {
            let mut record = lock(&of_server);
            record.connections += 1;
            record.workers += 1;
            record.connections - 1
        };
        let stream = connect(plan.faults(number));
        {
            let mut record = lock(&of_server);
            record.open.retain(Watch::is_open);
            record.open.push(stream.watch());
            record.most_open = record.most_open.max(record.open.len());
        }
        let worker = Worker::new(stream, plan.worker(number), of_server.clone());
        tokio::spawn(worker.serve());
    });
    let client = Client::builder()
        .address(Address(AddressKind::Memory(server)))
        .max_workers(plan.workers)
        .min_workers(0)
        .max_frame(MAX_FRAME)
        .busy_poll(BusyPoll::Off)
        .reuse_after_error(plan.reuse_after_error)
        .timeout(plan.timeout)
        .build()
        .unwrap();
    let callers: Vec<_> = (0..plan.checkouts)
        .map(|number| tokio::spawn(call_all(client.clone(), plan, number)))
        .collect();
    for caller in callers {
        let ended = caller.await.unwrap();
        lock(&record).ended.push(ended);
    }
    client.close().await;
    let stats = client.stats();
    assert_eq!((stats.idle, stats.busy, stats.connecting, stats.queued), (0, 0, 0, 0), "{plan:?}");
    // A worker sees the end of its stream, or notices it after its longest pause.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut record = std::mem::take(&mut *lock(&record));
    record.workers_left = record.workers;
    record
}

fn run_seed(seed: u64) -> (Plan, Record) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let plan = Plan::of(seed);
    let record = runtime.block_on(run(plan));
    (plan, record)
}

#[test]
fn each_call_ends_once_and_as_the_worker_has_done() {
    if let Some(seed) = std::env::var_os("SEED") {
        let (plan, record) = run_seed(seed.to_str().unwrap().parse().unwrap());
        println!("{plan:#?}\n{record:#?}");
        check(&plan, &record);
        return;
    }
    let (mut succeeded, mut failed) = (0, 0);
    for seed in 0..4000 {
        let (plan, record) = run_seed(seed);
        check(&plan, &record);
        let results = record.ended.iter().flatten().filter_map(|ended| ended.result.as_ref());
        for result in results {
            *(if result.is_ok() { &mut succeeded } else { &mut failed }) += 1;
        }
    }
    // The seeds reach both.
    assert!(succeeded > 20_000 && failed > 4000, "{succeeded} succeed and {failed} fail");
}
