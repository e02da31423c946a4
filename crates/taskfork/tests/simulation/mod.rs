//! The client in virtual time, with servers and workers over a simulated kernel, against all that can go wrong.
//!
//! A seed expands to a plan: steps of callers, and faults. One thread runs it all with tokio's paused clock, so a plan
//! always does the same, and a timeout of a minute costs nothing. A plan that fails is made as short as possible
//! and printed.
//!
//! ```sh
//! SEED=17 cargo test -p taskfork --lib simulation
//! TRACE='server:1:0:9:200:0:0:0:0:0 client:1:0:0:0:1000:0:0 caller:0 echo die' cargo test -p taskfork --lib simulation
//! SEEDS=10000 cargo test -p taskfork --lib simulation
//! ```

mod caller;
mod kernel;
mod link;
mod monitor;
mod plan;
mod random;
mod record;
mod rules;
mod run;
mod server;
mod shrink;
mod slot;
mod streaming;
mod words;
mod worker;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use self::plan::Plan;
use self::record::Counts;
use self::run::{Outcome, run};
use self::shrink::shrink;
use crate::sync::lock;

/// How many seeds run unless `SEEDS` says otherwise.
const DEFAULT_SEEDS: u64 = 500;

/// Shows what is wrong with a plan, and how to run a shorter one.
fn report(seed: &str, plan: &Plan, outcome: &Outcome) -> String {
    let complaint = outcome.complaint.as_ref().expect("it has failed");
    let fails = |plan: &Plan| {
        run(plan, false).complaint.is_some_and(|other| other.kind() == complaint.kind())
    };
    let (shrunk, runs) = shrink(plan, fails);
    let again = run(&shrunk, true);
    let why = again.complaint.map_or("it fails no more".to_owned(), |complaint| {
        format!("{} (step {})", complaint.text, complaint.step)
    });
    format!(
        "{seed}: {} (step {})\nshrunk in {runs} runs from {} items to {}: {why}\n{}\n\n\
         TRACE='{shrunk}' cargo test -p taskfork --lib simulation\n",
        complaint.text,
        complaint.step,
        plan.len(),
        shrunk.len(),
        again.trace.join("\n"),
    )
}

/// Runs one plan and shows its steps.
fn show(name: &str, plan: &Plan) {
    let outcome = run(plan, true);
    if outcome.complaint.is_some() {
        panic!("{}", report(name, plan, &outcome));
    }
    println!("{plan}\n{}\n{:?}", outcome.trace.join("\n"), outcome.counts);
}

/// Runs the seeds below this number on all cores. Returns how often things came about, and the first failure.
fn run_seeds(seeds: u64) -> (Counts, Option<String>) {
    let (next, total, failed) =
        (AtomicU64::new(0), Mutex::new(Counts::default()), Mutex::new(None));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds || lock(&failed).is_some() {
                return;
            }
            let plan = Plan::of(seed);
            let outcome = run(&plan, false);
            lock(&total).add(outcome.counts);
            if outcome.complaint.is_some() {
                let mut failed = lock(&failed);
                if failed.is_none() {
                    *failed = Some((seed, plan, outcome));
                }
                return;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let failed = lock(&failed).take();
    let total = *lock(&total);
    (total, failed.map(|(seed, plan, outcome)| report(&format!("SEED={seed}"), &plan, &outcome)))
}

#[test]
fn each_call_ends_once_and_as_its_worker_has_done() {
    let variable = |name| std::env::var(name).ok();
    if let Some(text) = variable("TRACE") {
        return show("TRACE", &Plan::parse(&text).expect("TRACE is not a plan"));
    }
    if let Some(seed) = variable("SEED") {
        return show(&format!("SEED={seed}"), &Plan::of(seed.parse().expect("SEED is a number")));
    }
    let seeds = variable("SEEDS").map_or(DEFAULT_SEEDS, |seeds| seeds.parse().expect("SEEDS"));
    let start = std::time::Instant::now();
    let (counts, failed) = run_seeds(seeds);
    println!("{seeds} seeds in {:.1?}: {counts:?}", start.elapsed());
    if let Some(report) = failed {
        panic!("{report}");
    }
    // The seeds reach all ends.
    assert!(
        counts.succeeded > 20 * seeds && counts.fatal > seeds && counts.failed > seeds,
        "{counts:?}"
    );
}

#[test]
fn plans_can_be_read_back() {
    for seed in 0..200 {
        let plan = Plan::of(seed);
        assert_eq!(Plan::parse(&plan.to_string()), Ok(plan));
    }
    assert!(Plan::parse("server:1:0:9:0:0:0:0:0:0 caller:0").is_err());
    assert!(Plan::parse("server:1:0:9:0:0:0:0:0:0 client:1:0:0:0:1:0:0 caller:0 jump").is_err());
}
