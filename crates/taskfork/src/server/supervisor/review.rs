//! Reviews of the queue: choosing workers that make room for clients that wait.

use std::time::Duration;

use super::Supervisor;
use super::action::{Action, ClientKey};
use super::observation::{Observation, observed};
use super::worker::Leaving;
use crate::worker::scoreboard::Retirement;

/// The least time between two reviews of the queue. A review that took long is followed by a pause of
/// this many times its duration.
const REVIEW_INTERVAL: Duration = Duration::from_millis(50);
const REVIEW_PAUSE_FACTOR: u32 = 20;

#[derive(Debug, Default)]
pub(super) struct Review {
    /// When all clients in the queue are reviewed next.
    next: Duration,
    /// The caller has been asked to observe the workers, as the clients from this one on may need room.
    requested: Option<ClientKey>,
}

/// The first client of all.
const FIRST: ClientKey = ClientKey(0);

impl Supervisor {
    /// When the queue is reviewed next.
    pub(super) fn review_due(&self) -> Option<Duration> {
        (!self.queue.is_empty()).then_some(self.review.next)
    }

    pub(super) fn begin_due_review(&mut self, now: Duration) {
        if self.review_due().is_some_and(|due| due <= now) {
            self.request_review(FIRST);
        }
    }

    /// Asks for what a review needs to know, as the clients from this one on may need room.
    pub(super) fn request_review(&mut self, first: ClientKey) {
        let requested = self.review.requested.map_or(first, |before| before.min(first));
        self.review.requested = Some(requested);
        self.actions.push_back(Action::ObserveForReview);
    }

    /// The observation of all workers, in the order of their numbers. Asks workers to leave for clients
    /// that may have their places.
    pub(crate) fn handle_review(
        &mut self,
        slots: impl IntoIterator<Item = (u64, Observation)>,
        now: Duration,
    ) {
        let Some(first) = self.review.requested else { return };
        let mut assigned = Vec::new();
        for (worker, state, observed) in observed(&mut self.workers, slots) {
            if state.check(&observed).is_some() {
                self.actions.push_back(Action::Kill { worker });
            }
            assigned.extend(state.assigned(worker, &observed, now));
        }
        let (workers, actions) = (&mut self.workers, &mut self.actions);
        self.queue.evict(first, assigned, now, |worker| {
            if let Some(state) = workers.get_mut(worker) {
                state.leaving = Leaving::Retiring(now);
                actions.push_back(Action::Retire { worker, why: Retirement::Fairness });
            }
        });
    }

    /// The review, with observing the workers, took this time.
    pub(crate) fn handle_review_end(&mut self, took: Duration, now: Duration) {
        if self.review.requested.take() == Some(FIRST) {
            let pause = took.saturating_mul(REVIEW_PAUSE_FACTOR).max(REVIEW_INTERVAL);
            self.review.next = now.saturating_add(pause);
        }
    }
}
