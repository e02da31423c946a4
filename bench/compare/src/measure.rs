//! One candidate at one kind of work, in a process of its own.

use std::time::{Duration, Instant};

use taskfork::client::BusyPoll;

use crate::arrivals::{self, Load};
use crate::forker::Forker;
use crate::many_workers::{ManyWorkers, check_limits};
use crate::pools::{Blocking, Ours, Pool, Procspawn, Threads};
use crate::sample::{Sample, micros};
use crate::system_calls::{self, Side};
use crate::{floors, nats, remote, tasks};

/// A pool with `workers` workers. `None` if no pool has that name.
fn make(name: &str, work: &str, workers: usize) -> Option<Box<dyn Pool>> {
    let (adaptive, off) = (BusyPoll::Adaptive, BusyPoll::Off);
    let plain = if work == "pss_preload" { "preloaded" } else { "plain" };
    Some(match name {
        "taskfork" => Box::new(Ours::new(plain, workers, adaptive)),
        "taskfork typed" => Box::new(Ours::new("typed", workers, adaptive)),
        "taskfork asleep" => Box::new(Ours::new("asleep", workers, off)),
        "taskfork spares" => Box::new(Ours::new("spares", workers, adaptive)),
        "taskfork blocking" => Box::new(Blocking::new("plain", workers, adaptive)),
        "taskfork blocking asleep" => Box::new(Blocking::new("asleep", workers, off)),
        "procspawn" => Box::new(Procspawn::new(workers)),
        "spawn_blocking" => Box::new(Threads::new(workers)),
        _ => return None,
    })
}

/// How the names of works with many workers begin.
const MANY_WORKERS: [&str; 4] = ["one_more_", "death_among_", "thousand_deaths", "memory_"];

pub fn measure(name: &str, work: &str, scale: usize) -> Sample {
    if let Some(load) = Load::from_name(work) {
        return arrivals::measure(name, load, scale);
    }
    if MANY_WORKERS.iter().any(|start| work.starts_with(start)) {
        return measure_many(name, work, scale).unwrap_or_else(Sample::failed);
    }
    if let Some(floor) = name
        .strip_prefix("floor ")
        .filter(|_| !work.starts_with("remote_") && !work.starts_with("nats_"))
    {
        return measure_floor(floor, work, scale);
    }
    match work {
        "latency_pinned" => pin(),
        "remote_latency" => return remote::latency(name, scale),
        "remote_payload_16m" => return remote::payload(name, scale << 10),
        "nats_latency" => return nats::latency(name, scale),
        "nats_payload_16m" => return nats::payload(name, scale << 10),
        "nats_nodes" => return nats::nodes(name, scale),
        "queued" => {
            let took = Ours::new("plain", 1, BusyPoll::Adaptive).queued(scale);
            return Sample::of(scale as f64 / took.as_secs_f64());
        }
        "cold" => return cold(name),
        "system_calls_client" => return system_calls::measure(Side::Client, scale),
        "system_calls_worker" => return system_calls::measure(Side::Worker, scale),
        "queue_growth" => return queue_growth(),
        "new_worker" => return Ours::new("plain", 32, BusyPoll::Adaptive).new_workers(),
        "tasks_10" | "tasks_100" | "tasks_1000" => {
            let tasks = work.trim_start_matches("tasks_").parse().expect("a number");
            return tasks::measure(name, tasks, scale);
        }
        _ if name == "taskfork lent" => {
            let (bytes, mut ours) = (scale << 10, Ours::new("plain", 1, BusyPoll::Adaptive));
            return both_ways(bytes, ours.lend(bytes));
        }
        _ if name == "taskfork shared" => {
            let (bytes, mut ours) = (scale << 10, Ours::new("plain", 1, BusyPoll::Adaptive));
            return both_ways(bytes, ours.hand_over(bytes));
        }
        _ => {}
    }
    let workers = match work {
        "throughput" | "bcrypt" => 2,
        "checkouts" => 20,
        "pss" | "pss_preload" => 4,
        _ => 1,
    };
    let Some(mut pool) = make(name, work, workers) else { return Sample::failed("not known") };
    pool.latencies(50);
    let rate = |start: Instant| Sample::of(scale as f64 / start.elapsed().as_secs_f64());
    match work {
        "latency" | "latency_pinned" => Sample::times(pool.latencies(scale)),
        "after_pause" => {
            let mut call = |_| {
                std::thread::sleep(PAUSE);
                pool.latencies(1)[0]
            };
            Sample::times((0..scale).map(&mut call).collect())
        }
        "beside" => {
            let _computes = floors::Computing::start();
            let start = Instant::now();
            pool.latencies(scale);
            rate(start)
        }
        "throughput" | "checkouts" => {
            let start = Instant::now();
            pool.outstanding(scale);
            rate(start)
        }
        "bcrypt" => {
            pool.hash(2);
            let start = Instant::now();
            pool.hash(scale);
            rate(start)
        }
        "replace" => replace(&mut *pool),
        "pss" | "pss_preload" => {
            let mut sizes: Vec<f64> = pool.pids().into_iter().filter_map(proportional).collect();
            sizes.sort_by(f64::total_cmp);
            match sizes.get(sizes.len() / 2) {
                Some(&size) => Sample::of(size),
                None => Sample::failed("does not do that"),
            }
        }
        _ => match payload(&mut *pool, scale << 10) {
            Ok(took) => both_ways(scale << 10, took),
            Err(why) => Sample::failed(&why),
        },
    }
}

