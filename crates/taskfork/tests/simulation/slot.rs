//! What a worker process and its server share: the slot of the worker, and signals.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;
use crate::time_limit::TimeLimit;
use crate::wire::native::{CallMeta, DEFAULT_GRACE};
use crate::worker::scoreboard::{Phase, Retirement, SlotView, StopRequest};

/// A slot of the scoreboard.
#[derive(Debug, Clone)]
pub(super) struct Slot(Arc<Mutex<Contents>>);

#[derive(Debug)]
struct Contents {
    start: Instant,
    view: SlotView,
    deadline: Option<Duration>,
    hard_deadline: Option<Duration>,
    skipped: u64,
    checkouts: u64,
    is_client_gone: bool,
    retirement: Option<Retirement>,
    stopped_until: Option<Instant>,
    /// The worker's own: the number of the last call, whether one has failed, and when the first of them came.
    number: u64,
    is_failing: bool,
    sent: Duration,
}

impl Slot {
    /// `start` is when the clock showed 0.
    pub(super) fn new(start: Instant, phase: Phase) -> Self {
        let view = SlotView { phase, calls: 0, since: start.elapsed() };
        Self(Arc::new(Mutex::new(Contents {
            start,
            view,
            deadline: None,
            hard_deadline: None,
            skipped: 0,
            checkouts: 0,
            is_client_gone: false,
            retirement: None,
            stopped_until: None,
            number: 0,
            is_failing: false,
            sent: Duration::ZERO,
        })))
    }

    /// Enters a phase, unless the server has stopped the worker.
    pub(super) fn enter(&self, phase: Phase) -> Result<(), StopRequest> {
        let mut slot = lock(&self.0);
        match slot.view.phase {
            Phase::KillPending => return Err(StopRequest::Kill),
            Phase::Retired => return Err(StopRequest::Retire),
            _ => {}
        }
        slot.view.phase = phase;
        slot.view.calls += u64::from(phase == Phase::Busy);
        if !matches!(phase, Phase::Answering | Phase::AnsweringLong | Phase::Held) {
            slot.view.since = slot.start.elapsed();
        }
        Ok(())
    }

    /// Counts a call, and returns its number.
    pub(super) fn begin_number(&self, is_sequential: bool) -> u64 {
        let mut slot = lock(&self.0);
        if is_sequential || slot.number == 0 {
            slot.is_failing = false;
            slot.sent = slot.start.elapsed();
        }
        slot.number += 1;
        slot.number
    }

    /// Describes the call that begins next.
    pub(super) fn set_call(&self, meta: &CallMeta<'_>) {
        let mut slot = lock(&self.0);
        let grace = meta.grace.map_or(DEFAULT_GRACE, TimeLimit::from_microseconds);
        let timeout = meta.timeout.map_or(TimeLimit::NEVER, TimeLimit::from_microseconds);
        slot.deadline = timeout.after_time(slot.sent);
        slot.hard_deadline = slot.deadline.and_then(|deadline| grace.after_time(deadline));
    }

    pub(super) fn is_failing(&self) -> bool {
        lock(&self.0).is_failing
    }

    pub(super) fn set_failing(&self) {
        lock(&self.0).is_failing = true;
    }

    pub(super) fn count_skipped(&self) {
        lock(&self.0).skipped += 1;
    }

    pub(super) fn count_checkout(&self) {
        lock(&self.0).checkouts += 1;
    }

    pub(super) fn is_client_gone(&self) -> bool {
        lock(&self.0).is_client_gone
    }

    pub(super) fn should_retire(&self) -> bool {
        lock(&self.0).retirement.is_some()
    }

    /// Stops the process for some time.
    pub(super) fn stop_for(&self, time: Duration) {
        lock(&self.0).stopped_until = Some(Instant::now() + time);
    }

    /// Waits until the process may run.
    pub(super) async fn running(&self) {
        loop {
            let until = lock(&self.0).stopped_until;
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => return,
            }
        }
    }

    pub(super) fn view(&self) -> SlotView {
        lock(&self.0).view
    }

    pub(super) fn skipped(&self) -> u64 {
        lock(&self.0).skipped
    }

    pub(super) fn mark_client_gone(&self) {
        lock(&self.0).is_client_gone = true;
    }

    /// Stops the worker if it still does what `view` says.
    pub(super) fn try_stop(&self, view: SlotView, request: StopRequest) -> bool {
        let mut slot = lock(&self.0);
        let is_unchanged = (slot.view.phase, slot.view.calls) == (view.phase, view.calls);
        if is_unchanged {
            slot.view.phase = match request {
                StopRequest::Kill => Phase::KillPending,
                StopRequest::Retire => Phase::Retired,
            };
        }
        is_unchanged
    }
}
