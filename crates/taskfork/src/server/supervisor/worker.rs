//! A worker as decisions see it.

use std::time::Duration;

use super::action::Action;
use super::fair_share::{AssignedWorker, ClientId};
use super::kill::{KillCause, KillReason, Suspicion};
use super::observation::Observation;
use crate::worker::scoreboard::{Phase, SlotView, StopRequest};

/// A worker. It is kept small, because each fork copies the pages of the server's memory that change.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) role: Role,
    pub(super) fate: Fate,
    pub(super) leaving: Leaving,
    /// The number of the last call whose worker has been sent SIGALRM at its deadline.
    pub(super) alarmed_call: u64,
    pub(super) forked_at: Duration,
}

/// What a worker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client(ClientId),
    /// It waits for a client.
    Spare,
}

/// Whether the server kills a worker, and why.
#[derive(Debug, Default)]
pub(super) enum Fate {
    #[default]
    Living,
    /// It has exceeded a time limit, and has been asked for its stack.
    Suspected(Box<Suspicion>),
    /// It is killed if its slot still shows what was judged.
    Stopping(Box<KillReason>),
    Killed(Box<KillReason>),
}

impl Fate {
    pub(super) fn is_killed(&self) -> bool {
        matches!(self, Self::Killed(_))
    }
}

/// Whether a worker is expected to leave by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    Staying,
    /// The server asked it at this time to leave after its checkout.
    Retiring(Duration),
    /// Its client closed the connection at this time. The server may have asked it to leave before.
    ClientGone(Duration),
}

impl Worker {
    pub(super) fn new(role: Role, now: Duration) -> Self {
        Self {
            role,
            fate: Fate::default(),
            leaving: Leaving::Staying,
            alarmed_call: 0,
            forked_at: now,
        }
    }

    /// Whether it can get a client, now or after its setup.
    pub(super) fn is_spare(&self) -> bool {
        self.role == Role::Spare && self.leaving == Leaving::Staying && !self.fate.is_killed()
    }

    /// Kills a worker with an impossible value in its slot.
    pub(super) fn check(&mut self, observed: &Observation) -> Option<KillCause> {
        let cause = KillCause::Corrupt(observed.corruption?);
        if self.fate.is_killed() {
            return None;
        }
        self.fate = Fate::Killed(Box::new(KillReason::new(cause)));
        Some(cause)
    }

    /// Orders a kill that holds only if the worker still does what was judged. So a kill that was decided
    /// for one call never hits the next.
    pub(super) fn stop(&mut self, number: u64, reason: KillReason, view: SlotView) -> Action {
        self.fate = Fate::Stopping(Box::new(KillReason { view: Some(view), ..reason }));
        Action::Stop { worker: number, view, request: StopRequest::Kill }
    }

    /// Its share for [`fair_share`](super::fair_share). `None` if it has no client, or is about to
    /// leave.
    pub(super) fn assigned(
        &self,
        number: u64,
        observed: &Observation,
        now: Duration,
    ) -> Option<AssignedWorker> {
        let Role::Client(client) = self.role else { return None };
        if self.leaving != Leaving::Staying || self.fate.is_killed() {
            return None;
        }
        let view = observed.view;
        Some(AssignedWorker {
            worker: number,
            client,
            age: now.saturating_sub(self.forked_at),
            idle: (view.phase == Phase::Idle).then(|| now.saturating_sub(view.since)),
            is_used: view.calls > 0,
            checkouts: observed.checkouts,
            is_json: observed.is_json,
        })
    }
}
