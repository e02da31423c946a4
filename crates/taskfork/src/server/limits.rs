//! The resource limits of workers, and when workers are replaced.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};

use super::error::ServerError;
use crate::sys;
use crate::time_limit::TimeLimit;

/// A resource that [`ServerBuilder::limit`](crate::ServerBuilder::limit) can limit.
///
/// ```
/// use taskfork::Server;
/// use taskfork::server::Limit;
///
/// // 2 GiB for each worker, and at most 64 descriptors.
/// let server = Server::builder().limit(Limit::AddressSpace, 2 << 30).limit(Limit::OpenFiles, 64);
/// # let _ = server;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// The address space in bytes, including shared memory and mapped files. An allocation beyond
    /// the limit fails, which ends most programs.
    AddressSpace,
    /// The private memory of each process of a worker in bytes: the heap, and the stacks of threads
    /// (RLIMIT_DATA). Shared memory and mapped files do not count. What the server had when it forked
    /// counts. An allocation beyond the limit fails, which ends most programs.
    ///
    /// With a [`cgroup`](crate::ServerBuilder::cgroup) it is the memory of a worker and all processes
    /// that it has started, with files in memory. They are not swapped. The kernel kills them beyond it.
    Memory,
    /// The CPU time of a worker in seconds. SIGXCPU ends the worker at the limit.
    CpuTime,
    /// The number of open descriptors.
    OpenFiles,
    /// The size of a core file in bytes. Workers leave none unless this is set. The kernel ignores
    /// the limit if it pipes core files to a program; see core(5).
    CoreSize,
    /// The number of processes and threads of the worker's user, in all programs. It has no effect
    /// for root. With a [`cgroup`](crate::ServerBuilder::cgroup) it is the number of those of a worker,
    /// and holds for root as well.
    Processes,
    /// The share of the processor that a worker and all processes that it has started may use, in
    /// percent of one CPU: 150 is one and a half. It needs a
    /// [`cgroup`](crate::ServerBuilder::cgroup).
    CpuPercent,
}

impl Limit {
    /// The resource of the process. `None` if only a control group can limit it.
    pub(super) fn resource(self) -> Option<Resource> {
        Some(match self {
            Self::AddressSpace => Resource::As,
            Self::Memory => Resource::Data,
            Self::CpuTime => Resource::Cpu,
            Self::OpenFiles => Resource::Nofile,
            Self::CoreSize => Resource::Core,
            Self::Processes => Resource::Nproc,
            Self::CpuPercent => return None,
        })
    }
}

impl Limit {
    /// Whether it is a limit of a control group, if there is one.
    fn is_of_group(self) -> bool {
        matches!(self, Self::Memory | Self::Processes | Self::CpuPercent)
    }
}

/// The limits that a new worker sets for itself.
#[derive(Debug, Default)]
pub(crate) struct WorkerLimits {
    pub(super) limits: Vec<(Limit, u64)>,
    pub(super) niceness: Option<i32>,
    pub(super) oom_score_adj: Option<i32>,
    /// The control group below which each worker has its own.
    pub(super) group: Option<PathBuf>,
}

impl WorkerLimits {
    /// All settings, in the order in which a worker applies them.
    pub(super) fn settings(&self) -> impl Iterator<Item = Setting> {
        let niceness = self.niceness.map(Setting::Niceness);
        let score = self.oom_score_adj.map(Setting::OomScoreAdj);
        let is_of_process = |&&(limit, _): &&(Limit, u64)| {
            limit.resource().is_some() && !(self.group.is_some() && limit.is_of_group())
        };
        let limits = self.limits.iter().filter(is_of_process);
        let limits = limits.map(|&(limit, value)| Setting::Limit(limit, value));
        niceness.into_iter().chain(score).chain(limits)
    }

    /// Applies the settings in a new worker.
    #[inline]
    pub(crate) fn apply(&self) -> Result<(), SettingError> {
        match self {
            Self { niceness: None, oom_score_adj: None, limits, .. } if limits.is_empty() => Ok(()),
            _ => self.apply_all(),
        }
    }

