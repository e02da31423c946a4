//! What a worker process and its server share: the slot of the worker, and signals.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::kernel::Event;
use super::monitor::Monitor;
use super::record::Trouble;

use crate::server::supervisor::Observation;
use crate::sync::lock;
use crate::time_limit::TimeLimit;
use crate::wire::native::{CallMeta, DEFAULT_GRACE};
use crate::worker::scoreboard::{Corruption, Phase, Retirement, SlotView, StopRequest};

/// The longest time after the hard deadline of a call that its worker may still run it: the wait for its
/// stack, and a tick of the clock.
const MAX_DELAY: Duration = Duration::from_millis(600 + 20);

/// When a server looks at all slots next, as its workers read it.
#[derive(Debug, Clone)]
pub(super) struct Wakeup {
    at: Arc<Mutex<Option<Duration>>>,
    server: UnboundedSender<Event>,
}

impl Wakeup {
    pub(super) fn new(server: UnboundedSender<Event>) -> Self {
        Self { at: Arc::default(), server }
    }

    pub(super) fn get(&self) -> Option<Duration> {
        *lock(&self.at)
    }

    /// Returns the time before.
    pub(super) fn set(&self, at: Option<Duration>) -> Option<Duration> {
        std::mem::replace(&mut *lock(&self.at), at)
    }

    /// Wakes the server if this is earlier.
    fn wake_for(&self, deadline: Duration) {
        if self.get().is_none_or(|at| deadline < at) {
            let _ = self.server.send(Event::Wake);
        }
    }
}

/// A slot of the scoreboard.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    contents: Arc<Mutex<Contents>>,
    wakeup: Wakeup,
    monitor: Monitor,
}

#[derive(Debug)]
struct Contents {
    start: Instant,
    view: SlotView,
    deadline: Option<Duration>,
    hard_deadline: Option<Duration>,
    /// How long the call has sent long items behind that deadline. Its server kills it only behind them.
    sent_late: Duration,
    long_since: Duration,
    skipped: u64,
    checkouts: u64,
    has_stack: bool,
    is_corrupt: bool,
    is_client_gone: bool,
    retirement: Option<Retirement>,
    stopped_until: Option<Instant>,
    /// How much the clock had jumped when the time of the last calls began.
    jumped: Duration,
    /// The worker's own: the number of the last call, whether one has failed, and when the first of them came.
    number: u64,
    is_failing: bool,
    sent: Duration,
}

impl Slot {
    /// `start` is when the clock showed 0.
    pub(super) fn new(start: Instant, wakeup: Wakeup, monitor: Monitor) -> Self {
        let view = SlotView { phase: Phase::Handshake, calls: 0, since: start.elapsed() };
        let contents = Contents {
            start,
            view,
            deadline: None,
            hard_deadline: None,
            sent_late: Duration::ZERO,
            long_since: Duration::ZERO,
            skipped: 0,
            checkouts: 0,
            has_stack: false,
            is_corrupt: false,
            is_client_gone: false,
            retirement: None,
            stopped_until: None,
            jumped: Duration::ZERO,
            number: 0,
            is_failing: false,
            sent: Duration::ZERO,
        };
        Self { contents: Arc::new(Mutex::new(contents)), wakeup, monitor }
    }

    /// Enters a phase, unless the server has stopped the worker.
    pub(super) fn enter(&self, phase: Phase) -> Result<(), StopRequest> {
        let mut slot = lock(&self.contents);
        match slot.view.phase {
            Phase::KillPending => return Err(StopRequest::Kill),
            Phase::Retired => return Err(StopRequest::Retire),
            _ => {}
        }
        slot.view.phase = phase;
        slot.long_since = slot.start.elapsed();
        slot.view.calls += u64::from(phase == Phase::Busy);
        if !matches!(
            phase,
            Phase::Answering | Phase::AnsweringLong | Phase::SendingItem | Phase::Held
        ) {
            slot.view.since = slot.start.elapsed();
        }
        Ok(())
    }

    /// Goes on with a call after the phase of a long item.
    pub(super) fn resume_call(&self) -> Result<(), StopRequest> {
        let mut slot = lock(&self.contents);
        match slot.view.phase {
            Phase::KillPending => return Err(StopRequest::Kill),
            Phase::Retired => return Err(StopRequest::Retire),
            _ => {}
        }
        slot.view.phase = Phase::Busy;
        if let Some(deadline) = slot.hard_deadline {
            let late = slot.start.elapsed().saturating_sub(slot.long_since.max(deadline));
            slot.sent_late += late;
        }
        Ok(())
    }

