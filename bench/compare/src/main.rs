//! taskfork against what a user would pick instead, and against the least that the same can take.

mod arrivals;
mod far_client;
mod floors;
mod forker;
mod goals;
mod hand_written;
mod many_workers;
mod measure;
mod nats;
mod picture;
mod pools;
mod processor_time;
mod python;
mod remote;
mod report;
mod roles;
mod sample;
mod system_calls;
mod tasks;
mod works;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use report::Row;
use sample::Sample;
use works::{WORKS, Work};

/// Runs the comparison.
#[derive(Debug, Parser)]
struct Options {
    /// Less of everything, without writing the results
    #[arg(long)]
    quick: bool,
    /// Only works whose names contain this; nothing is written without `--update`
    #[arg(long, default_value = "")]
    only: String,
    /// How often each work is done: 5 times, or up to 3 in a quick run
    #[arg(long)]
    rounds: Option<u32>,
    /// Instructions of one call outside the kernel, which another benchmark has counted
    #[arg(long)]
    instructions: Option<f64>,
    /// Puts the results of the works of `--only` in place of those in results.json
    #[arg(long, requires = "only")]
    update: bool,
    /// Writes tables and pictures again from results.json, without a run
    #[arg(long)]
    render: bool,
}

/// All samples, by the numbers of work and candidate.
pub type Results = BTreeMap<(usize, usize), Vec<Sample>>;

fn main() -> ExitCode {
    taskfork::init(pools::ENTRIES);
    procspawn::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if roles::run(&arguments) {
        return ExitCode::SUCCESS;
    }
    if let [role, name, work, scale] = &arguments[..]
        && role == "measure"
    {
        many_workers::raise_open_files();
        let sample = measure::measure(name, work, scale.parse().expect("a number"));
        println!("{}", serde_json::to_string(&sample).expect("plain values"));
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    if options.render {
        return done(read().and_then(|rows| render(&rows)));
    }
    let mut rows = report::rows(&compare(&options));
    rows.extend(options.instructions.map(instructions));
    println!("{}\n{}", report::tables(&rows), goals::table(&goals::goals(&rows)));
    if options.update && !options.quick {
        return done(read().and_then(|known| write(&report::updated(known, rows))));
    }
    if options.quick || !options.only.is_empty() {
        return ExitCode::SUCCESS;
    }
    done(write(&rows))
}

/// What another benchmark has counted.
fn instructions(count: f64) -> Row {
    Row {
        work: "instructions".to_owned(),
        candidate: "taskfork".to_owned(),
        unit: "instructions".to_owned(),
        median: Some(count),
        ..Row::default()
    }
}

fn done(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: the results cannot be read or written: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The beginning of the results: where they are from, and the picture.
const HEAD: &str = "\
# Results

Written by `bench/compare/run`: medians of all rounds of one run on one machine, each candidate in turn. The works in Python
are from a run of their own (`--only python --update`). Candidates whose names begin with `floor` are the same work in bare system calls. [CONTRIBUTING](../../CONTRIBUTING.md#benchmarks)
says how to run it.

<picture>
  <source media=\"(prefers-color-scheme: dark)\" srcset=\"results-dark.svg\">
  <img alt=\"Latency, rates, start, deaths and memory of taskfork and other pools\" src=\"results.svg\" width=\"800\">
</picture>

";

fn write(rows: &[Row]) -> io::Result<()> {
    std::fs::write("results.json", serde_json::to_string_pretty(rows)?)?;
    render(rows)
}

fn read() -> io::Result<Vec<Row>> {
    Ok(serde_json::from_str(&std::fs::read_to_string("results.json")?)?)
}

fn render(rows: &[Row]) -> io::Result<()> {
    let (tables, goals) = (report::tables(rows), goals::table(&goals::goals(rows)));
    std::fs::write("results.md", format!("{HEAD}{tables}\n### Goals\n\n{goals}"))?;
    std::fs::write("results.svg", picture::draw(rows, &picture::LIGHT))?;
    std::fs::write("results-dark.svg", picture::draw(rows, &picture::DARK))
}

/// A quick run starts no other round that would make it longer than this.
const QUICK: Duration = Duration::from_secs(165);

fn compare(options: &Options) -> Results {
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 5 });
    let (mut results, start) = (Results::new(), Instant::now());
    // Each candidate once, then all again: what disturbs the machine disturbs all.
    for round in 0..rounds {
        for (number, work) in WORKS.iter().enumerate() {
            let Some(scale) = scale(work, options) else { continue };
            for _ in 0..repetitions(work) {
                for (place, name) in work.candidates.iter().enumerate() {
                    let Some(sample) = run(name, work.name, scale) else { continue };
                    results.entry((number, place)).or_default().push(sample);
                }
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

/// How much of a work is to be done. A quick run does a large work only if it is asked for by its name.
fn scale(work: &Work, options: &Options) -> Option<usize> {
    if !work.name.contains(&options.only) {
        return None;
    }
    match work.scale.quick {
        Some(quick) if options.quick => Some(quick),
        None if options.quick && work.name != options.only => None,
        _ => Some(work.scale.full),
    }
}

/// How often a work is done in each round. A process can start from nothing only once.
fn repetitions(work: &Work) -> u32 {
    if work.name == "cold" || work.name == "python_cold" { 7 } else { 1 }
}

/// The exit status of a candidate that is not there.
const NOT_INSTALLED: i32 = 69;

/// Runs one candidate in a process of its own. Nothing if it is not installed.
fn run(name: &str, work: &str, scale: usize) -> Option<Sample> {
    let scale = scale.to_string();
    let mut command = match name {
        _ if work.starts_with("python_") => {
            let mut command = Command::new(present("peers/python/bin/python")?);
            command.args(["python_works.py", name, work, &scale]);
            command
        }
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
    if output.status.code() == Some(NOT_INSTALLED) {
        return None;
    }
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
