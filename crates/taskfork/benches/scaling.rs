//! Calls per second with 1 to 1,000 concurrent tasks, and the turns of a task that only yields
//! meanwhile. The runtime has a thread for each core, and the server a worker for each core.
//! `cargo bench -p taskfork --bench scaling` prints a line for each number of tasks.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run stops")]
#![allow(missing_docs, reason = "nothing here is for users")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use taskfork::{Client, Methods, Server, ServerBuilder, ServerError};

const CALLS: usize = 20_000;
const ROUNDS: usize = 5;

fn echo(server: ServerBuilder) -> Result<(), ServerError> {
    server.interface(Methods::new().function("echo", |text: String| Ok(text))).run()
}

fn main() {
    taskfork::init(&[("echo", echo)]);
    let server = Server::spawn("echo").unwrap();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(cores).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::builder().address(server.address()).max_workers(cores);
        let client = client.min_workers(cores).build().unwrap();
        for tasks in [1, 10, 100, 1000] {
            let mut rates = Vec::new();
            let mut turns = Vec::new();
            for _ in 0..ROUNDS {
                let (rate, turn) = calls(&client, tasks).await;
                rates.push(rate);
                turns.push(turn);
            }
            rates.sort_by(f64::total_cmp);
            turns.sort_by(f64::total_cmp);
            let (rate, turn) = (rates[ROUNDS / 2], turns[ROUNDS / 2]);
            println!("tasks {tasks} calls/s {rate:.0} turns of another task a call {turn:.1}");
        }
    });
}

/// Calls per second of `tasks` tasks, and turns of another task per call.
async fn calls(client: &Client, tasks: usize) -> (f64, f64) {
    let (over, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let other = tokio::spawn({
        let (over, turns) = (over.clone(), turns.clone());
        async move {
            while !over.load(Relaxed) {
                turns.fetch_add(1, Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    let start = Instant::now();
    let callers: Vec<_> = (0..tasks)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..CALLS / tasks {
                    let back: String = client.call("echo", ("text",)).await.unwrap();
                    assert_eq!(back, "text");
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let rate = CALLS as f64 / start.elapsed().as_secs_f64();
    over.store(true, Relaxed);
    other.await.unwrap();
    (rate, turns.load(Relaxed) as f64 / CALLS as f64)
}
