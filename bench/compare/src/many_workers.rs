//! What a worker costs among thousands, and what their deaths cost.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use taskfork::server::ServerHandle;
use taskfork::{Checkout, Client, Server};
use tokio::runtime::{Builder, Runtime};

use crate::measure::memory_kib;
use crate::sample::Sample;

/// How often each time is measured.
const TIMES: usize = 21;

/// How many workers start at a time.
const CHUNK: usize = 100;

/// How long all may take to start. A comparison of many rounds would not end otherwise.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A server with workers that live and do nothing, and a client that holds them.
pub struct ManyWorkers {
    runtime: Runtime,
    server: ServerHandle,
    client: Client,
    held: Vec<Checkout>,
}

/// Raises the limit of open files as far as this process may.
pub fn raise_open_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    // If it fails, the limit stays what it was, and `check_limits` tells whether that is enough.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
}

/// Says why this machine cannot run `workers` workers, if so.
pub fn check_limits(workers: usize) -> Result<(), String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = available.and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok());
    check(
        workers,
        &[
            // A connection each on both sides, and what a process has open besides.
            ("open files (ulimit -Hn)", getrlimit(Resource::Nofile).current, 1, 200),
            ("processes (ulimit -u)", getrlimit(Resource::Nproc).current, 1, 1000),
            (
                "processes (kernel.pid_max)",
                read("/proc/sys/kernel/pid_max").trim().parse().ok(),
                1,
                1000,
            ),
            ("KiB of free memory", available, 512, 512 << 10),
        ],
    )
}

/// Each resource with its limit, what a worker takes, and what remains free.
fn check(workers: usize, resources: &[(&str, Option<u64>, u64, u64)]) -> Result<(), String> {
    for &(resource, limit, each, reserve) in resources {
        let needed = workers as u64 * each + reserve;
        if let Some(limit) = limit.filter(|&limit| limit < needed) {
            return Err(format!(
                "not measured: it takes {needed} {resource}, and there are {limit}"
            ));
        }
    }
    Ok(())
}

impl ManyWorkers {
    /// With `live` workers, all checked out and asleep. Fails if they take too long to start.
    pub fn new(live: usize) -> Result<Self, String> {
        let start = Instant::now();
        let server = Server::spawn("many").expect("a server");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let entered = runtime.enter();
        let client = client(&server, live..=live.max(1));
        drop(entered);
        let held: Vec<_> = (0..live).map(|_| client.checkout()).collect();
        // Some at a time, so that no one waits for long.
        for (number, some) in held.chunks(CHUNK).enumerate() {
            if start.elapsed() > START_LIMIT {
                let started = number * CHUNK;
                return Err(format!(
                    "only {started} workers started in {} s",
                    START_LIMIT.as_secs()
                ));
            }
            runtime.block_on(async {
                let ready: Vec<_> = some.iter().map(Checkout::ready).collect();
                for ready in ready {
                    ready.await.expect("a worker");
                }
            });
        }
        Ok(Self { runtime, server, client, held })
    }

    /// Connect, fork and first answer of one more worker.
    pub fn one_more(&self) -> Sample {
        let time = |_| {
            self.runtime.block_on(async {
                let client = client(&self.server, 0..=1);
                let start = Instant::now();
                let pid: u32 = client.call("pid", ()).await.expect("an answer");
                let time = start.elapsed();
                drop(client);
                ended(pid).await;
                time
            })
        };
        Sample::times((0..TIMES).map(time).collect())
    }

    /// From a worker's death to the next result.
    pub fn death(&self) -> Sample {
        let time = |_| {
            self.runtime.block_on(async {
                let client = client(&self.server, 0..=1);
                let pid: u32 = client.call("pid", ()).await.expect("an answer");
                tokio::time::sleep(Duration::from_millis(5)).await;
                let start = Instant::now();
                kill(pid);
                // The call that is made before the client learns of the death fails.
                let new = loop {
                    match client.call::<u32>("pid", ()).await {
                        Ok(new) if new != pid => break new,
                        _ => {}
                    }
                };
                let time = start.elapsed();
                drop(client);
                ended(new).await;
                time
            })
        };
        Sample::times((0..TIMES).map(time).collect())
    }

    /// Kills all workers at once; until the client has as many new ones.
    pub fn replace_all(&mut self) -> Duration {
        let workers = self.held.len();
        self.runtime.block_on(async {
            let mut pids = Vec::new();
            for checkout in &self.held {
                pids.push(checkout.call::<u32>("pid", ()).await.expect("an answer"));
            }
            self.held.clear();
            while self.client.stats().idle < workers {
                tokio::task::yield_now().await;
            }
            let before = self.client.stats().connected;
            let start = Instant::now();
            pids.iter().copied().for_each(kill);
            // The client still counts a worker as idle until it learns of the death.
            loop {
                let stats = self.client.stats();
                if stats.connected - before >= workers as u64 && stats.idle == workers {
                    break start.elapsed();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    }

    /// Resident memory in KiB of the server for a live worker, and of the client for an idle
    /// connection. The difference between few workers and `more` in addition.
    pub fn memory(more: usize) -> Result<[f64; 2], String> {
        const FEW: usize = 10;
        let measure = |workers| {
            let mut many = Self::new(workers)?;
            many.runtime.block_on(async {
                for checkout in &many.held {
                    checkout.call::<u32>("pid", ()).await.expect("an answer");
                }
                many.held.clear();
                while many.client.stats().idle < workers {
                    tokio::task::yield_now().await;
                }
            });
            Ok::<_, String>([many.server.pid(), std::process::id()].map(resident))
        };
        let (before, after) = (measure(FEW)?, measure(FEW + more)?);
        Ok([0, 1].map(|side| (after[side] - before[side]) / more as f64))
    }
}

/// A client whose number of workers is in this range.
fn client(server: &ServerHandle, workers: RangeInclusive<usize>) -> Client {
    let client = Client::builder().address(server.address()).min_workers(*workers.start());
    client.max_workers(*workers.end()).timeout(None).build().expect("a client")
}

fn kill(pid: u32) {
    // SAFETY: a plain system call on a process of this program's own.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
}

/// Waits until a process is gone, and its parent knows it.
async fn ended(pid: u32) {
    let path = format!("/proc/{pid}");
    while std::fs::exists(&path).expect("/proc") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a process occupies, in KiB.
fn resident(pid: u32) -> f64 {
    memory_kib(pid, "Rss:").expect("a process that lives")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_is_named() {
        let files = ("open files", Some(1024), 1, 200);
        assert_eq!(check(500, &[files]), Ok(()));
        let why = check(4000, &[files]).expect_err("the limit is too low");
        assert_eq!(why, "not measured: it takes 4200 open files, and there are 1024");
        assert_eq!(check(4000, &[("open files", None, 1, 200)]), Ok(()));
    }
}
