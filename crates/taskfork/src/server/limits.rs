//! What a worker may use, and how long it may serve.

use std::fmt;
use std::io;

use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};

use super::error::ServerError;
use crate::sys;
use crate::time_limit::TimeLimit;

/// What a worker may use of one thing, for [`ServerBuilder::limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// Bytes of address space, shared memory and mapped files included. An allocation beyond it
    /// fails, which ends most programs.
    AddressSpace,
    /// Seconds of processor time over the worker's whole life. SIGXCPU ends it then.
    CpuTime,
    /// Open descriptors.
    OpenFiles,
    /// Bytes of a core file; 0 for none.
    CoreSize,
    /// Processes and threads of the worker's user, the worker's and all others. It does not hold
    /// for root.
    Processes,
}

impl Limit {
    pub(super) fn resource(self) -> Resource {
        match self {
            Self::AddressSpace => Resource::As,
            Self::CpuTime => Resource::Cpu,
            Self::OpenFiles => Resource::Nofile,
            Self::CoreSize => Resource::Core,
            Self::Processes => Resource::Nproc,
        }
    }
}

/// What a new worker sets for itself.
#[derive(Debug, Default)]
pub(crate) struct WorkerLimits {
    pub(super) limits: Vec<(Limit, u64)>,
    pub(super) niceness: Option<i32>,
    pub(super) oom_score_adj: Option<i32>,
}

impl WorkerLimits {
    /// What a worker sets, in this order.
    pub(super) fn settings(&self) -> impl Iterator<Item = Setting> {
        let niceness = self.niceness.map(Setting::Niceness);
        let score = self.oom_score_adj.map(Setting::OomScoreAdj);
        let limits = self.limits.iter().map(|&(limit, value)| Setting::Limit(limit, value));
        niceness.into_iter().chain(score).chain(limits)
    }

    /// In a new worker.
    #[inline]
    pub(crate) fn apply(&self) -> Result<(), SettingError> {
        match self {
            Self { niceness: None, oom_score_adj: None, limits } if limits.is_empty() => Ok(()),
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

/// One of the things that a new worker sets for itself.
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
                // At the harder limit of processor time comes SIGKILL, which says nothing.
                let hard = value.saturating_add(u64::from(limit == Limit::CpuTime));
                let both = Rlimit { current: Some(value), maximum: Some(hard) };
                Ok(setrlimit(limit.resource(), both)?)
            }
        }
    }

    /// The option that asks for it.
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

/// When a worker is replaced that does nothing wrong.
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
            Some((option, _)) => Err(ServerError::Option {
                option,
                reason: "with 0, no worker could serve anything: set more, or `None` for no limit"
                    .to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Whether workers are replaced for their age, or as nobody uses them.
    pub(crate) fn has_time_limit(&self) -> bool {
        [self.max_age, self.max_idle].into_iter().any(|limit| limit != TimeLimit::NEVER)
    }

    /// The age at which this worker is replaced: a tenth more or less than what is set, so that
    /// workers born together do not all go together.
    pub(crate) fn max_age_of(&self, number: u64) -> TimeLimit {
        // Spreads neighbouring numbers over the whole range.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let share = spread as f64 / f64::from(u32::MAX);
        self.max_age.get().map(|age| age.mul_f64(0.9 + 0.2 * share)).into()
    }
}

/// The most workers unless set.
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
