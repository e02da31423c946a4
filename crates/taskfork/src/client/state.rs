//! What a checkout is and has: its place or its worker, and its calls. Nothing here takes a lock.

use std::time::{Duration, Instant};

use log_defer::Log;

use super::connection::Connection;
use super::core::Effects;
use super::deadlines::Alarm;
use super::entries::{Entries, MethodName, Outcome, Seq};
use super::pool::Lease;
use super::queue::Ticket;
use crate::error::FatalError;

#[derive(Debug)]
pub(super) struct State {
    pub(super) holding: Holding,
    pub(super) calls: Entries,
    /// The user still has the checkout.
    pub(super) open: bool,
    /// The worker has begun a call of this checkout, so that no other can take its place.
    pub(super) used: bool,
    /// How many workers have died in `setup` before they could serve this checkout.
    pub(super) setup_deaths: u32,
    /// A call failed in the worker.
    pub(super) tainted: bool,
    /// A failed call whose failure nobody has seen yet.
    pub(super) unseen: Option<(Seq, String)>,
    pub(super) timeout: Option<Duration>,
    /// Since when it waits for its first worker.
    pub(super) asked: Option<Instant>,
    pub(super) alarm: Option<Alarm>,
    pub(super) log: Option<Log>,
}

#[derive(Debug)]
pub(super) enum Holding {
    Waiting(Ticket),
    Worker(Lease<Connection>),
    Failed(FatalError),
    Released,
}

impl State {
    /// The connection on which this call runs.
    pub(super) fn connection_of(&mut self, seq: Seq) -> Option<&mut Connection> {
        let Holding::Worker(lease) = &mut self.holding else { return None };
        let (head, entry) = self.calls.head()?;
        (head == seq && entry.is_sent()).then_some(&mut lease.connection)
    }

    pub(super) fn take_lease(&mut self) -> Option<Lease<Connection>> {
        match std::mem::replace(&mut self.holding, Holding::Released) {
            Holding::Worker(lease) => Some(lease),
            other => {
                self.holding = other;
                None
            }
        }
    }

    pub(super) fn finish(&mut self, seq: Seq, outcome: Outcome, effects: &mut Effects) {
        let (waker, left) = self.calls.finish(seq, outcome);
        effects.wakers.extend(waker);
        effects.replays.extend(left);
    }

    /// Ends all calls that are not finished.
    pub(super) fn finish_all(&mut self, outcome: &Outcome, effects: &mut Effects) {
        while let Some((seq, _)) = self.calls.head() {
            self.finish(seq, outcome.clone(), effects);
        }
    }

    /// Ends a call with a failure, and drops all behind it.
    pub(super) fn fail_call(&mut self, seq: Seq, outcome: Outcome, effects: &mut Effects) {
        let behind = self.calls.head().map(|(_, entry)| entry.label()).unwrap_or_default();
        if !self.calls.is_abandoned(seq) {
            self.unseen = Some((seq, behind.clone()));
        }
        self.finish(seq, outcome, effects);
        self.finish_all(&Outcome::Dropped { behind }, effects);
    }

    pub(super) fn take(
        &mut self,
        seq: Seq,
        effects: &mut Effects,
    ) -> Option<(MethodName, Outcome)> {
        let (method, outcome, left) = self.calls.take(seq)?;
        // What the worker recorded is replayed before its caller goes on.
        effects.replays.extend(left);
        self.see(seq);
        Some((method, outcome))
    }

    pub(super) fn see(&mut self, seq: Seq) {
        self.unseen.take_if(|(failed, _)| *failed == seq);
    }
}
