//! How a checkout moves on: its calls sent, their answers taken, its worker lost or given back.

use std::sync::Arc;
use std::task::Poll;

use super::connect::late;
use super::core::{Change, Effects};
use super::entries::Outcome;
use super::lane::Lane;
use super::log;
use super::pool::{Loss, WorkerKey};
use super::send::Sender;
use super::state::{Holding, State};
use super::stats;
use super::step::{Ending, Step, step};
use crate::error::{Death, FatalError, Stage};
use crate::wire::native;

/// After so many deaths in `setup` a checkout is told, instead of being given yet another worker.
const MOST_SETUP_DEATHS: u32 = 3;

/// Whether a call has begun is known from the worker itself. When this many workers have died with
/// the checkout's first call and denied having begun it, no further one is connected for it.
const MOST_DENIALS: u32 = 10;

impl Lane {
    /// Sends and receives as much as can be without waiting.
    pub(super) fn advance(self: &Arc<Self>, state: &mut State, effects: &mut Effects) {
        state.told = false;
        if let Holding::Worker(lease) = &mut state.holding {
            lease.connection.begin_turn();
        }
        loop {
            let Holding::Worker(lease) = &mut state.holding else { return };
            let connection = &mut lease.connection;
            let alone = !state.used && connection.may_be_answering();
            if state.sender.begins(&mut state.calls)
                && let Some(waiting) = self.core.waiting()
            {
                // If the connection is over, the next look at it tells.
                let _ = connection.put_waiting(waiting);
            }
            if let Err(lost) = state.sender.send(&mut state.calls, connection, alone) {
                // What the server said about the worker may be waiting to be read.
                let ending = Ending::of(connection.last_words(lost));
                self.lost(state, effects, ending);
                continue;
            }
            let more = state.calls.has_more_than_head();
            let Some((seq, entry)) = state.calls.head() else {
                if state.open {
                    // Nobody waits: the driver is to hear of a death.
                    connection.signal.wake_next(None, true);
                    let ending = match connection.poll_message() {
                        Poll::Ready(ended) => Ending::of(ended),
                        Poll::Pending if connection.talks() => Ending::talks(),
                        Poll::Pending => return,
                    };
                    self.lost(state, effects, ending);
                }
                return;
            };
            // Whoever waits for this call comes when it is answered; the driver must see to the
            // rest, and to all of it if nobody waits.
            connection.signal.wake_next(entry.waker.as_ref(), more || entry.waker.is_none());
            match step(connection, entry) {
                Step::Wait => return,
                Step::Next => {}
                Step::Finish(outcome) => {
                    if matches!(outcome, Outcome::Unsendable(_)) {
                        state.fail_call(seq, outcome, effects);
                    } else {
                        state.finish(seq, outcome, effects);
                    }
                }
                Step::Answer { body, beside, failed } => {
                    state.used = true;
                    connection.answered();
                    self.core.tally.answered(entry.method.as_deref(), &entry.sent, failed);
                    let outcome = Outcome::Answer(body, beside);
                    if failed {
                        state.tainted = true;
                        state.fail_call(seq, outcome, effects);
                    } else {
                        state.finish(seq, outcome, effects);
                    }
                }
                Step::Notes(body) => {
                    connection.noted(body.len());
                    let notes = native::notes(&body);
                    if let (Some(log), Some(encoded)) = (&state.log, notes.log) {
                        log::merge(log, encoded);
                    }
                    if let (Some(replay), Some(encoded)) = (&entry.replay, notes.trace) {
                        replay.push(connection.pid, body.slice_ref(encoded));
                        effects.replays.push(replay.clone());
                    }
                }
                Step::Lost(ending) => self.lost(state, effects, ending),
            }
        }
    }

