//! Many tasks that call at the same time.

use std::sync::Arc;
use std::time::Instant;

use taskfork::{Client, Server};
use tokio::runtime::{Builder, Runtime};

use crate::hand_written::Pool;
use crate::sample::Sample;

const WORKERS: usize = 2;

/// Calls a second on 2 workers of all tasks together. Each task has one call at a time.
pub fn measure(name: &str, tasks: usize, calls: usize) -> Sample {
    let runtime = runtime(if name.ends_with("on 1 thread") { 1 } else { 2 });
    let text = crate::pools::text();
    if name.starts_with("hand-written") {
        let entered = runtime.enter();
        let pool = Arc::new(Pool::new(WORKERS).expect("workers"));
        drop(entered);
        return rate(&runtime, tasks, calls, move || {
            let (pool, text) = (pool.clone(), text.clone());
            async move {
                pool.call(text.as_bytes()).await.expect("an answer");
            }
        });
    }
    let server = Server::spawn("plain").expect("a server");
    let entered = runtime.enter();
    let client = Client::builder().address(server.address());
    let client = client.min_workers(WORKERS).max_workers(WORKERS).build().expect("a client");
    drop(entered);
    rate(&runtime, tasks, calls, move || {
        let (client, text) = (client.clone(), text.clone());
        async move {
            let _: String = client.call("echo", (&text,)).await.expect("an answer");
        }
    })
}

fn runtime(threads: usize) -> Runtime {
    let runtime = match threads {
        1 => Builder::new_current_thread().enable_all().build(),
        _ => Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    runtime.expect("a runtime")
}

fn rate<F>(
    runtime: &Runtime,
    tasks: usize,
    calls: usize,
    call: impl Fn() -> F + Clone + Send + 'static,
) -> Sample
where
    F: Future<Output = ()> + Send,
{
    let run = |calls: usize| {
        runtime.block_on(async {
            let callers: Vec<_> = (0..tasks)
                .map(|_| {
                    let call = call.clone();
                    tokio::spawn(async move {
                        for _ in 0..calls.div_ceil(tasks) {
                            call().await;
                        }
                    })
                })
                .collect();
            for caller in callers {
                caller.await.expect("a task");
            }
        });
    };
    run(1000);
    let start = Instant::now();
    run(calls);
    let made = calls.div_ceil(tasks) * tasks;
    Sample::of(made as f64 / start.elapsed().as_secs_f64())
}
