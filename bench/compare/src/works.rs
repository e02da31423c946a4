//! What is measured, and of whom.

/// One kind of work.
pub struct Work {
    pub name: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub more_is_better: bool,
    pub scale: Scale,
    /// Who does it: pools, other ways to do the same, and floors.
    pub candidates: &'static [&'static str],
}

/// How much of it: calls, KiB, or workers.
pub struct Scale {
    pub full: usize,
    /// Of a quick run, which leaves the work out if there is none.
    pub quick: Option<usize>,
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
const ARRIVALS: &[&str] =
    &["taskfork", "hand-written pool", "procspawn", "spawn_blocking", "arrivals alone"];
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
const REPLACE: &[&str] = &[
    RUST[0],
    "taskfork spares",
    RUST[3],
    OTHERS[1],
    OTHERS[2],
    OTHERS[3],
    OTHERS[4],
    "floor kill and fork",
    "floor kill with a spare",
];
const SIZES: &[&str] = &[RUST[0], RUST[3], OTHERS[1], OTHERS[2], OTHERS[3], OTHERS[4]];
const HASHES: &[&str] = &[RUST[0], RUST[2], RUST[3], OTHERS[0], OTHERS[1], OTHERS[2], OTHERS[3]];
const REMOTE: &[&str] = &["taskfork tls", "floor tls", "floor tls through a relay"];
const NATS: &[&str] = &["taskfork nats", "floor nats"];
/// Those of programs in Python: an executor with futures, the package's other clients, and other executors.
const PYTHON: &[&str] = &[
    "taskfork Executor",
    "taskfork blocking",
    "taskfork asyncio",
    OTHERS[1],
    OTHERS[2],
    OTHERS[3],
];
const PYTHON_GATHERED: &[&str] = &[
    "taskfork Executor",
    "taskfork blocking, queued",
    "taskfork asyncio",
    "taskfork asyncio, queued",
    OTHERS[1],
    OTHERS[2],
    OTHERS[3],
];
const PYTHON_ARRAY: &[&str] = &[
    "taskfork Executor",
    "taskfork blocking",
    "taskfork blocking, shared memory",
    "taskfork asyncio",
    OTHERS[1],
    OTHERS[2],
    OTHERS[3],
];
const PYTHON_COLD: &[&str] = &[
    "taskfork Executor",
    "taskfork Executor, fork",
    "taskfork blocking",
    "taskfork blocking, server runs",
    OTHERS[1],
    OTHERS[2],
    OTHERS[3],
];
const PYTHON_WORKERS: &[&str] =
    &["taskfork Executor", "taskfork asyncio", OTHERS[1], OTHERS[2], OTHERS[3]];
const ONE_MORE: &[&str] = &["taskfork", "floor fork"];
const THREADS: &[&str] = &[
    "taskfork on 1 thread",
    "taskfork on 2 threads",
    "hand-written pool on 1 thread",
    "hand-written pool on 2 threads",
];

/// A work for each of the arguments: name, title, unit, whether more is better, scales, candidates.
macro_rules! works {
    ($($name:literal, $title:literal, $unit:literal, $more:literal, [$full:expr, $($quick:expr)?], $who:expr;)*) => {
        &[$(Work {
            name: $name, title: $title, unit: $unit, more_is_better: $more,
            scale: Scale { full: $full, quick: [$(Some($quick),)? None][0] }, candidates: $who,
        },)*]
    };
}

pub const WORKS: &[Work] = works! {
    "latency", "one call of 64 bytes, median", "µs", false, [3000, 1000], LATENCY;
    "latency_pinned", "the same with both sides on one core", "µs", false, [3000, 1000],
        &["taskfork", "floor tokio"];
    "after_pause", "one call of 64 bytes after a pause of 1 ms, median", "µs", false, [300, 100], PAUSES;
    "arrivals_50_on_1", "requests at random, 50/s, on a runtime of the current thread, 4 workers",
        "µs", false, [300, 50], ARRIVALS;
    "arrivals_300_on_1", "the same, 300/s", "µs", false, [900, ], ARRIVALS;
    "arrivals_1000_on_1", "the same, 1,000/s", "µs", false, [3000, 400], ARRIVALS;
    "arrivals_3000_on_1", "the same, 3,000/s", "µs", false, [6000, ], ARRIVALS;
    "arrivals_10000_on_1", "the same, 10,000/s", "µs", false, [20_000, 4000], ARRIVALS;
    "arrivals_50_on_2", "requests at random, 50/s, on a runtime of 2 threads, 4 workers",
        "µs", false, [300, 50], ARRIVALS;
    "arrivals_300_on_2", "the same, 300/s", "µs", false, [900, ], ARRIVALS;
    "arrivals_1000_on_2", "the same, 1,000/s", "µs", false, [3000, 400], ARRIVALS;
    "arrivals_3000_on_2", "the same, 3,000/s", "µs", false, [6000, ], ARRIVALS;
    "arrivals_10000_on_2", "the same, 10,000/s", "µs", false, [20_000, 4000], ARRIVALS;
    "system_calls_client", "system calls of the client for a call, both sides asleep in between", "calls",
        false, [5000, 2000], &["taskfork asleep"];
    "system_calls_worker", "the same, of the worker", "calls", false, [5000, 2000], &["taskfork asleep"];
    "beside", "calls one after the other beside a process that computes", "calls/s", true, [20_000, 5_000],
        &["taskfork", "taskfork asleep", "taskfork blocking", "procspawn"];
    "throughput", "calls outstanding on 2 workers", "calls/s", true, [50_000, 10_000], ALL;
    "tasks_10", "10 tasks that call at the same time, 2 workers", "calls/s", true, [50_000, 10_000], THREADS;
    "tasks_100", "100 tasks that call at the same time, 2 workers", "calls/s", true, [50_000, 10_000], THREADS;
    "tasks_1000", "1,000 tasks that call at the same time, 2 workers", "calls/s", true, [50_000, 10_000], THREADS;
    "queued", "calls queued on one checkout", "calls/s", true, [50_000, 10_000], &["taskfork", "floor batches"];
    "payload_64k", "64 KiB there and back", "MB/s", true, [64, 64], PAYLOAD;
    "payload_1m", "1 MiB there and back", "MB/s", true, [1 << 10, 1 << 10], PAYLOAD;
    "payload_16m", "16 MiB there and back", "MB/s", true, [16 << 10, 16 << 10], PAYLOAD;
    "payload_256m", "256 MiB there and back", "MB/s", true, [256 << 10, 64 << 10], PAYLOAD;
    "remote_latency", "one call of 64 bytes through a gateway by TLS, median", "µs", false, [3000, 1000], REMOTE;
    "remote_payload_16m", "16 MiB there and back through a gateway by TLS", "MB/s", true, [16 << 10, 16 << 10], REMOTE;
    "nats_latency", "one call of 64 bytes to a node at NATS, median", "µs", false, [3000, 1000], NATS;
    "nats_payload_16m", "16 MiB there and back through NATS", "MB/s", true, [16 << 10, 16 << 10], NATS;
    "nats_nodes", "calls that sleep for 5 ms, nodes with 4 sessions each", "calls/s", true, [4000, 1000],
        &["taskfork on 1 node", "taskfork on 3 nodes"];
    "cold", "from nothing to the first result", "µs", false, [1, 1], ALL;
    "new_worker", "connect, fork and first answer of a new worker", "µs", false, [1, 1],
        &["taskfork", "floor fork"];
    "one_more_0", "the same, no other worker lives", "µs", false, [0, 0], ONE_MORE;
    "one_more_500", "the same, 500 live", "µs", false, [500, 500], ONE_MORE;
    "one_more_1000", "the same, 1,000 live", "µs", false, [1000, ], ONE_MORE;
    "one_more_2000", "the same, 2,000 live", "µs", false, [2000, ], ONE_MORE;
    "one_more_4000", "the same, 4,000 live", "µs", false, [4000, ], ONE_MORE;
    "one_more_10000", "the same, 10,000 live", "µs", false, [10_000, ], ONE_MORE;
    "replace", "from the kill of a worker to the next result", "µs", false, [1, 1], REPLACE;
    "death_among_0", "the same, no other worker lives", "µs", false, [0, ], &["taskfork"];
    "death_among_4000", "the same, 4,000 live", "µs", false, [4000, ], &["taskfork"];
    "thousand_deaths", "1,000 workers die at once, until all are replaced (a quick run: 200)", "ms", false,
        [1000, 200], &["taskfork", "floor fork"];
    "pss", "memory of an idle worker (PSS)", "KiB", false, [1, 1], SIZES;
    "pss_preload", "the same with 256 MiB loaded before, a share of which is in it", "KiB", false, [1, 1],
        &["taskfork", "futures", "pebble"];
    "memory_server", "resident memory of the server for each live worker", "KiB", false, [1000, 300],
        &["taskfork"];
    "memory_client", "resident memory of the client for each idle connection", "KiB", false, [1000, 300],
        &["taskfork"];
    "bcrypt", "bcrypt hashes of cost 8 on 2 workers", "hashes/s", true, [64, 16], HASHES;
    "checkouts", "queued checkouts of one call on 20 workers", "calls/s", true, [10_000, 2_000],
        ALL;
    "python_call", "Python: one call of 64 characters after the other, median", "µs", false, [3000, 500], PYTHON;
    "python_gathered", "Python: 100 calls at a time on 2 workers", "calls/s", true, [10_000, 2_000], PYTHON_GATHERED;
    "python_array", "Python: an array of NumPy of 16 MiB there and back", "MB/s", true, [16 << 10, 16 << 10],
        PYTHON_ARRAY;
    "python_cold", "Python: from nothing but imports to the first answer", "µs", false, [1, 1], PYTHON_COLD;
    "python_crash", "Python: a call that kills its worker, until the next answer; a broken pool is made anew", "µs",
        false, [1, 1], PYTHON;
    "python_lost", "Python: calls of 20 at a time on 4 workers that fail because one kills its worker", "calls", false,
        [1, 1], PYTHON_WORKERS;
    "python_pss", "Python: memory of an idle worker (PSS), NumPy imported", "KiB", false, [1, 1], PYTHON_WORKERS;
    "queue_growth", "a checkout with 100,000 waiting by one with 100", "times", false, [1, 1],
        &["taskfork"];
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_one_work() {
        for (place, work) in WORKS.iter().enumerate() {
            assert!(WORKS[..place].iter().all(|other| other.name != work.name), "{}", work.name);
        }
    }
}