    fn apply_all(&self) -> Result<(), SettingError> {
        self.settings().try_for_each(|setting| {
            setting.apply().map_err(|source| SettingError { setting, source })
        })
    }

    pub(crate) fn has(&self, wanted: Limit) -> bool {
        self.limits.iter().any(|&(limit, _)| limit == wanted)
    }
}

/// One setting of a new worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    Niceness(i32),
    OomScoreAdj(i32),
    Limit(Limit, u64),
}

impl Setting {
    fn apply(self) -> io::Result<()> {
        match self {
            Self::Niceness(niceness) => Ok(setpriority_process(None, niceness)?),
            Self::OomScoreAdj(score) => {
                std::fs::write("/proc/self/oom_score_adj", score.to_string())
            }
            Self::Limit(limit, value) => {
                // At the hard limit of CPU time the kernel sends SIGKILL, which does not tell the
                // reason.
                let hard = value.saturating_add(u64::from(limit == Limit::CpuTime));
                let both = Rlimit { current: Some(value), maximum: Some(hard) };
                let resource = limit.resource().ok_or(io::ErrorKind::Unsupported)?;
                Ok(setrlimit(resource, both)?)
            }
        }
    }

    /// The name of the option.
    pub(super) fn option(self) -> &'static str {
        match self {
            Self::Niceness(_) => "niceness",
            Self::OomScoreAdj(_) => "oom_score_adj",
            Self::Limit(..) => "limit",
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Niceness(value) | Self::OomScoreAdj(value) => write!(out, "{value}"),
            Self::Limit(limit, value) => write!(out, "{value} for {limit:?}"),
        }
    }
}

/// The system has refused a setting.
#[derive(Debug, thiserror::Error)]
#[error("the option `{}` cannot be set to {setting}: {source}", setting.option())]
pub(crate) struct SettingError {
    pub(super) setting: Setting,
    pub(super) source: io::Error,
}

/// When a healthy worker is replaced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recycling {
    pub(crate) max_calls: Option<u64>,
    pub(crate) max_age: TimeLimit,
    pub(crate) max_idle: TimeLimit,
    pub(crate) max_memory: Option<u64>,
}

impl Default for Recycling {
    fn default() -> Self {
        let never = TimeLimit::NEVER;
        Self { max_calls: None, max_age: never, max_idle: never, max_memory: None }
    }
}

impl Recycling {
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        let zeros = [
            ("max_calls", self.max_calls == Some(0)),
            ("max_age", self.max_age.is_zero()),
            ("max_idle", self.max_idle.is_zero()),
        ];
        match zeros.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((option, _)) => Err(ServerError::option(
                option,
                "with 0, no worker could serve anything: set more, or `None` for no limit",
            )),
            None => Ok(()),
        }
    }

    /// Whether workers are replaced for their age or for being idle.
    pub(crate) fn has_time_limit(&self) -> bool {
        [self.max_age, self.max_idle].into_iter().any(|limit| limit != TimeLimit::NEVER)
    }

    /// The age at which this worker is replaced: the option, plus or minus up to 10 %. So workers
    /// that were forked together are not replaced together.
    pub(crate) fn max_age_of(&self, number: u64) -> TimeLimit {
        // Multiplying by the golden ratio spreads neighbouring numbers over the whole range.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let share = spread as f64 / f64::from(u32::MAX);
        self.max_age.get().map(|age| age.mul_f64(0.9 + 0.2 * share)).into()
    }
}

/// The default of `max_workers`.
pub(crate) fn default_max_workers() -> usize {
    (4 * sys::available_cores()).max(64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ages_are_spread_around_what_is_set() {
        let age = Duration::from_secs(100);
        let recycling = Recycling { max_age: TimeLimit::new(age), ..Recycling::default() };
        let ages: Vec<_> =
            (1..100).filter_map(|number| recycling.max_age_of(number).get()).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!((Duration::from_secs(90)..Duration::from_secs(93)).contains(least), "{least:?}");
        assert!((Duration::from_secs(107)..=Duration::from_secs(110)).contains(most), "{most:?}");
    }
}
