//! What a worker may use, and how long it may serve.

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};

use super::builder::ServerBuilder;
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
    pub(crate) fn replaces_in_time(&self) -> bool {
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

impl<S> ServerBuilder<S> {
    /// After how many calls a worker is replaced, once its checkout is done; never unless set.
    ///
    /// ```
    /// use std::time::Duration;
    /// use taskfork::server::Limit;
    /// use taskfork::Server;
    ///
    /// let server = Server::builder()
    ///     .max_workers(64)
    ///     .max_calls(10_000)
    ///     .max_age(Duration::from_secs(3600))
    ///     .max_memory(512 << 20)
    ///     .limit(Limit::CpuTime, 600)
    ///     .niceness(5);
    /// # let _ = server;
    /// ```
    pub fn max_calls(mut self, calls: impl Into<Option<u64>>) -> Self {
        self.options.recycling.max_calls = calls.into();
        self
    }

    /// At which age a worker is replaced, give or take a tenth, once its checkout is done; never
    /// unless set. A worker that a client has got serves that client's first checkout in any case, if its
    /// first call comes within a second. 0 is an error of [`run`](crate::Server::run).
    pub fn max_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.options.recycling.max_age = age.into().into();
        self
    }

    /// After how long in nobody's hands a worker ends; never unless set. A client replaces those
    /// that it wants to keep, its `min_workers`. A worker that has not been called yet is kept for at least
    /// a second. 0 is an error of [`run`](crate::Server::run).
    pub fn max_idle(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.recycling.max_idle = time.into().into();
        self
    }

    /// A worker that occupies more bytes of memory than this after a checkout is replaced, what it
    /// shares with the server included; none unless set.
    pub fn max_memory(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.options.recycling.max_memory = bytes.into();
        self
    }

    /// The most workers for all clients together. Unless set: 64, or four for each core that the
    /// server may use, if that is more; there can be 16,384. That is enough for three clients with
    /// their default of 20 workers each, and programs of some 15 MiB each still fit a machine with
    /// little memory.
    ///
    /// With that many, a new connection waits, and those that wait get workers in the order in which they
    /// came. The server makes room for a client that has none or fewer: the longest idle worker of the client that
    /// holds most leaves, or, if none is idle, one when its checkout is done. A client does not notice that, as
    /// its pool connects another worker when it needs one. Workers of clients that speak JSON leave only where no
    /// other can, since a call of AnyEvent::Task fails if the connection ends in the instant in which it is made.
    ///
    /// A client that waits goes on with the workers that it has, and names this as the reason if a checkout's
    /// time runs out. As many connections wait as [`max_handshakes`](Self::max_handshakes); more are refused.
    ///
    /// 0 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder().max_workers(200);
    /// # let _ = server;
    /// ```
    pub fn max_workers(mut self, workers: usize) -> Self {
        self.options.max_workers = workers;
        self
    }

    /// Limits what each worker may use, soft and hard alike. A limit that this process may not set
    /// is an error of [`run`](crate::Server::run).
    pub fn limit(mut self, limit: Limit, value: u64) -> Self {
        self.options.limits.limits.retain(|(known, _)| *known != limit);
        self.options.limits.limits.push((limit, value));
        self
    }

    /// The niceness of workers, from -20 to 19; the server's own unless set. A worker sets it before
    /// [`setup`](Self::setup), which may drop the privilege that a lower niceness needs (CAP_SYS_NICE). A value that
    /// this process may not set is an error of [`run`](crate::Server::run).
    pub fn niceness(mut self, niceness: i32) -> Self {
        self.options.limits.niceness = Some(niceness);
        self
    }

    /// How soon the kernel chooses a worker when memory runs out, from -1000, never, to 1000; the
    /// server's own unless set. A worker sets it before [`setup`](Self::setup), which may drop the privilege that
    /// a lower score needs (CAP_SYS_RESOURCE). A value that this process may not set is an error of
    /// [`run`](crate::Server::run).
    pub fn oom_score_adj(mut self, score: i32) -> Self {
        self.options.limits.oom_score_adj = Some(score);
        self
    }
}

#[cfg(test)]
mod tests {
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
