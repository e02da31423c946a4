//! The options of workers: their number, their lifetime, and the limits that each of them has.

use std::path::PathBuf;
use std::time::Duration;

use super::super::limits::Limit;
use super::ServerBuilder;
use crate::busy_poll::BusyPoll;
use crate::worker::ReplaceAfter;

impl<S> ServerBuilder<S> {
    /// Sets the maximum number of workers for all clients together. Defaults to 64, or to four for
    /// each CPU that the server may use if that is more. At most 16,384.
    ///
    /// The default is enough for three clients with their default of 20 workers each. Programs of
    /// about 15 MiB each then still fit a machine with little memory.
    ///
    /// When all workers are in use, a new connection waits in a queue, which is served in order. The
    /// server makes room for a client that has no worker, or fewer than another. It asks the client
    /// with the most workers for one: the worker that has been idle longest leaves, or, if none is
    /// idle, one leaves after its checkout. Clients do not notice this, because their pools connect
    /// again when they need a worker. Workers of clients that speak JSON leave only if no other
    /// worker can, since a call of AnyEvent::Task fails if the connection ends as the call is made.
    ///
    /// A client in the queue continues with the workers that it has. If a checkout times out
    /// meanwhile, its error names this limit. The queue holds
    /// [`max_handshakes`](Self::max_handshakes) connections; more are refused.
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

    /// Sets how many workers are forked and [set up](ServerBuilder::setup) in advance. Defaults
    /// to 0. They count among [`max_workers`](Self::max_workers).
    ///
    /// A client that connects gets a spare worker, so that it waits neither for the fork nor for
    /// `setup`. The server replaces it in the background.
    ///
    /// If the `setup` of a spare worker fails, the server logs that and waits before it forks
    /// another: 0.1 seconds, doubled after each further failure, 30 seconds at most. Clients that
    /// connect meanwhile get workers forked for them, and see the error with their first call.
    ///
    /// ```
    /// let server = taskfork::Server::builder().spare_workers(2);
    /// # let _ = server;
    /// ```
    pub fn spare_workers(mut self, workers: usize) -> Self {
        self.options.spare_workers = workers;
        self
    }

    /// Sets the number of calls after which a worker is replaced. Defaults to no limit. The worker
    /// finishes its checkout first. 0 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// use std::time::Duration;
    /// use taskfork::Server;
    ///
    /// let server = Server::builder()
    ///     .max_calls(10_000)
    ///     .max_age(Duration::from_secs(3600))
    ///     .max_memory(512 << 20);
    /// # let _ = server;
    /// ```
    pub fn max_calls(mut self, calls: impl Into<Option<u64>>) -> Self {
        self.options.recycling.max_calls = calls.into();
        self
    }

    /// Sets after which errors of calls a worker is replaced. It finishes its checkout first.
    ///
    /// Defaults to [`ReplaceAfter::Panic`] for interfaces that the attribute
    /// [`interface`](macro@crate::interface) makes: an error that a method returns is a value. For all others it
    /// defaults to [`ReplaceAfter::AnyError`], because a function that stops in the middle can leave the worker's
    /// state half changed. A client can keep all workers by
    /// [`reuse_after_error`](crate::client::ClientBuilder::reuse_after_error). One that speaks JSON decides itself.
    ///
    /// ```
    /// use taskfork::worker::ReplaceAfter;
    ///
    /// let server = taskfork::Server::builder().replace_after(ReplaceAfter::AnyError);
    /// # let _ = server;
    /// ```
    pub fn replace_after(mut self, errors: ReplaceAfter) -> Self {
        self.options.replace_after = Some(errors);
        self
    }