    /// The worker is gone: another takes its place if it has begun nothing, or the checkout is over.
    fn lost(self: &Arc<Self>, state: &mut State, effects: &mut Effects, ending: Ending) {
        let Holding::Worker(lease) = &state.holding else { return };
        let connection = &lease.connection;
        if !matches!(ending, Ending::Ungreeted(_)) {
            self.core.tally.died(stats::cause(&ending));
        }
        let unanswered = state.calls.unanswered;
        let first = state.calls.head().and_then(|(_, head)| head.number());
        let last_begun = first.map_or(0, |first| ending.begun(connection, first, unanswered));
        let begun = first.is_some_and(|first| first <= last_begun);
        if ending.is_in_setup() {
            state.setup_deaths += 1;
        }
        let denied = first == Some(1) && !matches!(ending, Ending::Ungreeted(_));
        let hopeless = ending.is_judged_in_setup()
            || state.setup_deaths == MOST_SETUP_DEATHS
            || (denied && state.denials + 1 == MOST_DENIALS);
        if begun || state.used || hopeless || matches!(ending, Ending::Broken(_)) {
            let loss = if ending.is_in_setup() { Loss::Unused } else { Loss::Used };
            let timed_out = ending.is_time_out();
            let server = ending.is_silent().then(|| self.core.config.recent_end()).flatten();
            let cause = match ending.cause(connection.pid) {
                FatalError::WorkerDied(death) if server.is_some() => {
                    FatalError::WorkerDied(Death { reason: server, ..death })
                }
                FatalError::WorkerDied(Death { mut hung, stderr, .. }) if timed_out => {
                    if let Some(hung) = &mut hung {
                        hung.stderr = stderr;
                    }
                    let after = state.timeout.get().unwrap_or_default();
                    FatalError::TimedOut { after, stage: Stage::Running, hung }
                }
                cause => cause,
            };
            self.end_with(state, effects, cause, loss, last_begun);
            return;
        }
        let Some(lease) = state.take_lease() else { return };
        effects.workers.push(match ending {
            Ending::Ungreeted(reason) => Change::Fail(lease, reason),
            _ => Change::Lose(lease, Loss::Unused),
        });
        state.calls.send_again();
        state.sender = Sender::default();
        // The dead worker still counts in the pool, so that this cannot be it.
        let taken = self.core.pool().check_out_again(self.clone());
        match taken {
            Ok((_, lease)) => self.hold(state, lease),
            Err(ticket) => {
                // Idle workers that died together do not count.
                state.denials += u32::from(denied);
                self.wait(state, effects, ticket);
            }
        }
    }

    pub(super) fn end(
        &self,
        state: &mut State,
        effects: &mut Effects,
        cause: FatalError,
        loss: Loss,
    ) {
        let begun = match &mut state.holding {
            Holding::Worker(lease) => match lease.connection.is_greeted_after_all() {
                true => lease.connection.calls(),
                false => 0,
            },
            _ => 0,
        };
        self.end_with(state, effects, cause, loss, begun);
    }

    /// The worker has not greeted in time: another takes its place, unless it has begun in this instant.
    pub(crate) fn give_up_greeting(self: &Arc<Self>, key: WorkerKey) {
        self.change(|state, effects| {
            self.advance(state, effects);
            let Holding::Worker(lease) = &mut state.holding else { return };
            if lease.key() != key || lease.connection.is_greeted() {
                return;
            }
            let ending = match lease.connection.is_greeted_after_all() {
                true => Ending::Closed,
                false => Ending::Ungreeted(late(self.core.config.connect_timeout)),
            };
            self.lost(state, effects, ending);
        });
    }

    /// Ends the checkout: the call that runs, all behind it, and all that will be made. Those up to
    /// `begun` on their connection may have run.
    fn end_with(
        &self,
        state: &mut State,
        effects: &mut Effects,
        cause: FatalError,
        loss: Loss,
        begun: u64,
    ) {
        match std::mem::replace(&mut state.holding, Holding::Failed(cause.clone())) {
            Holding::Worker(lease) => effects.workers.push(Change::Lose(lease, loss)),
            Holding::Waiting(ticket) => drop(self.core.pool().give_up(ticket)),
            Holding::Failed(first) => {
                state.holding = Holding::Failed(first);
                return;
            }
            Holding::Released => {}
        }
        state.finish_fatally(&cause, begun, effects);
    }

    /// Gives everything back once nobody wants anything of the lane any more.
    pub(super) fn finish_if_done(&self, state: &mut State, effects: &mut Effects) {
        if state.open || state.calls.is_awaited() {
            return;
        }
        if let Some(alarm) = state.alarm.take() {
            self.core.clear_alarm(alarm);
        }
        if let Some((_, head)) = state.calls.head() {
            head.timing.end();
        }
        effects.logs.extend(state.log.take());
        // A call that runs for nobody is ended with its worker.
        let idle = state.calls.head().is_none();
        match std::mem::replace(&mut state.holding, Holding::Released) {
            Holding::Worker(lease) => {
                let keep = !state.tainted || self.core.config.reuse_after_error;
                effects.workers.push(match (idle, keep) {
                    (true, true) => Change::Release(lease),
                    (true, false) => {
                        let mut lease = lease;
                        lease.connection.part();
                        Change::Lose(lease, Loss::Used)
                    }
                    (false, _) => {
                        self.core.tally.died(stats::CANCELLED);
                        Change::Lose(lease, Loss::Used)
                    }
                });
            }
            Holding::Waiting(ticket) => drop(self.core.pool().give_up(ticket)),
            Holding::Failed(_) | Holding::Released => {}
        }
    }
}
