//! What a checkout is and has: its place or its worker, and its calls. Nothing here takes a lock.

use std::time::Instant;

use log_defer::Log;

use super::connection::Connection;
use super::core::Effects;
use super::deadlines::Alarm;
use super::entries::{Entries, Entry, MethodName, Outcome, Progress, Seq, Work};
use super::pool::Lease;
use super::queue::Ticket;
use super::send::Sender;
use crate::error::FatalError;
use crate::time_limit::TimeLimit;

#[derive(Debug)]
pub(super) struct State {
    pub(super) holding: Holding,
    pub(super) calls: Entries,
    pub(super) sender: Sender,
    /// The driver has been told that there are calls to be sent.
    pub(super) told: bool,
    /// The user still has the checkout.
    pub(super) open: bool,
    /// The worker has begun a call of this checkout, so that no other can take its place.
    pub(super) used: bool,
    /// How many workers have died in `setup` before they could serve this checkout.
    pub(super) setup_deaths: u32,
    /// How many workers have died with the first call, denied having begun it, and left none to
    /// take their place.
    pub(super) denials: u32,
    /// A call failed in the worker.
    pub(super) tainted: bool,
    /// A failed call whose failure nobody has seen yet.
    pub(super) unseen: Option<(Seq, String)>,
    pub(super) timeout: TimeLimit,
    /// Since when it waits for its first worker.
    pub(super) asked: Option<Instant>,
    pub(super) alarm: Option<Alarm>,
    pub(super) log: Option<Log>,
}

#[derive(Debug)]
pub(super) enum Holding {
    Waiting(Ticket),
    Worker(Lease<Box<Connection>>),
    Failed(FatalError),
    Released,
}

impl State {
    /// The connection on which this call runs.
    pub(super) fn connection_of(&mut self, seq: Seq) -> Option<&mut Connection> {
        let Holding::Worker(lease) = &mut self.holding else { return None };
        let (head, entry) = self.calls.head()?;
        let sent = lease.connection.calls();
        (head == seq && entry.number().is_some_and(|number| number <= sent))
            .then_some(&mut lease.connection)
    }

    /// Takes a call back that is on its way behind others.
    pub(super) fn forget(&mut self, seq: Seq) {
        if let (Holding::Worker(lease), Some(number)) =
            (&mut self.holding, self.calls.number_behind_head(seq))
        {
            // If the connection is over, the next look at it tells.
            let _ = lease.connection.forget(number);
        }
    }

    /// It has a worker that has not greeted yet.
    pub(super) fn is_ungreeted(&self) -> bool {
        matches!(&self.holding, Holding::Worker(lease) if !lease.connection.is_greeted())
    }

    /// Its worker floods it with messages.
    pub(super) fn is_flooded(&self) -> bool {
        matches!(&self.holding, Holding::Worker(lease) if lease.connection.is_flooded())
    }

    pub(super) fn take_lease(&mut self) -> Option<Lease<Box<Connection>>> {
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

    /// Ends all calls that are not finished, of which those up to this number on their connection
    /// may have run.
    pub(super) fn finish_fatally(&mut self, cause: &FatalError, begun: u64, effects: &mut Effects) {
        while let Some((seq, head)) = self.calls.head() {
            let may_have_run = head.number().is_some_and(|number| number <= begun);
            let outcome = Outcome::Fatal { cause: cause.clone(), may_have_run };
            self.finish(seq, outcome, effects);
        }
    }

    fn finish_all(&mut self, outcome: &Outcome, effects: &mut Effects) {
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
        if let Holding::Worker(lease) = &mut self.holding {
            lease.connection.skip(self.calls.unanswered);
            if let Some(Entry {
                work: Work::Call(frame, made),
                progress: Progress::Sending(sent),
                ..
            }) = self.calls.next()
                && *sent > 0
            {
                lease.connection.put_rest(&made.as_deref().unwrap_or(frame).rest(*sent));
                lease.connection.skip(1);
            }
        }
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