    /// Sets the age at which a worker is replaced. Defaults to no limit. The worker finishes its
    /// checkout first.
    ///
    /// The age of each worker varies by up to 10 %, so that workers forked together are not replaced
    /// together. A new worker always serves its client's first checkout if the first call arrives
    /// within a second. 0 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = taskfork::Server::builder().max_age(Duration::from_secs(3600));
    /// # let _ = server;
    /// ```
    pub fn max_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.options.recycling.max_age = age.into().into();
        self
    }

    /// Sets how long a worker may be idle before it ends. Defaults to no limit.
    ///
    /// A client connects again to keep its `min_workers`. A worker without a call so far is kept for
    /// at least a second. 0 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = taskfork::Server::builder().max_idle(Duration::from_secs(60));
    /// # let _ = server;
    /// ```
    pub fn max_idle(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.recycling.max_idle = time.into().into();
        self
    }

    /// Sets the memory, in bytes, above which a worker is replaced after a checkout. Defaults to no
    /// limit. The worker's resident and swapped memory counts, including what it shares with the server.
    ///
    /// ```
    /// let server = taskfork::Server::builder().max_memory(512 << 20);
    /// # let _ = server;
    /// ```
    pub fn max_memory(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.options.recycling.max_memory = bytes.into();
        self
    }

    /// Sets how long a worker may spend in one call, in `setup` or in `checkout_done` before it is
    /// killed. Defaults to 5 minutes. `None`, or 100 years and more, mean no limit. 0 is an error of
    /// [`run`](crate::Server::run).
    ///
    /// The kill does not depend on the worker's code, which may be stuck in native code. The call
    /// fails with [`FatalError::WorkerDied`](crate::error::FatalError::WorkerDied).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = taskfork::Server::builder().hung_worker_timeout(Duration::from_secs(60));
    /// # let _ = server;
    /// ```
    pub fn hung_worker_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.options.hung_worker_timeout = timeout.into().into();
        self
    }

    /// Limits a resource of each worker, with the same soft and hard limit. Defaults to the server's
    /// own limits, but workers leave no core files unless [`Limit::CoreSize`] is set: a core file holds
    /// what the server had in its memory. A limit that this process may not set is an error of
    /// [`run`](crate::Server::run).
    ///
    /// ```
    /// use taskfork::Server;
    /// use taskfork::server::Limit;
    ///
    /// let server = Server::builder().limit(Limit::CpuTime, 600).limit(Limit::OpenFiles, 64);
    /// # let _ = server;
    /// ```
    pub fn limit(mut self, limit: Limit, value: u64) -> Self {
        self.options.limits.limits.retain(|(known, _)| *known != limit);
        self.options.limits.limits.push((limit, value));
        self
    }

    /// Sets a control group (version 2) that has been delegated to the server, below which each worker gets
    /// a group of its own. Defaults to none.
    ///
    /// [`Limit::Memory`], [`Limit::Processes`] and [`Limit::CpuPercent`] then limit a worker together with
    /// all processes that it starts, and no process of a worker outlives it. The death of a worker whose
    /// memory has run out names the limit. The server itself must not be in this group, but in another one
    /// below it. A service of systemd has `Delegate=yes` and `DelegateSubgroup=server` for that, and its
    /// group is `/sys/fs/cgroup/system.slice/NAME.service`.
    ///
    /// [`run`](crate::Server::run) fails if the path is not such a group, if the group lacks a controller
    /// that a limit needs, or if the server may not make groups there.
    ///
    /// ```
    /// use taskfork::Server;
    /// use taskfork::server::Limit;
    ///
    /// let server = Server::builder()
    ///     .cgroup("/sys/fs/cgroup/system.slice/app.service")
    ///     .limit(Limit::Memory, 512 << 20)
    ///     .limit(Limit::Processes, 20);
    /// # let _ = server;
    /// ```
    pub fn cgroup(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.limits.group = Some(path.into());
        self
    }

    /// Sets the niceness of workers, from -20 to 19. Defaults to the server's own niceness.
    ///
    /// A worker sets it before [`user`](Self::user) and [`setup`](Self::setup), which may drop the
    /// privilege that a lower niceness needs (CAP_SYS_NICE). A value that this process may not set is an error of
    /// [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder().niceness(5);
    /// # let _ = server;
    /// ```
    pub fn niceness(mut self, niceness: i32) -> Self {
        self.options.limits.niceness = Some(niceness);
        self
    }

    /// Sets how likely the kernel is to kill a worker when memory runs out, from -1000 (never) to
    /// 1000 (first). Defaults to the server's own score.
    ///
    /// A worker sets it before [`user`](Self::user) and [`setup`](Self::setup), which may drop the
    /// privilege that a lower score needs (CAP_SYS_RESOURCE). A value that this process may not set is an error of
    /// [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder().oom_score_adj(500);
    /// # let _ = server;
    /// ```
    pub fn oom_score_adj(mut self, score: i32) -> Self {
        self.options.limits.oom_score_adj = Some(score);
        self
    }

    /// Enables huge pages for the memory that the process has loaded before the first fork. Defaults
    /// to true.
    ///
    /// A fork copies one entry for each page, so a fork of a large process takes about a thirtieth of
    /// the time with huge pages. The move takes up to two seconds for each GiB when the server
    /// starts. A kernel without huge pages
    /// ignores this.
    ///
    /// ```
    /// let server = taskfork::Server::builder().huge_pages(false);
    /// # let _ = server;
    /// ```
    pub fn huge_pages(mut self, enabled: bool) -> Self {
        self.options.huge_pages = enabled;
        self
    }

    /// Sets whether a worker polls for its next call for a moment before it sleeps. Defaults to
    /// [`BusyPoll::Adaptive`].
    ///
    /// ```
    /// use taskfork::Server;
    /// use taskfork::client::BusyPoll;
    ///
    /// let server = Server::builder().busy_poll(BusyPoll::Off);
    /// # let _ = server;
    /// ```
    pub fn busy_poll(mut self, mode: BusyPoll) -> Self {
        self.options.busy_poll = mode;
        self
    }
}
