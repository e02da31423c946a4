//! Clients that wait for a worker: putting them into the queue, evicting workers of other clients for
//! them, and assigning free places.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use super::{EventLoop, Mode};
use crate::clock::now;
use crate::server::client_queue::{Eviction, QueuedClient};
use crate::server::fair_share::{self, AssignedWorker, ClientId};
use crate::server::log;
use crate::server::refusal::Refusal;
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::{Protocol, native};
use crate::worker::AcceptedClient;
use crate::worker::scoreboard::Retirement;

/// The least time between two reviews of the queue. A review that took long is followed by a pause of
/// this many times its duration.
const REVIEW_INTERVAL: Duration = Duration::from_millis(50);
const REVIEW_PAUSE_FACTOR: u32 = 20;

/// How long the rest of a long first message may take after its client has waited in the queue.
const GREETING_REST_TIMEOUT: Duration = Duration::from_secs(5);

impl EventLoop {
    /// Puts a client into the queue. Refuses it if the queue is full.
    pub(super) fn enqueue_client(
        &mut self,
        mut client: AcceptedClient,
        protocol: Protocol,
        id: ClientId,
    ) {
        let limit = self.worker_limit();
        let reason = format!("it has all of its {limit} workers (max_workers)");
        if self.queue.len() >= self.handshakes.limit() {
            self.refuse(client.socket, Refusal::busy(protocol, reason));
            return;
        }
        if protocol == Protocol::Native {
            if !send_wait(&client.socket, &reason) {
                // The client is gone, or does not read.
                return;
            }
            client.is_preamble_sent = true;
        }
        let queued = QueuedClient { client, protocol, id, eviction: None, is_next: false };
        match self.queue.push(queued) {
            Ok(number) => self.request_evictions(number),
            Err((queued, errno)) => {
                let refusal = Refusal::busy(protocol, format!("it cannot be watched: {errno}"));
                let refusal = refusal.with_preamble_sent(queued.client.is_preamble_sent);
                self.refuse(queued.client.socket, refusal);
            }
        }
    }

    /// Reviews the queue if it is time. Returns the time until the next review.
    pub(super) fn review_queue(&mut self) -> Option<Duration> {
        if self.queue.is_empty() {
            return None;
        }
        let started = now();
        let left = self.queue.next_review.saturating_sub(started);
        if !left.is_zero() {
            return Some(left);
        }
        self.request_evictions(0);
        let took = now().saturating_sub(started);
        let pause = took.saturating_mul(REVIEW_PAUSE_FACTOR).max(REVIEW_INTERVAL);
        self.queue.next_review = now().saturating_add(pause);
        Some(pause)
    }

    /// Asks workers to leave for the clients from this number on that may have their places.
    fn request_evictions(&mut self, first: u64) {
        let now = now();
        let mut assigned: Vec<_> =
            self.children.values_mut().filter_map(|child| child.assigned_worker(now)).collect();
        // Places that are promised to clients count as theirs.
        let promised = self.queue.iter().filter(|client| client.is_promised(now));
        assigned.extend(promised.map(|client| AssignedWorker::promised(client.id)));
        let mut without_candidate = BTreeSet::new();
        for client in self.queue.iter_from(first) {
            if client.is_promised(now) || without_candidate.contains(&client.id) {
                continue;
            }
            let Some(worker) = fair_share::choose_eviction(&assigned, client.id) else {
                without_candidate.insert(client.id);
                continue;
            };
            assigned.retain(|it| it.worker != worker);
            assigned.push(AssignedWorker::promised(client.id));
            client.eviction = Some(Eviction { worker, at: now });
            if let Some(child) = self.children.get_mut(&worker) {
                log::debug!(worker, "it makes room for another client");
                child.retire(Retirement::Fairness);
            }
        }
    }

    /// Gives places that have become free to clients in the queue.
    pub(super) fn assign_free_places(&mut self) {
        while self.mode == Mode::Serving && self.children.len() < self.worker_limit() {
            let Some(queued) = self.queue.pop() else { return };
            let QueuedClient { mut client, protocol, id, .. } = queued;
            // The time in the queue does not count against the client.
            client.deadline =
                client.deadline.map(|until| until.max(Instant::now() + GREETING_REST_TIMEOUT));
            if let Some(client) = self.assign_spare(client, id) {
                self.fork_for_client(client, protocol, id);
            }
        }
    }
}

/// Sends a native client the message that it is in the queue. Returns whether the kernel took the
/// whole message.
fn send_wait(connection: &OwnedFd, reason: &str) -> bool {
    let mut out = PREAMBLE.to_vec();
    let written = frame::write_control(&mut out, |out| native::put_queued(out, reason));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    written.is_ok() && send(connection, &out, flags) == Ok(out.len())
}
