//! What a worker may use, and how long it may serve.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};

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
    fn resource(self) -> Resource {
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
    limits: Vec<(Limit, u64)>,
    niceness: Option<i32>,
    oom_score_adj: Option<i32>,
}

impl WorkerLimits {
    /// Whether a worker could set them, as far as that can be known before.
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        let wrong = |option, reason: String| Err(ServerError::Option { option, reason });
        if let Some(niceness) = self.niceness.filter(|value| !(-20..20).contains(value)) {
            return wrong("niceness", format!("{niceness} is not between -20 and 19"));
        }
        if let Some(score) = self.oom_score_adj.filter(|value| !(-1000..=1000).contains(value)) {
            return wrong("oom_score_adj", format!("{score} is not between -1000 and 1000"));
        }
        for &(limit, value) in &self.limits {
            let most = getrlimit(limit.resource()).maximum;
            if let Some(most) =
                most.filter(|&most| most < value && !rustix::process::geteuid().is_root())
            {
                let reason =
                    format!("{value} for {limit:?} is over this process's own limit, {most}");
                return wrong("limit", reason);
            }
        }
        Ok(())
    }

    /// In a new worker.
    #[inline]
    pub(crate) fn apply(&self) -> io::Result<()> {
        match self {
            Self { niceness: None, oom_score_adj: None, limits } if limits.is_empty() => Ok(()),
            _ => self.apply_all(),
        }
    }

    fn apply_all(&self) -> io::Result<()> {
        if let Some(niceness) = self.niceness {
            setpriority_process(None, niceness)?;
        }
        if let Some(score) = self.oom_score_adj {
            std::fs::write("/proc/self/oom_score_adj", score.to_string())?;
        }
        for &(limit, value) in &self.limits {
            // At the harder limit of processor time comes SIGKILL, which says nothing.
            let hard = value.saturating_add(u64::from(limit == Limit::CpuTime));
            let both = Rlimit { current: Some(value), maximum: Some(hard) };
            setrlimit(limit.resource(), both)?;
        }
        Ok(())
    }

    pub(crate) fn has(&self, wanted: Limit) -> bool {
        self.limits.iter().any(|&(limit, _)| limit == wanted)
    }
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
    pub(crate) fn age_of(&self, number: u64) -> TimeLimit {
        // Spreads neighbouring numbers over the whole range.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let share = spread as f64 / f64::from(u32::MAX);
        self.max_age.get().map(|age| age.mul_f64(0.9 + 0.2 * share)).into()
    }
}

/// The most workers unless set.
pub(crate) fn default_max_workers() -> usize {
    (4 * sys::cores()).max(64)
}

impl<S> ServerBuilder<S> {
    /// After how many calls a worker is replaced, once its checkout is done; never unless set.
    ///
    /// ```
    /// use std::time::Duration;
    /// use taskfork::{Limit, Server};
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
    /// A client that connects beyond that is told so. It goes on with the workers that it has, tries
    /// again, and names this as the reason if a checkout's time runs out.
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

    /// The niceness of workers, from -20 to 19; the server's own unless set.
    pub fn niceness(mut self, niceness: i32) -> Self {
        self.options.limits.niceness = Some(niceness);
        self
    }

    /// How soon the kernel chooses a worker when memory runs out, from -1000, never, to 1000; the
    /// server's own unless set.
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
        let ages: Vec<_> = (1..100).filter_map(|number| recycling.age_of(number).get()).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!((Duration::from_secs(90)..Duration::from_secs(93)).contains(least), "{least:?}");
        assert!((Duration::from_secs(107)..=Duration::from_secs(110)).contains(most), "{most:?}");
    }
}
