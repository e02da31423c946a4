//! The plans of the simulation, run against real servers and the real kernel. So what the simulated kernel
//! assumes is compared with the real one: the same callers, checks and faults, as far as a test can cause
//! them.
//!
//! With `SIMULATE=real` it runs for 60 seconds, or as long as `SIMULATE_SECONDS` says, and otherwise for a
//! moment. `SEED` and `TRACE` run one plan, as in the simulation.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

#[allow(dead_code, reason = "a real run needs only some of it")]
mod caller;
#[path = "../faults/cgroup.rs"]
mod cgroup;
#[allow(dead_code, reason = "a real run needs only some of it")]
mod monitor;
#[allow(dead_code, reason = "a real run needs only some of it")]
mod plan;
mod program;
mod random;
mod real;
#[allow(dead_code, reason = "a real run needs only some of it")]
mod record;
#[allow(dead_code, reason = "a real run needs only some of it")]
mod rules;
#[path = "../faults/server_command.rs"]
mod server_command;
mod words;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plan::Plan;
use record::Counts;

/// How many plans run at the same time. Most of the time they wait.
const CONCURRENT: usize = 6;

fn main() {
    if program::run_requested() {
        return;
    }
    let mut arguments = std::env::args().skip(1);
    if arguments.any(|argument| !argument.starts_with('-') && !"simulation".contains(&*argument)) {
        return;
    }
    let variable = |name| std::env::var(name).ok();
    let one = variable("TRACE").map(|text| Plan::parse(&text).unwrap());
    let one = one.or_else(|| variable("SEED").map(|seed| Plan::of(seed.parse().unwrap())));
    if let Some(plan) = one {
        let complaint = real::run(&plan, true).0;
        assert!(complaint.is_none(), "{}", complaint.unwrap_or_default());
        return;
    }
    let is_long = variable("SIMULATE").is_some_and(|mode| mode == "real");
    let seconds = variable("SIMULATE_SECONDS").map(|seconds| seconds.parse().unwrap());
    let time = Duration::from_secs(seconds.unwrap_or(if is_long { 60 } else { 4 }));
    // What a process opens once is no leak.
    real::run(&Plan::of(0), false);
    let before = descriptors();
    let (seeds, counts, failed) = run_for(time);
    println!("simulation: {seeds} plans on the real kernel: {counts:?}");
    if let Some(failed) = failed {
        panic!("{failed}");
    }
    let left = descriptors();
    assert!(left <= before, "{left} descriptors are open, {before} were");
    assert!(counts.succeeded > seeds && counts.steps > 20 * seeds, "{counts:?}");
}

/// Runs plan after plan. Returns how many, what came about, and the first failure.
fn run_for(time: Duration) -> (u64, Counts, Option<String>) {
    let (next, until) = (AtomicU64::new(0), Instant::now() + time);
    let (total, failed) = (Mutex::new(Counts::default()), Mutex::new(None));
    let work = || {
        while Instant::now() < until && failed.lock().unwrap().is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let (complaint, counts) = real::run(&Plan::of(seed), false);
            total.lock().unwrap().add(counts);
            if let Some(complaint) = complaint {
                *failed.lock().unwrap() = Some(format!("SEED={seed}: {complaint}"));
            }
        }
    };
    std::thread::scope(|scope| (0..CONCURRENT).for_each(|_| drop(scope.spawn(work))));
    let (total, failed) = (*total.lock().unwrap(), failed.lock().unwrap().take());
    (next.into_inner(), total, failed)
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
