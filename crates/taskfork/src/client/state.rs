//! The state of a checkout: its place in the queue or its worker, and its calls. Nothing here takes a lock.

use std::time::Instant;

use log_defer::Log;

use super::connection::Connection;
use super::deadlines::TimerKey;
use super::effects::Effects;
use super::entries::{Entries, Entry, MethodName, Operation, Outcome, Progress, Seq};
use super::pool::Lease;
use super::queue::Ticket;
use super::send::Sender;
use crate::error::FatalError;
use crate::time_limit::TimeLimit;

#[derive(Debug)]
pub(super) struct State {
    pub(super) assignment: Assignment,
    pub(super) calls: Entries,
    pub(super) sender: Sender,
    /// The driver has an event that says that calls must be sent.
    pub(super) driver_notified: bool,
    /// The user still has the checkout.
    pub(super) open: bool,
    /// The worker has begun a call of this checkout, so that no other can take its place.
    pub(super) used: bool,
    /// How many workers have died in `setup` before they could serve this checkout.
    pub(super) setup_deaths: u32,
    /// How many workers have died with the first call unstarted, with no idle worker to take their
    /// place.
    pub(super) unstarted_deaths: u32,
    /// A call failed in the worker.
    pub(super) call_failed: bool,
    /// A failed call whose outcome its caller has not taken, and its description.
    pub(super) unobserved_failure: Option<(Seq, String)>,
    pub(super) timeout: TimeLimit,
    /// Since when the checkout waits for its first worker.
    pub(super) waiting_since: Option<Instant>,
    pub(super) timer: Option<TimerKey>,
    pub(super) log: Option<Log>,
}

#[derive(Debug)]
pub(super) enum Assignment {
    Waiting(Ticket),
    Worker(Lease<Box<Connection>>),
    Failed(FatalError),
    Released,
}

impl State {
    /// The connection on which this call runs.
    pub(super) fn connection_of(&mut self, seq: Seq) -> Option<&mut Connection> {
        let Assignment::Worker(lease) = &mut self.assignment else { return None };
        let (head, entry) = self.calls.head()?;
        let sent = lease.connection.calls_sent();
        (head == seq && entry.number().is_some_and(|number| number <= sent))
            .then_some(&mut lease.connection)
    }

    /// Cancels a call that was sent behind others.
    pub(super) fn cancel_call(&mut self, seq: Seq) {
        if let (Assignment::Worker(lease), Some(number)) =
            (&mut self.assignment, self.calls.number_behind_head(seq))
        {
            // If the connection has ended, the next read finds that.
            let _ = lease.connection.cancel_call(number);
        }
    }

    /// Whether the worker has not sent its hello yet.
    pub(super) fn is_handshake_pending(&self) -> bool {
        matches!(&self.assignment, Assignment::Worker(lease) if !lease.connection.is_established())
    }

    /// Whether the worker sends too many messages.
    pub(super) fn is_flooding(&self) -> bool {
        matches!(&self.assignment, Assignment::Worker(lease) if lease.connection.is_flooding())
    }

    pub(super) fn take_lease(&mut self) -> Option<Lease<Box<Connection>>> {
        match std::mem::replace(&mut self.assignment, Assignment::Released) {
            Assignment::Worker(lease) => Some(lease),
            other => {
                self.assignment = other;
                None
            }
        }
    }

    pub(super) fn finish(&mut self, seq: Seq, outcome: Outcome, effects: &mut Effects) {
        let (waker, replay) = self.calls.finish(seq, outcome);
        effects.wakers.extend(waker);
        effects.replays.extend(replay);
    }

    /// Ends all unfinished calls. Those up to the number `begun` on their connection may have run.
    pub(super) fn finish_fatally(&mut self, cause: &FatalError, begun: u64, effects: &mut Effects) {
        while let Some((seq, head)) = self.calls.head() {
            let may_have_run = head.number().is_some_and(|number| number <= begun);
            let outcome = Outcome::Fatal { cause: cause.clone(), may_have_run };
            self.finish(seq, outcome, effects);
        }
    }

    /// Ends a call with a failure, and drops all calls behind it.
    pub(super) fn fail_call(&mut self, seq: Seq, outcome: Outcome, effects: &mut Effects) {
        let behind = self.calls.head().map(|(_, entry)| entry.label()).unwrap_or_default();
        if !self.calls.is_abandoned(seq) {
            self.unobserved_failure = Some((seq, behind.clone()));
        }
        self.finish(seq, outcome, effects);
        if let Assignment::Worker(lease) = &mut self.assignment {
            lease.connection.expect_skipped(self.calls.unanswered);
            if let Some(Entry {
                operation: Operation::Call(frame, fitted),
                progress: Progress::Sending(sent),
                ..
            }) = self.calls.next()
                && *sent > 0
            {
                lease.connection.put_rest(&fitted.as_deref().unwrap_or(frame).copy_from(*sent));
                lease.connection.expect_skipped(1);
            }
        }
        while let Some((seq, _)) = self.calls.head() {
            self.finish(seq, Outcome::Dropped { behind: behind.clone() }, effects);
        }
    }

    pub(super) fn take(
        &mut self,
        seq: Seq,
        effects: &mut Effects,
    ) -> Option<(MethodName, Outcome)> {
        let (method, outcome, replay) = self.calls.take(seq)?;
        // The worker's records are replayed before the caller continues.
        effects.replays.extend(replay);
        self.mark_observed(seq);
        Some((method, outcome))
    }

    pub(super) fn mark_observed(&mut self, seq: Seq) {
        self.unobserved_failure.take_if(|(failed, _)| *failed == seq);
    }
}
