//! Workers that are forked and set up before anybody wants them.

use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::builder::ServerBuilder;
use super::child::{Child, Role};
use super::event_loop::{EventLoop, Mode};
use super::fair_share::ClientId;
use super::log;
use crate::display::seconds;
use crate::sys::ForkError;
use crate::worker::{AcceptedClient, ClientSource};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// A spare worker that has lived for so long has failed for a reason of its own.
const STABLE_AGE: Duration = Duration::from_secs(60);

/// For how long events that come one upon the other can put a fork off.
const MAX_DEFER: Duration = Duration::from_millis(100);

/// How long the next one is put off when one has got a client, whose first answer a fork would delay.
const FIRST_ANSWER_DELAY: Duration = Duration::from_millis(1);

/// How often a new one is looked at after a failure, to see whether it has come up.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// When the next spare worker is forked.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    /// After the last failure; none if the last one came up.
    pause: Duration,
    /// Not before then, after a failure.
    retry_at: Option<Instant>,
    /// Workers up to this number had been forked when it failed.
    tried: u64,
    /// Since when there have been too few.
    short_since: Option<Instant>,
    /// When one got a client.
    last_assigned: Option<Instant>,
}

impl Spares {
    /// One has come up: the next failure is the first.
    fn succeeded(&mut self) {
        let Self { short_since, last_assigned, .. } = *self;
        *self = Self { short_since, last_assigned, ..Self::default() };
    }

    /// One has failed, when workers up to `born` had been forked; gives for how long none will be,
    /// unless that is known from another that was forked with it.
    fn failed(&mut self, age: Duration, born: u64, now: Instant) -> Option<Duration> {
        if !self.wait(now).is_zero() {
            return None;
        }
        let before = if age < STABLE_AGE { self.pause } else { Duration::ZERO };
        self.pause = (2 * before).clamp(FIRST_PAUSE, LAST_PAUSE);
        self.retry_at = Some(now + self.pause);
        self.tried = born;
        Some(self.pause)
    }

    /// How long it takes until one may be forked.
    fn wait(&self, now: Instant) -> Duration {
        self.retry_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// The next one after a failure is tried alone.
    fn is_probe(&self, child: &Child) -> bool {
        !self.pause.is_zero() && child.number > self.tried && child.is_spare()
    }
}

impl EventLoop {
    /// In how long a spare worker is to be forked, if there are too few.
    pub(super) fn update_spares(&mut self) -> Option<Duration> {
        let wanted = self.options.spare_workers;
        let is_short = self.mode == Mode::Serving
            && self.queue.is_empty()
            && self.children.len() < self.worker_limit()
            && self.children.values().filter(|child| child.is_spare()).count() < wanted;
        if !is_short {
            self.spares.short_since = None;
            return None;
        }
        let now = Instant::now();
        self.spares.short_since.get_or_insert(now);
        if let Some(probe) = self.children.values().find(|child| self.spares.is_probe(child)) {
            if !probe.is_waiting() {
                return Some(PROBE_INTERVAL);
            }
            self.spares.succeeded();
        }
        let last_assigned =
            self.spares.last_assigned.map_or(FIRST_ANSWER_DELAY, |at| now.duration_since(at));
        Some(self.spares.wait(now).max(FIRST_ANSWER_DELAY.saturating_sub(last_assigned)))
    }

    /// Forks a spare worker that is due, if nothing else is to be done or that has been so for long.
    pub(super) fn fork_due_spare(&mut self, is_busy: bool) {
        let since = self.spares.short_since;
        if is_busy && since.is_none_or(|since| since.elapsed() < MAX_DEFER) {
            return;
        }
        if self.update_spares() != Some(Duration::ZERO) {
            return;
        }
        let flags = SocketFlags::CLOEXEC;
        let line = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let forked =
            line.map_err(|errno| ForkError::Kernel(errno.into())).and_then(|(ours, theirs)| {
                self.fork(Role::Spare(ours), ClientSource::Channel(theirs))
                    .map_err(|(_, error)| error)
            });
        if let Err(error) = forked {
            self.record_spare_failure(&error.to_string(), Duration::ZERO);
        }
    }

    /// One line for each, and none forked for a while, so that no failure becomes a storm.
    pub(super) fn record_spare_failure(&mut self, reason: &str, age: Duration) {
        if let Some(pause) = self.spares.failed(age, self.born, Instant::now()) {
            let (name, pause) = (&self.options.name, seconds(pause));
            log::error!(name, "a spare worker failed, the next is forked in {pause}: {reason}");
        }
    }

    /// Has a spare worker serve `client`; gives it back if there is none. One that is still
    /// being set up is chosen only if there can be no new worker.
    pub(super) fn assign_spare(
        &mut self,
        mut client: AcceptedClient,
        holder: ClientId,
    ) -> Option<AcceptedClient> {
        if self.options.spare_workers == 0 {
            return Some(client);
        }
        let is_full = self.children.len() >= self.worker_limit();
        let fit = |child: &&mut Child| child.is_waiting() || is_full && child.is_spare();
        for child in self.children.values_mut().filter(fit) {
            let number = child.number;
            match child.assign_client(client) {
                Ok(()) => {
                    child.holder = holder;
                    self.spares.succeeded();
                    self.spares.last_assigned = Some(Instant::now());
                    self.watch_client(number);
                    return None;
                }
                Err(back) => client = back,
            }
        }
        Some(client)
    }
}

impl<S> ServerBuilder<S> {
    /// How many workers are kept forked and [set up](ServerBuilder::setup) before anybody wants
    /// them, 0 unless set. A client that connects gets one of them, so that it waits neither for
    /// the fork nor for `setup`; the next is made in the background. They count among
    /// [`max_workers`](Self::max_workers).
    ///
    /// When a spare worker's `setup` fails, the server logs that and waits before it forks
    /// another: 0.1 seconds, twice as long after each further failure, 30 seconds at most. Clients
    /// that connect meanwhile get workers forked for them, and the error with their first call.
    ///
    /// ```
    /// let server = taskfork::Server::builder().spare_workers(2);
    /// # let _ = server;
    /// ```
    pub fn spare_workers(mut self, workers: usize) -> Self {
        self.options.spare_workers = workers;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_one_after_the_other_are_waited_out_longer_and_longer() {
        let mut spares = Spares::default();
        let mut now = Instant::now();
        assert_eq!(spares.wait(now), Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let pause = spares.failed(Duration::ZERO, 0, now).unwrap();
            // Another that was forked with it.
            assert_eq!(spares.failed(Duration::ZERO, 0, now + pause / 2), None);
            assert_eq!(spares.wait(now + pause / 2), pause - pause / 2);
            pauses.push(pause);
            now += pause;
        }
        let doubled = (0..9).map(|times| FIRST_PAUSE * 2_u32.pow(times));
        assert_eq!(pauses, doubled.chain([LAST_PAUSE]).collect::<Vec<_>>());

        assert_eq!(spares.failed(STABLE_AGE, 0, now), Some(FIRST_PAUSE));
        now += FIRST_PAUSE;
        spares.failed(Duration::ZERO, 0, now);
        spares.succeeded();
        assert_eq!(spares.wait(now), Duration::ZERO);
        assert_eq!(spares.failed(Duration::ZERO, 0, now), Some(FIRST_PAUSE));
    }
}
