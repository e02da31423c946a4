//! Instructions of the pure parts of a call, counted by valgrind: the same on every machine, however
//! busy it is. `cargo bench -p taskfork --bench callgrind` prints `NAME instructions COUNT`, or says
//! that there is no valgrind.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run stops")]
#![allow(missing_docs, reason = "nothing here is for users")]

#[path = "pure/mod.rs"]
mod pure;

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};

const PART: &str = "TASKFORK_BENCH_PART";
const TIMES: &str = "TASKFORK_BENCH_TIMES";
const TURNS: u64 = 2000;

fn main() {
    if let Ok(part) = std::env::var(PART) {
        return run(&part, std::env::var(TIMES).unwrap().parse().unwrap());
    }
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("there is no valgrind to count instructions with");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for part in ["codec_64_bytes", "pool_10_waiting", "pool_100000_waiting"] {
        let file = folder.path().join(part);
        let [once, twice] = [1, 2].map(|times| count(part, times * TURNS, &file));
        println!("{part} instructions {:.0}", (twice - once) as f64 / TURNS as f64);
    }
}

fn run(part: &str, times: u64) {
    match part {
        "codec_64_bytes" => {
            let mut codec = pure::Codec::new(64);
            (0..times).for_each(|_| drop(black_box(codec.there_and_back())));
        }
        _ => {
            let mut turns = pure::Turns::new(if part == "pool_10_waiting" { 10 } else { 100_000 });
            (0..times).for_each(|_| turns.take_one());
        }
    }
}

/// Instructions of a process that runs `part` for `times` times.
fn count(part: &str, times: u64, file: &Path) -> u64 {
    let out = format!("--callgrind-out-file={}", file.display());
    let status = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind", &out])
        .arg(std::env::current_exe().unwrap())
        .env(PART, part)
        .env(TIMES, times.to_string())
        .status()
        .unwrap();
    assert!(status.success(), "valgrind: {status}");
    let profile = std::fs::read_to_string(file).unwrap();
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap();
    total.trim().parse().unwrap()
}
