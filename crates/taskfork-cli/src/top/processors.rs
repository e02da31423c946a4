//! How much of a core each worker takes.

use std::time::{Duration, Instant};

use taskfork::server::ServerStatus;

/// The processor time of all workers at the last two looks.
#[derive(Debug, Default)]
pub(super) struct Processors {
    /// Ticks by process, now and before, and when that was.
    now: Vec<(u32, u64)>,
    before: Vec<(u32, u64)>,
    at: Option<Instant>,
    between: Duration,
}

impl Processors {
    pub(super) fn look(&mut self, status: &ServerStatus) {
        let pids = status.workers.iter().map(|worker| worker.pid);
        self.before = std::mem::replace(&mut self.now, pids.map(|pid| (pid, ticks(pid))).collect());
        let at = Instant::now();
        self.between = self.at.replace(at).map_or(Duration::ZERO, |before| at - before);
    }

    /// In percent of a core, since the look before.
    pub(super) fn share(&self, pid: u32) -> Option<f64> {
        let of = |list: &[(u32, u64)]| list.iter().find(|(known, _)| *known == pid).map(|it| it.1);
        let spent = of(&self.now)?.saturating_sub(of(&self.before)?);
        let seconds = self.between.as_secs_f64();
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        (seconds > 0.0).then(|| spent as f64 / per_second / seconds * 100.0)
    }
}

/// The processor time that a process and those that it has started have taken.
fn ticks(pid: u32) -> u64 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.chain([pid]).filter_map(own_ticks).sum()
}

fn own_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program may hold anything, but not what stands behind its bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(field(11)? + field(12)?)
}
