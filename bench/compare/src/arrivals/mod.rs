//! Latency of a service: requests arrive at random, and each makes one call.
//!
//! The load is an open loop: a request arrives when the schedule says so, whether or not earlier ones
//! have their answers. Its latency is the time from that moment until its answer, so a request that
//! arrives late because the program was busy counts as slow (no coordinated omission).
//!
//! A thread of its own makes the requests arrive (see `generator`). The candidate `arrivals alone` gets
//! the same requests and makes no call: its figures are the part of all others' that is not theirs.

mod generator;
mod schedule;
mod services;

use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use crate::processor_time;
use crate::sample::{Sample, micros};
use generator::Served;
use services::Service;

/// The workers, or threads, of each candidate.
const WORKERS: usize = 4;

/// All candidates get the same arrivals.
const SEED: u64 = 20_260_114;

/// How requests arrive, and where they are served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Requests a second.
    pub rate: f64,
    /// Threads of the runtime. With one it is a runtime of the current thread.
    pub threads: usize,
}

impl Load {
    /// Reads it from the name of a work, such as `arrivals_50_on_2`.
    pub fn from_name(work: &str) -> Option<Self> {
        let (rate, threads) = work.strip_prefix("arrivals_")?.split_once("_on_")?;
        Some(Self { rate: rate.parse().ok()?, threads: threads.parse().ok()? })
    }

    /// The number of requests that may wait at a time, those of half a second. A candidate that has
    /// more does not keep up.
    fn most_outstanding(self) -> usize {
        (self.rate / 2.0).clamp(100.0, 1000.0) as usize
    }
}

pub fn measure(name: &str, load: Load, calls: usize) -> Sample {
    let runtime = runtime(load.threads, name);
    let entered = runtime.enter();
    let Some(service) = Service::start(name, WORKERS) else { return Sample::failed("not known") };
    drop(entered);
    let service = Arc::new(service);
    runtime.block_on(warm_up(&service));
    let schedule = schedule::arrivals(load.rate, calls, SEED);
    let before = processor_time::of_all_processes();
    // Its workers must live until their processor time has been read.
    let served = generator::start(runtime.handle(), service.clone(), schedule, load);
    let served = runtime.block_on(async { served.await.map_err(|error| error.to_string())? });
    let used = processor_time::of_all_processes().saturating_sub(before);
    match served {
        Ok(Served { times, generator }) => Sample {
            processor: Some(micros(used.saturating_sub(generator)) / calls as f64),
            ..Sample::times(times)
        },
        Err(why) => Sample::failed(why),
    }
}

fn runtime(threads: usize, name: &str) -> Runtime {
    let mut builder = if threads == 1 {
        Builder::new_current_thread()
    } else {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(threads);
        builder
    };
    if name == "spawn_blocking" {
        builder.max_blocking_threads(WORKERS);
    }
    builder.enable_all().build().expect("a runtime")
}

/// Makes all workers start, and run the code of a call often enough to have it in memory.
async fn warm_up(service: &Arc<Service>) {
    for _ in 0..50 {
        let calls: Vec<_> = (0..WORKERS)
            .map(|_| {
                let service = service.clone();
                tokio::spawn(async move { service.call().await })
            })
            .collect();
        for call in calls {
            call.await.expect("a task").expect("an answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_work_is_its_load() {
        assert_eq!(Load::from_name("arrivals_50_on_2"), Some(Load { rate: 50.0, threads: 2 }));
        assert_eq!(Load::from_name("arrivals_50"), None);
        assert_eq!(Load::from_name("latency"), None);
    }
}
