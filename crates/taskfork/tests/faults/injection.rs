//! Fault injection: workers and server are killed, stopped and restarted at random.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;

use super::children;
use super::server::Program;

/// The faults so far. An error of a call must match one of them.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) killed: HashSet<u32>,
    pub(crate) segfaulted: HashSet<u32>,
    pub(crate) stopped: bool,
    pub(crate) servers_ended: bool,
}

pub(crate) struct FaultInjector {
    random: Rng,
    record: Arc<Mutex<Record>>,
    counts: BTreeMap<&'static str, u64>,
    /// Workers that have been stopped.
    stopped: Vec<u32>,
    /// Idle connections, which use up the server's descriptors.
    idle: Vec<UnixStream>,
}

pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: it only sends a signal. One that has ended in the meantime gets none.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(pid.cast_signed(), signal);
    }
}

impl FaultInjector {
    pub(crate) fn new(seed: u64, record: Arc<Mutex<Record>>) -> Self {
        let (random, counts) = (Rng::with_seed(seed), BTreeMap::new());
        Self { random, record, counts, stopped: Vec::new(), idle: Vec::new() }
    }

    /// A fault is recorded before it is injected, so that no error comes first.
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    pub(crate) async fn inject_one(
        &mut self,
        server: &mut Program,
        path: &Path,
        may_end_server: bool,
    ) {
        // The server's own helpers, which tell of deaths, have the server's name.
        let mut workers = children(server.pid());
        workers.retain(|&pid| !super::server::title(pid).starts_with("taskfork-server:"));
        let worker = (!workers.is_empty()).then(|| workers[self.random.usize(..workers.len())]);
        let (what, wait) = match (self.random.u32(0..100), worker) {
            (0..25, Some(worker)) => {
                self.record().killed.insert(worker);
                signal(worker, libc::SIGKILL);
                ("worker killed", 20)
            }
            (25..40, Some(worker)) => {
                self.record().segfaulted.insert(worker);
                signal(worker, libc::SIGSEGV);
                ("worker hit by SIGSEGV", 20)
            }
            (40..50, Some(worker)) => {
                self.record().stopped = true;
                signal(worker, libc::SIGSTOP);
                self.stopped.push(worker);
                ("worker stopped", 20)
            }
            (50..60, _) => {
                let most = self.random.usize(..10);
                self.stopped.drain(..most.min(self.stopped.len())).for_each(|pid| {
                    signal(pid, libc::SIGCONT);
                });
                ("stopped workers continued", 5)
            }
            (60..75, _) => {
                self.send_garbage(path);
                ("connection closed in the middle", 10)
            }
            (75..80, _) => {
                self.idle.extend((0..60).map_while(|_| UnixStream::connect(path).ok()));
                ("descriptors used up", 50)
            }
            (80..90, _) => {
                self.idle.clear();
                ("descriptors given back", 10)
            }
            (90..92, _) if may_end_server => {
                self.record().servers_ended = true;
                server.kill();
                *server = Program::start(path);
                ("server killed and started", 100)
            }
            (92..94, _) if may_end_server => {
                self.idle.clear();
                self.continue_all();
                self.record().servers_ended = true;
                server.stop();
                *server = Program::start(path);
                ("server restarted", 100)
            }
            (94..97, _) if server.refuse_forks(true) => {
                // Workers die meanwhile, so that some are wanted.
                if let Some(worker) = worker {
                    self.record().killed.insert(worker);
                    signal(worker, libc::SIGKILL);
                }
                let while_refused = Duration::from_millis(self.random.u64(5..=100));
                tokio::time::sleep(while_refused).await;
                server.refuse_forks(false);
                ("forks refused", 20)
            }
            _ => ("nothing", 30),
        };
        *self.counts.entry(what).or_default() += 1;
        let wait = self.random.u64(0..=wait);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }

    fn send_garbage(&mut self, path: &Path) {
        let Ok(mut stream) = UnixStream::connect(path) else { return };
        let whole = b"taskfork\x1e\x00\x00\x00\x92\x00\x82\xa8versions\x91\x01\xa4name\xa6broken";
        let cut = self.random.usize(..=whole.len());
        let _ = stream.write_all(&whole[..cut]);
        if self.random.bool() {
            let _ = stream.write_all(&[0xff; 40]);
        }
    }

    fn continue_all(&mut self) {
        self.stopped.drain(..).for_each(|pid| signal(pid, libc::SIGCONT));
    }

    /// Ends the faults that do not end by themselves.
    pub(crate) async fn undo(&mut self, server: &mut Program, path: &Path) {
        self.idle.clear();
        self.continue_all();
        for worker in children(server.pid()) {
            signal(worker, libc::SIGCONT);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(UnixStream::connect(path).is_ok(), "the server is gone");
    }

    /// Panics unless enough faults were injected.
    pub(crate) fn check(&self) {
        assert!(self.counts.get("worker killed").is_some_and(|&count| count > 5));
    }
}

impl fmt::Display for FaultInjector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.counts {
            writeln!(out, "{count:>8} {what}")?;
        }
        Ok(())
    }
}
