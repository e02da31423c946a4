//! taskfork against what a user would pick instead, and against what no pool can beat.

mod floors;
mod measure;
mod pools;
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use measure::Sample;

/// Runs the comparison.
#[derive(Debug, Parser)]
struct Options {
    /// Less of everything, without writing the results
    #[arg(long)]
    quick: bool,
    /// Only works whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

/// One kind of work.
pub struct Work {
    pub name: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub more_is_better: bool,
    /// How much of it, and when in a hurry.
    scale: [usize; 2],
    contestants: &'static [&'static str],
}

const RUST: [&str; 4] = ["taskfork", "taskfork typed", "taskfork blocking", "procspawn"];
const OTHERS: [&str; 6] = ["spawn_blocking", "futures", "pebble", "loky", "workerpool", "piscina"];
const ALL: &[&str] = &[
    RUST[0], RUST[1], RUST[2], RUST[3], OTHERS[0], OTHERS[1], OTHERS[2], OTHERS[3], OTHERS[4],
    OTHERS[5],
];
const LATENCY: &[&str] = &[
    RUST[0],
    RUST[1],
    "taskfork asleep",
    RUST[2],
    "taskfork blocking asleep",
    RUST[3],
    OTHERS[0],
    OTHERS[1],
    OTHERS[2],
    OTHERS[3],
    OTHERS[4],
    OTHERS[5],
    "floor tokio",
    "floor blocking",
];
const PAUSES: &[&str] =
    &[RUST[0], "taskfork asleep", RUST[2], RUST[3], OTHERS[0], "floor tokio", "floor blocking"];
const PAYLOAD: &[&str] = &[
    "taskfork shared",
    "taskfork lent",
    RUST[0],
    RUST[1],
    RUST[2],
    RUST[3],
    OTHERS[0],
    OTHERS[1],
    OTHERS[2],
    OTHERS[3],
    OTHERS[4],
    OTHERS[5],
    "floor socket",
    "floor memory",
];
const FORKS: &[&str] = &[
    RUST[0],
    "taskfork spares",
    RUST[3],
    OTHERS[1],
    OTHERS[2],
    OTHERS[3],
    OTHERS[4],
    "floor fork",
    "floor kill",
];
const SIZES: &[&str] = &[RUST[0], RUST[3], OTHERS[1], OTHERS[2], OTHERS[3], OTHERS[4]];
const HASHES: &[&str] = &[RUST[0], RUST[2], RUST[3], OTHERS[0], OTHERS[1], OTHERS[2], OTHERS[3]];

macro_rules! works {
    ($($name:literal, $title:literal, $unit:literal, $more:literal, $scale:expr, $who:expr;)*) => {
        &[$(Work {
            name: $name, title: $title, unit: $unit, more_is_better: $more, scale: $scale,
            contestants: $who,
        },)*]
    };
}

pub const WORKS: &[Work] = works! {
    "latency", "one call of 64 bytes, median", "µs", false, [3000, 1000], LATENCY;
    "latency_pinned", "the same with both sides on one core", "µs", false, [3000, 1000],
        &["taskfork", "floor tokio"];
    "after_pause", "one call of 64 bytes after a pause of 1 ms, median", "µs", false, [300, 100], PAUSES;
    "beside", "calls one after the other beside a process that computes", "calls/s", true, [20_000, 5_000],
        &["taskfork", "taskfork asleep", "taskfork blocking", "procspawn"];
    "throughput", "calls outstanding on 2 workers", "calls/s", true, [50_000, 10_000], ALL;
    "queued", "calls queued on one checkout", "calls/s", true, [50_000, 10_000], &["taskfork", "floor batches"];
    "payload_64k", "64 KiB there and back", "MB/s", true, [64, 64], PAYLOAD;
    "payload_1m", "1 MiB there and back", "MB/s", true, [1 << 10, 1 << 10], PAYLOAD;
    "payload_16m", "16 MiB there and back", "MB/s", true, [16 << 10, 16 << 10], PAYLOAD;
    "payload_256m", "256 MiB there and back", "MB/s", true, [256 << 10, 64 << 10], PAYLOAD;
    "cold", "from nothing to the first result", "µs", false, [1, 1], ALL;
    "replace", "from a worker's death to the next result", "µs", false, [1, 1], FORKS;
    "pss", "memory of an idle worker (PSS)", "KiB", false, [1, 1], SIZES;
    "pss_preload", "the same with 256 MiB loaded before, a share of which is in it", "KiB", false, [1, 1],
        &["taskfork", "futures", "pebble"];
    "bcrypt", "bcrypt hashes of cost 8 on 2 workers", "hashes/s", true, [64, 16], HASHES;
    "checkouts", "queued checkouts of one call on 20 workers", "calls/s", true, [10_000, 2_000],
        ALL;
    "queue_growth", "a checkout with 100,000 waiting by one with 100", "times", false, [1, 1],
        &["taskfork"];
};

/// All samples, by work and contestant.
pub type Results = BTreeMap<(usize, usize), Vec<Sample>>;

fn main() -> ExitCode {
    taskfork::init(pools::ENTRIES);
    procspawn::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if floors::play(&arguments) {
        return ExitCode::SUCCESS;
    }
    if let [role, name, work, scale] = &arguments[..]
        && role == "measure"
    {
        let sample = measure::measure(name, work, scale.parse().expect("a number"));
        println!("{}", serde_json::to_string(&sample).expect("plain values"));
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let results = compare(&options);
    match report::write(&results, !options.quick && options.only.is_empty()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: the results cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How long a quick run takes at most, but for its first round.
const QUICK: Duration = Duration::from_secs(165);

fn compare(options: &Options) -> Results {
    let (rounds, hurry) = if options.quick { (3, 1) } else { (5, 0) };
    let (mut results, start) = (Results::new(), Instant::now());
    let chosen = || WORKS.iter().enumerate().filter(|(_, work)| work.name.contains(&options.only));
    // Each contestant once, then all again: what disturbs the machine disturbs all.
    for round in 0..rounds {
        for (number, work) in chosen() {
            for (place, name) in work.contestants.iter().enumerate() {
                let Some(sample) = run(name, work.name, work.scale[hurry]) else { continue };
                results.entry((number, place)).or_default().push(sample);
            }
        }
        let taken = start.elapsed();
        eprintln!("round {} of {rounds}, {:.0} s", round + 1, taken.as_secs_f64());
        // One more takes as long as each before it.
        if options.quick && taken + taken / (round + 1) > QUICK {
            break;
        }
    }
    results
}

/// Nothing if that contestant is not there.
fn run(name: &str, work: &str, scale: usize) -> Option<Sample> {
    let scale = scale.to_string();
    let mut command = match name {
        "futures" | "pebble" | "loky" => {
            let mut command = Command::new(present("peers/python/bin/python")?);
            command.args(["peers.py", name, work, &scale]);
            command
        }
        "workerpool" | "piscina" => {
            present("peers/node/node_modules")?;
            let mut command = Command::new("node");
            command.args(["peers/node/peers.mjs", name, work, &scale]);
            command
        }
        _ => {
            let mut command = Command::new(std::env::current_exe().ok()?);
            command.args(["measure", name, work, &scale]);
            command
        }
    };
    let output = command.stderr(std::process::Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rev().find(|line| line.starts_with('{'));
    Some(line.and_then(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| Sample {
        failed: Some(format!("ended with {}", output.status)),
        ..Sample::default()
    }))
}

fn present(path: &str) -> Option<PathBuf> {
    Path::new(path).exists().then(|| path.into())
}
