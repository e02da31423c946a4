//! Many tasks that call at the same time.

use std::time::Instant;

use taskfork::Client;
use tokio::runtime::Builder;

use crate::sample::Sample;

/// Calls a second on 2 workers of all tasks together. Each task has one call at a time.
pub fn measure(tasks: usize, threads: usize, calls: usize) -> Sample {
    let server = taskfork::Server::spawn("plain").expect("a server");
    let runtime = match threads {
        1 => Builder::new_current_thread().enable_all().build(),
        _ => Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    let runtime = runtime.expect("a runtime");
    let entered = runtime.enter();
    let client = Client::builder().address(server.address()).min_workers(2).max_workers(2);
    let client = client.build().expect("a client");
    drop(entered);
    let run = |calls: usize| {
        let all = async {
            let callers: Vec<_> = (0..tasks)
                .map(|_| {
                    let client = client.clone();
                    tokio::spawn(async move {
                        let text = crate::pools::text();
                        for _ in 0..calls.div_ceil(tasks) {
                            let _: String = client.call("echo", (&text,)).await.expect("an answer");
                        }
                    })
                })
                .collect();
            for caller in callers {
                caller.await.expect("a task");
            }
        };
        runtime.block_on(all);
    };
    run(1000);
    let start = Instant::now();
    run(calls);
    let made = calls.div_ceil(tasks) * tasks;
    Sample::of(made as f64 / start.elapsed().as_secs_f64())
}
