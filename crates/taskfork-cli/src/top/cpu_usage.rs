//! The processor time that each worker uses.

use std::time::{Duration, Instant};

use taskfork::server::ServerStatus;

/// The processor time of all workers at the last two updates.
#[derive(Debug, Default)]
pub(super) struct CpuUsage {
    /// The ticks of each process at the last update and at the one before.
    now: Vec<(u32, u64)>,
    before: Vec<(u32, u64)>,
    at: Option<Instant>,
    between: Duration,
}

impl CpuUsage {
    pub(super) fn update(&mut self, status: &ServerStatus) {
        let pids = status.workers.iter().map(|worker| worker.pid);
        self.before = std::mem::replace(&mut self.now, pids.map(|pid| (pid, ticks(pid))).collect());
        let at = Instant::now();
        self.between = self.at.replace(at).map_or(Duration::ZERO, |before| at - before);
    }

    /// The use of a core in percent between the last two updates.
    pub(super) fn percent(&self, pid: u32) -> Option<f64> {
        let of = |list: &[(u32, u64)]| list.iter().find(|(known, _)| *known == pid).map(|it| it.1);
        let spent = of(&self.now)?.saturating_sub(of(&self.before)?);
        let seconds = self.between.as_secs_f64();
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        (seconds > 0.0).then(|| spent as f64 / per_second / seconds * 100.0)
    }
}

/// The processor time of a process and its children.
fn ticks(pid: u32) -> u64 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.chain([pid]).filter_map(own_ticks).sum()
}

fn own_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may contain brackets and spaces, so the fields begin after the last bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(field(11)? + field(12)?)
}