/// Works with many workers.
fn measure_many(name: &str, work: &str, workers: usize) -> Result<Sample, String> {
    check_limits(workers)?;
    let millis = |took: Duration| Sample::of(took.as_secs_f64() * 1e3);
    Ok(match (name, work) {
        ("floor fork", "thousand_deaths") => millis(Forker::new(workers).replace_all()),
        ("floor fork", _) => Forker::new(workers).new_children(),
        (_, "thousand_deaths") => millis(ManyWorkers::new(workers)?.replace_all()),
        (_, "memory_server") => Sample::of(ManyWorkers::memory(workers)?[0]),
        (_, "memory_client") => Sample::of(ManyWorkers::memory(workers)?[1]),
        _ if work.starts_with("one_more_") => ManyWorkers::new(workers)?.one_more(),
        _ => ManyWorkers::new(workers)?.death(),
    })
}

/// The rate, in MB/s, of `bytes` bytes sent in both directions.
fn both_ways(bytes: usize, took: Duration) -> Sample {
    Sample::of(2.0 * bytes as f64 / took.as_secs_f64() / 1e6)
}

fn payload(pool: &mut dyn Pool, bytes: usize) -> Result<Duration, String> {
    let body = vec![b'x'; bytes];
    pool.echo(body.clone())?;
    let start = Instant::now();
    let back = pool.echo(body)?;
    let took = start.elapsed();
    assert_eq!(back.as_ref().as_ref().len(), bytes);
    Ok(took)
}

/// From nothing to the first result, the server's start included.
fn cold(name: &str) -> Sample {
    let start = Instant::now();
    let Some(mut pool) = make(name, "cold", 1) else { return Sample::failed("not known") };
    pool.latencies(1);
    Sample::of(micros(start.elapsed()))
}

/// Long enough for all to have gone to sleep.
const PAUSE: Duration = Duration::from_millis(1);

fn replace(pool: &mut dyn Pool) -> Sample {
    let mut times = Vec::new();
    for _ in 0..21 {
        let Some(pid) = pool.pid() else { return Sample::failed("does not do that") };
        // So that spare workers are there.
        std::thread::sleep(Duration::from_millis(5));
        // The worker may end before `kill` returns, so its end is in the time.
        let start = Instant::now();
        // SAFETY: a plain system call on a process of this program's own.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
        while pool.pid().is_none_or(|now| now == pid) {
            if start.elapsed() > Duration::from_secs(5) {
                return Sample::failed("the pool is broken for good");
            }
        }
        times.push(start.elapsed());
    }
    Sample::times(times)
}

/// What a checkout costs with 100,000 waiting, by what it costs with 100.
fn queue_growth() -> Sample {
    let mut pool = Ours::new("plain", 20, BusyPoll::Adaptive);
    pool.outstanding(1000);
    let mut cost = |calls: usize, times: usize| {
        let start = Instant::now();
        (0..times).for_each(|_| pool.outstanding(calls));
        start.elapsed().as_secs_f64() / (calls * times) as f64
    };
    let few = cost(100, 100);
    Sample::of(cost(100_000, 1) / few)
}

/// The memory of a process in KiB, with its share of what it shares.
fn proportional(pid: u32) -> Option<f64> {
    memory_kib(pid, "Pss:")
}

/// A size of a process in KiB, by its name in the kernel's list.
pub fn memory_kib(pid: u32, name: &str) -> Option<f64> {
    let sizes = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = sizes.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Binds this process, and the processes that it starts, to one core.
fn pin() {
    let mut set = rustix::thread::CpuSet::new();
    set.set(0);
    rustix::thread::sched_setaffinity(None, &set).expect("a core");
}

fn measure_floor(floor: &str, work: &str, scale: usize) -> Sample {
    let pause = if work == "after_pause" { PAUSE } else { Duration::ZERO };
    let rate = |took: Duration| 2.0 * (scale << 10) as f64 / took.as_secs_f64() / 1e6;
    match (floor, work) {
        ("tokio", "latency_pinned") => {
            pin();
            Sample::times(floors::tokio_latencies(scale, Duration::ZERO))
        }
        ("tokio", _) => Sample::times(floors::tokio_latencies(scale, pause)),
        ("blocking", _) => Sample::times(floors::blocking_latencies(scale, pause)),
        ("batches", _) => Sample::of(scale as f64 / floors::batches(scale).as_secs_f64()),
        ("socket", _) => Sample::of(rate(floors::exchange(scale << 10))),
        ("memory", _) => Sample::of(rate(floors::copy(scale << 10))),
        ("fork", _) => Forker::new(0).new_children(),
        ("kill and fork", _) => Forker::new(0).replace(),
        ("kill with a spare", _) => Forker::new(0).replace_by_spare(),
        _ => Sample::failed("not known"),
    }
}