    /// Counts a call, and returns its number.
    pub(super) fn begin_number(&self, is_sequential: bool) -> u64 {
        let mut slot = lock(&self.contents);
        if is_sequential || slot.number == 0 {
            slot.is_failing = false;
            slot.sent = slot.start.elapsed();
            slot.jumped = self.monitor.jumped();
        }
        slot.number += 1;
        slot.number
    }

    /// Describes the call that begins next.
    pub(super) fn set_call(&self, meta: &CallMeta<'_>) {
        let mut slot = lock(&self.contents);
        let grace = meta.grace.map_or(DEFAULT_GRACE, TimeLimit::from_microseconds);
        let timeout = meta.timeout.map_or(TimeLimit::NEVER, TimeLimit::from_microseconds);
        let run_timeout = meta.run_timeout.map_or(TimeLimit::NEVER, TimeLimit::from_microseconds);
        let ends = [timeout.after_time(slot.sent), run_timeout.after_time(slot.start.elapsed())];
        slot.deadline = ends.into_iter().flatten().min();
        slot.hard_deadline = slot.deadline.and_then(|deadline| grace.after_time(deadline));
        slot.sent_late = Duration::ZERO;
    }

    /// Wakes the server if the call that has begun is due before it looks again.
    pub(super) fn wake_server(&self) {
        let deadline = lock(&self.contents).deadline;
        deadline.into_iter().for_each(|deadline| self.wakeup.wake_for(deadline));
    }

    /// The call that runs ends, or its process does.
    pub(super) fn check_deadline(&self) {
        let slot = lock(&self.contents);
        let Some(deadline) = slot.hard_deadline.filter(|_| slot.view.phase.is_running()) else {
            return;
        };
        let jumped = self.monitor.jumped().saturating_sub(slot.jumped);
        let late = slot.start.elapsed().saturating_sub(deadline);
        if late > MAX_DELAY + jumped + slot.sent_late {
            self.monitor.complain(format!("a call runs for {late:?} after its hard deadline"));
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        lock(&self.contents).is_failing
    }

    pub(super) fn set_failing(&self) {
        lock(&self.contents).is_failing = true;
    }

    pub(super) fn count_skipped(&self) {
        lock(&self.contents).skipped += 1;
    }

    pub(super) fn count_checkout(&self) {
        lock(&self.contents).checkouts += 1;
    }

    pub(super) fn is_client_gone(&self) -> bool {
        lock(&self.contents).is_client_gone
    }

    pub(super) fn should_retire(&self) -> bool {
        lock(&self.contents).retirement.is_some()
    }

    /// Stops the process for some time.
    pub(super) fn stop_for(&self, time: Duration) {
        lock(&self.contents).stopped_until = Some(Instant::now() + time);
    }

    /// Waits until the process may run.
    pub(super) async fn running(&self) {
        loop {
            let until = lock(&self.contents).stopped_until;
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => return,
            }
        }
    }

    pub(super) fn view(&self) -> SlotView {
        lock(&self.contents).view
    }

    pub(super) fn skipped(&self) -> u64 {
        lock(&self.contents).skipped
    }

    pub(super) fn mark_client_gone(&self) {
        lock(&self.contents).is_client_gone = true;
    }

    pub(super) fn request_retirement(&self, why: Retirement) {
        lock(&self.contents).retirement = Some(why);
    }

    /// The worker reports its stack, unless it stands still.
    pub(super) fn report_stack(&self) {
        let mut slot = lock(&self.contents);
        slot.has_stack = slot.stopped_until.is_none_or(|until| until <= Instant::now());
        drop(slot);
        let _ = self.wakeup.server.send(Event::Wake);
    }

    /// Writes a value that cannot be. From then on nobody can tell what the worker has begun.
    pub(super) fn corrupt(&self) {
        self.monitor.happened(Trouble::WorkerEnded);
        lock(&self.contents).is_corrupt = true;
    }

    /// What a server reads.
    pub(super) fn observe(&self) -> Observation {
        let slot = lock(&self.contents);
        Observation {
            view: slot.view,
            corruption: slot.is_corrupt.then_some(Corruption::Phase(99)),
            deadline: slot.deadline,
            hard_deadline: slot.hard_deadline,
            has_stack: slot.has_stack,
            checkouts: slot.checkouts,
            is_json: false,
        }
    }

    /// Stops the worker if it still does what `view` says.
    pub(super) fn try_stop(&self, view: SlotView, request: StopRequest) -> bool {
        self.check_deadline();
        let mut slot = lock(&self.contents);
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
