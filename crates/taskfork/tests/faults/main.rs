//! A mixed load on a real server, while workers and server are killed, stopped and restarted and
//! calls are cancelled, at random. Whatever happens, each call ends with its own right answer or
//! with an error that fits, and nothing is left behind.
//!
//! `TASKFORK_FAULT_SECONDS` says how long, 20 unless set; `TASKFORK_FAULT_SEED` repeats a run's
//! choices.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod cgroup;
mod injection;
mod load;
mod server;
mod server_command;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use taskfork::Client;
use taskfork::server::ServerStatus;

use injection::{FaultInjector, Record};
use load::Counts;

const WORKERS: usize = 8;
const CALLERS: u64 = 12;

fn main() {
    if server::run_requested() {
        return;
    }
    let mut arguments = std::env::args().skip(1);
    if arguments.any(|argument| !argument.starts_with('-') && !"faults".contains(&*argument)) {
        return;
    }
    let seconds = number("TASKFORK_FAULT_SECONDS").unwrap_or(20);
    let seed = number("TASKFORK_FAULT_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("faults: {seconds} s, TASKFORK_FAULT_SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let before = descriptors();
    runtime.block_on(run(&path, Duration::from_secs(seconds), seed));
    let left = descriptors();
    assert!(left <= before, "{left} descriptors are open, {before} were");
    drop(runtime);
    assert_eq!(children(std::process::id()), [0_u32; 0], "processes are left");
    // Servers that were killed have guardians, who may need a moment.
    let patience = Instant::now() + Duration::from_secs(10);
    while !server::descendants(&path).is_empty() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server::descendants(&path), [0_u32; 0], "descendants of servers are left");
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(files.is_empty(), "left behind: {files:?}");
    println!("faults: nothing is left");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap())
}

async fn run(path: &Path, time: Duration, seed: u64) {
    let mut server = server::Program::start(path);
    let client = Client::builder().address(format!("unix:{}", path.display()));
    let client = client.max_workers(WORKERS).timeout(Duration::from_secs(10)).build().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let record = Arc::new(Mutex::new(Record::default()));
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let counts = Counts::new(record.clone());
            tokio::spawn(load::call(
                counts,
                client.clone(),
                seed.wrapping_add(number),
                stop.clone(),
            ))
        })
        .collect();

    let mut faults = FaultInjector::new(seed, record.clone());
    let (half, end) = (Instant::now() + time / 2, Instant::now() + time);
    while Instant::now() < end {
        // While the server lives, it must report each death.
        let may_end_server = Instant::now() > half;
        faults.inject_one(&mut server, path, may_end_server).await;
    }
    stop.store(true, Ordering::Relaxed);
    faults.undo(&mut server, path).await;
    let mut counts = Counts::new(record);
    for caller in callers {
        counts.add(&caller.await.unwrap());
    }
    println!("{counts}\n{faults}");
    counts.check();
    faults.check();

    // The next call works, and the pool counts what there is.
    assert_eq!(client.call::<u64>("echo", (7_u64,)).await.unwrap(), 7);
    let mut seen = Vec::new();
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = client.stats();
        let status = ServerStatus::read(path.with_file_name("s.status")).unwrap();
        if stats.busy + stats.connecting + stats.queued == 0 && stats.idle == served(&status) {
            break;
        }
        seen.push((stats, served(&status)));
        assert!(Instant::now() < patience, "the pool counts otherwise: {:?}", seen.last());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(client);
    server.stop();
}

/// How many workers have clients.
fn served(status: &ServerStatus) -> usize {
    let spare = |state: &str| matches!(state, "spare" | "setup" | "greeting");
    status.workers.iter().filter(|worker| !spare(&worker.state)).count()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The children of a process, without zombies.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
