//! What the server does that may take long, in processes of their own: telling of deaths, and of
//! itself.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll;
use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use super::{EventLoop, Mode};
use crate::server::child::Child;
use crate::server::entry::is_child_of;
use crate::server::log;
use crate::server::status::{self, ServerStatus};
use crate::server::worker_exit::{DeathNotification, WorkerExit};
use crate::sys::{self, Forked};
use crate::worker::scoreboard::now;

/// No more helpers run at one time. Who asks for the status then is told all but the use of memory, and deaths are told without
/// the names of what is on the stack.
const MAX_HELPERS: usize = 64;

impl EventLoop {
    /// Buries all workers that have died, and reaps other children. The kernel says only that some child has died.
    pub(in crate::server) fn reap_workers(&mut self) {
        while let Some(first) = sys::exited_child() {
            let is_it = |child: &&Child| child.pid == first;
            // What has died first may be no worker, and may stay for a while.
            let any = || self.children.values().find(|child| child.has_ended());
            let dead = self.children.values().find(is_it).or_else(any);
            let Some(number) = dead.map(|child| child.number) else {
                self.reap_orphans();
                return;
            };
            self.bury(number);
        }
    }

    pub(in crate::server) fn bury(&mut self, number: u64) {
        let Some(child) = self.children.remove(&number) else { return };
        // Closing them would not end the watch: a worker that has just been forked holds copies
        // for a moment. The kernel refuses only what is not watched anyway.
        if let Some(connection) = child.connection() {
            let _ = epoll::delete(&self.epoll, connection);
        }
        if let Some(stderr) = child.stderr() {
            let _ = epoll::delete(&self.epoll, stderr);
        }
        let age = child.age();
        // Its group can be killed for as long as its number is not free.
        child.kill();
        if !self.guardian.as_mut().is_none_or(|guardian| guardian.reaped(child.pid)) {
            self.replace_guardian();
        }
        let WorkerExit { slot, mut news, mut stack, cause, spare_failure } = child.bury(
            &mut self.shown,
            &mut self.log_limits.deaths,
            &self.options.limits,
            &self.out_of_memory,
        );
        if !self.options.access.details && !self.rules.is_own(&news.connection) {
            news.omit_details();
            stack = None;
        }
        self.scoreboard.quarantine(slot);
        self.queue.freed(number);
        *self.tally.deaths.entry(cause).or_default() += 1;
        match stack {
            Some(stack) if news.has_notice() => self.tell_with(news, stack),
            _ => news.tell(),
        }
        if let Some(reason) = spare_failure.filter(|_| self.mode == Mode::Serving) {
            self.record_spare_failure(&reason, age);
        }
        self.reap_orphans();
    }

    /// Has a process of its own find the names of what is on a stack, as that takes long.
    fn tell_with(&mut self, news: DeathNotification, stack: Vec<u64>) {
        if let Some(news) = self.help(news, |server, news| {
            server.children.clear();
            server.handshakes.forget();
            server.queue.forget();
            news.tell_with(stack);
        }) {
            news.tell();
        }
    }

    /// Tells of the server.
    pub(in crate::server) fn send_status(&mut self, connection: OwnedFd) {
        // Workers' slots are not mapped in the process that tells.
        let status = self.status();
        // One that does not read must not hold the server up, and memory takes long to find out.
        let unhelped = self.help((connection, status), |server, (connection, mut status)| {
            server.children.clear();
            server.handshakes.forget();
            server.queue.forget();
            for worker in &mut status.workers {
                (worker.memory, worker.peak_memory) = status::memory(worker.pid);
            }
            status::answer(&connection, &status);
        });
        if let Some((connection, status)) = unhelped {
            status::answer_at_once(&connection, &status);
        }
    }

    fn status(&mut self) -> ServerStatus {
        let now = now();
        let children = self.children.values_mut();
        let mut workers: Vec<_> = children.map(|child| child.status(now)).collect();
        workers.sort_by_key(|worker| worker.number);
        let deaths = self.tally.deaths.iter().map(|(&cause, &count)| (cause.to_owned(), count));
        ServerStatus {
            name: self.options.name.clone(),
            // That of the server, whose helper says so.
            pid: self.pid,
            seconds: now.saturating_sub(self.since).as_secs_f64(),
            accepting: self.mode == Mode::Serving,
            max_workers: self.worker_limit(),
            forked: self.born,
            refused: self.tally.refused,
            handshakes: self.handshakes.len(),
            handshake_failures: self.handshakes.failures,
            queued: self.queued(),
            waiting: self.queue.len(),
            deaths: deaths.collect(),
            workers,
        }
    }

    /// How many checkouts wait: of each client what it has said last.
    fn queued(&self) -> u64 {
        let mut last = BTreeMap::new();
        for (client, at, waiting) in
            self.children.values().filter_map(|child| child.slot.reported_queue())
        {
            let known = last.entry(client).or_insert((at, waiting));
            *known = (*known).max((at, waiting));
        }
        last.values().fold(0, |all, &(_, waiting)| all.saturating_add(waiting))
    }

    /// In a process forked from the server: whether the server is its parent still.
    fn is_parent(&self) -> bool {
        Pid::from_raw(self.pid.cast_signed()).is_some_and(is_child_of)
    }

    /// Has a process of its own do something that may take long; gives back what it was to be done
    /// with if there is none.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    fn help<T>(&mut self, with: T, task: impl FnOnce(&mut Self, T)) -> Option<T> {
        if self.orphans.helpers() >= MAX_HELPERS {
            return Some(with);
        }
        // SAFETY: the helper writes to its own connection only, and leaves by `exit_now`.
        match unsafe { sys::fork(&self.threads) } {
            Ok(Forked::Parent { child }) => {
                let pid = Pid::from_raw(child.as_raw());
                pid.into_iter().for_each(|pid| self.orphans.add_helper(pid));
                None
            }
            Ok(Forked::Child) => {
                // It outlives neither the server nor, by what it holds, anybody's connection.
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                // The server may have died before the signal was asked for.
                if !self.is_parent() {
                    sys::exit_now(1);
                }
                drop((self.listener.take(), self.status.take(), self.options.control.take()));
                self.status_requests.forget();
                task(self, with);
                sys::exit_now(0);
            }
            Err(error) => {
                if self.log_limits.helpers.allows(Instant::now()) {
                    log::warn!("the server cannot fork a helper: {error}");
                }
                Some(with)
            }
        }
    }

    pub(in crate::server) fn reap_orphans(&mut self) {
        let pids: HashSet<_> = self.children.values().map(|child| child.pid).collect();
        self.orphans.end(&self.mark, |pid| pids.contains(&pid));
        if !self.orphans.is_pending() {
            self.scoreboard.release_quarantined();
        }
    }
}
