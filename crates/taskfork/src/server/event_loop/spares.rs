//! Forking spare workers, and giving clients to them.

use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{EventLoop, Mode};
use crate::display::seconds;
use crate::server::child::{Child, Role};
use crate::server::fair_share::ClientId;
use crate::server::log;
use crate::sys::ForkError;
use crate::worker::{AcceptedClient, ClientSource};

/// How long a steady stream of events can delay the fork of a spare worker.
const MAX_FORK_DELAY: Duration = Duration::from_millis(100);

/// After a failure, how often the next spare worker is checked until it has come up.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

impl EventLoop {
    /// Notes whether there are too few spare workers. If so, returns the time until one is forked.
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
        if let Some(probe) = self.children.values().find(|child| self.is_probe(child)) {
            if !probe.is_waiting_spare() {
                return Some(PROBE_INTERVAL);
            }
            self.spares.reset_backoff();
        }
        Some(self.spares.time_until_fork(now))
    }

    /// Whether this is the spare worker that was forked alone after a failure.
    fn is_probe(&self, child: &Child) -> bool {
        child.is_spare() && self.spares.is_probe(child.number)
    }

    /// Forks a spare worker that is due, unless there are events to handle first.
    pub(super) fn fork_due_spare(&mut self, is_busy: bool) {
        let since = self.spares.short_since;
        if is_busy && since.is_none_or(|since| since.elapsed() < MAX_FORK_DELAY) {
            return;
        }
        if self.update_spares() != Some(Duration::ZERO) {
            return;
        }
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let forked =
            pair.map_err(|errno| ForkError::Kernel(errno.into())).and_then(|(ours, theirs)| {
                self.fork_worker(Role::Spare(ours), ClientSource::Channel(theirs))
                    .map_err(|(_, error)| error)
            });
        if let Err(error) = forked {
            self.record_spare_failure(&error.to_string(), Duration::ZERO);
        }
    }

    /// Logs the failure of a spare worker, and delays the next one.
    pub(super) fn record_spare_failure(&mut self, reason: &str, age: Duration) {
        if let Some(backoff) = self.spares.record_failure(age, self.forked, Instant::now()) {
            let (name, backoff) = (&self.options.name, seconds(backoff));
            log::error!(name, "a spare worker failed, the next is forked in {backoff}: {reason}");
        }
    }

    /// Gives `client` to a spare worker. Returns the client if there is none. A spare worker whose
    /// setup still runs is chosen only if no further worker can be forked.
    pub(super) fn assign_spare(
        &mut self,
        mut client: AcceptedClient,
        id: ClientId,
    ) -> Option<AcceptedClient> {
        if self.options.spare_workers == 0 {
            return Some(client);
        }
        let is_full = self.children.len() >= self.worker_limit();
        let is_fit = |child: &&mut Child| child.is_waiting_spare() || is_full && child.is_spare();
        for child in self.children.values_mut().filter(is_fit) {
            let number = child.number;
            match child.assign_client(client) {
                Ok(()) => {
                    child.client_id = id;
                    self.spares.reset_backoff();
                    self.spares.last_assigned = Some(Instant::now());
                    self.watch_client(number);
                    return None;
                }
                Err(returned) => client = returned,
            }
        }
        Some(client)
    }
}
