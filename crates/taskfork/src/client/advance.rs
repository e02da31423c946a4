//! The state machine of a checkout: it sends calls, takes answers, replaces a lost worker, and returns the worker.

use std::sync::Arc;
use std::task::Poll;

use super::disconnect::Disconnect;
use super::effects::{Effects, PoolCommand};
use super::entries::Outcome;
use super::io::connect::handshake_timeout;
use super::log;
use super::pool::{Loss, WorkerKey};
use super::send::Sender;
use super::session::Session;
use super::state::{Assignment, State};
use super::stats;
use super::step::{Step, step};
use crate::error::{Death, FatalError, Stage};

/// After this many deaths in `setup` a checkout fails instead of getting another worker.
const MAX_SETUP_DEATHS: u32 = 3;

/// After this many deaths with the first call unstarted, no further worker is connected for the checkout. The
/// workers themselves say whether a call has begun, so this bounds what a lie can cause.
const MAX_UNSTARTED_DEATHS: u32 = 10;

impl Session {
    /// Sends and receives as much as possible without waiting.
    pub(super) fn advance(self: &Arc<Self>, state: &mut State, effects: &mut Effects) {
        state.driver_notified = false;
        if let Assignment::Worker(lease) = &mut state.assignment {
            lease.connection.begin_read();
        }
        loop {
            let Assignment::Worker(lease) = &mut state.assignment else { return };
            let connection = &mut lease.connection;
            let only_first = !state.used && connection.may_be_answering();
            // Before anything is sent or received: an event that comes at once must find its target. The
            // task that waits for the first call is woken by its answer. The driver must handle all other
            // calls, and the first one if no task waits. It must also notice a death while no call runs.
            let more = state.calls.has_more_than_head();
            let task = state.calls.head().and_then(|(_, head)| head.waker.as_ref());
            connection.notifier.set_task(task, more || task.is_none());
            if state.sender.start_first_call(&mut state.calls)
                && let Some(waiting) = self.core.take_queue_report()
            {
                // If the connection has ended, the next read finds that.
                let _ = connection.put_queue_length(waiting);
            }
            if let Err(lost) = state.sender.send(&mut state.calls, connection, only_first) {
                // The server's notice of the worker's death may be unread.
                let disconnect = Disconnect::of(connection.read_last_message(lost));
                self.handle_disconnect(state, effects, disconnect);
                continue;
            }
            let is_another_due = state.calls.unanswered > 1;
            let Some((seq, entry)) = state.calls.head() else {
                if state.open {
                    let disconnect = match connection.poll_message() {
                        Poll::Ready(ended) => Disconnect::of(ended),
                        Poll::Pending if connection.sends_unsolicited() => {
                            Disconnect::unsolicited()
                        }
                        Poll::Pending => return,
                    };
                    self.handle_disconnect(state, effects, disconnect);
                }
                return;
            };
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
                Step::Answer(outcome) => {
                    let failed = matches!(outcome, Outcome::Error(_));
                    state.used = true;
                    connection.record_answer(is_another_due);
                    self.core.counters.count_answer(entry.method.as_deref(), &entry.sent, failed);
                    if failed {
                        state.call_failed = true;
                        state.fail_call(seq, outcome, effects);
                    } else {
                        state.finish(seq, outcome, effects);
                    }
                }
                Step::Telemetry { length, log, trace } => {
                    connection.count_telemetry(length);
                    if let (Some(into), Some(encoded)) = (&state.log, log) {
                        log::merge(into, &encoded);
                    }
                    if let (Some(replay), Some(encoded)) = (&entry.replay, trace) {
                        replay.push(connection.pid, encoded);
                        effects.replays.push(replay.clone());
                    }
                }
                Step::Disconnected(disconnect) => {
                    self.handle_disconnect(state, effects, disconnect)
                }
            }
        }
    }

    /// Handles the end of the worker's connection. If the worker has begun nothing for this checkout, another one
    /// replaces it; otherwise the checkout fails.
    fn handle_disconnect(
        self: &Arc<Self>,
        state: &mut State,
        effects: &mut Effects,
        disconnect: Disconnect,
    ) {
        let Assignment::Worker(lease) = &state.assignment else { return };
        let connection = &lease.connection;
        if !matches!(disconnect, Disconnect::NoHandshake(_)) {
            self.core.counters.count_death(stats::death_cause(&disconnect));
        }
        let unanswered = state.calls.unanswered;
        let first = state.calls.head().and_then(|(_, head)| head.number());
        let last_started = first.map_or(0, |first| {
            disconnect.last_started(
                first,
                unanswered,
                connection.calls_sent(),
                connection.can_lose_answers(),
            )
        });
        let begun = first.is_some_and(|first| first <= last_started);
        if disconnect.is_in_setup() {
            state.setup_deaths += 1;
        }
        let is_unstarted = first == Some(1) && !matches!(disconnect, Disconnect::NoHandshake(_));
        let hopeless = disconnect.is_killed_in_setup()
            || state.setup_deaths == MAX_SETUP_DEATHS
            || (is_unstarted && state.unstarted_deaths + 1 == MAX_UNSTARTED_DEATHS);
        if begun || state.used || hopeless || matches!(disconnect, Disconnect::Protocol(_)) {
            let loss = if disconnect.is_in_setup() { Loss::Unused } else { Loss::Used };
            let timed_out = disconnect.is_timeout();
            let server =
                disconnect.is_without_notice().then(|| self.core.config.recent_end()).flatten();
            let cause = match disconnect.into_error(connection.pid) {
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
            self.end_with(state, effects, cause, loss, last_started);
            return;
        }
        let Some(lease) = state.take_lease() else { return };
        effects.pool_commands.push(match disconnect {
            Disconnect::NoHandshake(reason) => PoolCommand::FailHandshake(lease, reason),
            _ => PoolCommand::Lose(lease, Loss::Unused),
        });
        state.calls.requeue_sent();
        state.sender = Sender::default();
        // The pool still counts the dead worker as held, so it cannot return the same one.
        let taken = self.core.pool().check_out_again(self.clone());
        match taken {
            Ok((_, lease)) => self.attach_worker(state, lease),
            Err(ticket) => {
                // Deaths are not counted while idle workers replace the dead ones.
                state.unstarted_deaths += u32::from(is_unstarted);
                self.enter_queue(state, effects, ticket);
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
        let begun = match &mut state.assignment {
            Assignment::Worker(lease) => match lease.connection.abort_handshake() {
                true => lease.connection.calls_sent(),
                false => 0,
            },
            _ => 0,
        };
        self.end_with(state, effects, cause, loss, begun);
    }

    /// Replaces a worker whose hello is late, unless the hello arrives at this moment.
    pub(super) fn end_handshake(self: &Arc<Self>, key: WorkerKey) {
        self.update(|state, effects| {
            self.advance(state, effects);
            let Assignment::Worker(lease) = &mut state.assignment else { return };
            if lease.key() != key || lease.connection.is_established() {
                return;
            }
            let disconnect = match lease.connection.abort_handshake() {
                true => Disconnect::Closed,
                false => {
                    Disconnect::NoHandshake(handshake_timeout(self.core.config.connect_timeout))
                }
            };
            self.handle_disconnect(state, effects, disconnect);
        });
    }

    /// Fails the checkout with all of its calls, also later ones. Those up to the number `begun` on their
    /// connection may have run.
    fn end_with(
        &self,
        state: &mut State,
        effects: &mut Effects,
        cause: FatalError,
        loss: Loss,
        begun: u64,
    ) {
        match std::mem::replace(&mut state.assignment, Assignment::Failed(cause.clone())) {
            Assignment::Worker(lease) => effects.pool_commands.push(PoolCommand::Lose(lease, loss)),
            Assignment::Waiting(ticket) => drop(self.core.pool().leave_queue(ticket)),
            Assignment::Failed(first) => {
                state.assignment = Assignment::Failed(first);
                return;
            }
            Assignment::Released => {}
        }
        state.finish_fatally(&cause, begun, effects);
    }

    /// Returns the worker, the timer and the log once the checkout is dropped and no call is awaited.
    pub(super) fn finish_if_done(&self, state: &mut State, effects: &mut Effects) {
        if state.open || state.calls.is_awaited() {
            return;
        }
        if let Some(timer) = state.timer.take() {
            self.core.clear_timer(timer);
        }
        if let Some((_, head)) = state.calls.head() {
            head.timing.end();
        }
        effects.logs.extend(state.log.take());
        // If a call still runs, its result is unwanted, and its worker is lost.
        let idle = state.calls.head().is_none();
        match std::mem::replace(&mut state.assignment, Assignment::Released) {
            Assignment::Worker(lease) => {
                let keep = !state.call_failed || self.core.config.reuse_after_error;
                effects.pool_commands.push(match (idle, keep) {
                    (true, true) => PoolCommand::Release(lease),
                    (true, false) => {
                        let mut lease = lease;
                        lease.connection.send_done();
                        PoolCommand::Lose(lease, Loss::Used)
                    }
                    (false, _) => {
                        self.core.counters.count_death(stats::CANCELLED);
                        PoolCommand::Lose(lease, Loss::Used)
                    }
                });
            }
            Assignment::Waiting(ticket) => drop(self.core.pool().leave_queue(ticket)),
            Assignment::Failed(_) | Assignment::Released => {}
        }
    }
}
