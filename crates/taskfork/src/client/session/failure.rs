//! How a session goes on after its connection has ended, and how it ends itself.

use std::time::Duration;

use super::calls::{Entry, Outcome};
use super::{Assignment, Ending, Event, Handle, Return, Session, Usage};
use crate::client::now::Now;
use crate::client::observe::stats;
use crate::client::pool::Loss;
use crate::client::proto::disconnect::Disconnect;
use crate::client::proto::handshake::handshake_timeout;
use crate::error::{Death, FatalError, Hung, Stage, TimeoutOption};
use crate::time_limit::TimeLimit;
use crate::wire::call_error::AnswerError;

/// After this many deaths in `setup` a checkout fails instead of getting another worker.
const MAX_SETUP_DEATHS: u32 = 3;

/// After this many deaths with the first call unstarted, no further worker is connected for the checkout. The
/// workers themselves say whether a call has begun, so this bounds what a lie can cause.
const MAX_UNSTARTED_DEATHS: u32 = 10;

impl Session {
    /// Whether the connection has ended without a notice because the time of the running call was over. Then its server
    /// has killed the worker, while that was sending an item.
    pub(super) fn is_late_end(&mut self, disconnect: &Disconnect, now: &Now) -> bool {
        if !disconnect.is_without_notice() || self.server_end.is_some() {
            return false;
        }
        self.calls.head().is_some_and(|(_, head)| {
            // If the worker had not read all that it was sent, only the stream shows that it has begun the call.
            let is_running = match disconnect {
                Disconnect::Unread => has_streamed(head),
                _ => head.number().is_some(),
            };
            let is_over = || head.ends_at().is_some_and(|end| end <= now.get());
            head.items.is_some() && is_running && is_over()
        })
    }

    /// Handles the end of the worker's connection. If the worker has begun nothing for this checkout, another one
    /// replaces it, and so it does for a call that may be made again; otherwise the checkout fails.
    pub(super) fn handle_disconnect(&mut self, disconnect: Disconnect) {
        if let Assignment::Ending(..) = self.assignment {
            return self.handle_handshake_aborted(false);
        }
        let Assignment::Worker(connection) = &self.assignment else { return };
        if !matches!(disconnect, Disconnect::NoHandshake(_)) {
            let cause = stats::death_cause(&disconnect);
            self.events.push(Some(Event::WorkerLost(cause)));
        }
        let head = self.calls.head().map(|(_, head)| head);
        let has_streamed = head.as_deref().is_some_and(has_streamed);
        let first = head.and_then(|head| head.number());
        let last_started = first.map_or(0, |first| {
            let last = disconnect.last_started(
                first,
                connection.calls_sent_unanswered(),
                connection.calls_sent(),
                connection.can_lose_answers(),
            );
            let last = match connection.has_begun_nothing() && disconnect.is_without_notice() {
                true => first.saturating_sub(1),
                false => last,
            };
            // A call that has sent an item, or asked for one, has begun, whatever the notice says.
            if has_streamed { last.max(first) } else { last }
        });
        let begun = first.is_some_and(|first| first <= last_started);
        if disconnect.is_in_setup() {
            self.setup_deaths += 1;
        }
        let is_unstarted = first == Some(1) && !matches!(disconnect, Disconnect::NoHandshake(_));
        let hopeless = disconnect.is_killed_in_setup()
            || self.setup_deaths == MAX_SETUP_DEATHS
            || (is_unstarted && self.unstarted_deaths + 1 == MAX_UNSTARTED_DEATHS);
        let is_used = self.usage != Usage::Unused;
        let is_repeated = begun && self.retries > 0 && disconnect.is_death();
        if begun && !is_repeated
            || is_used
            || hopeless
            || matches!(disconnect, Disconnect::Protocol(_))
        {
            let loss = if disconnect.is_in_setup() { Loss::Unused } else { Loss::Used };
            let timed_out = disconnect.is_timeout();
            let server = self.server_end.take().filter(|_| disconnect.is_without_notice());
            let cause = match disconnect.into_error(connection.pid) {
                FatalError::WorkerDied(death) if server.is_some() => {
                    FatalError::WorkerDied(Death { reason: server, ..death })
                }
                FatalError::WorkerDied(Death { mut hung, stderr, .. }) if timed_out => {
                    if let Some(hung) = &mut hung {
                        hung.stderr = stderr;
                    }
                    let (after, limit) = self.limit_of_killed(hung.as_deref());
                    FatalError::TimedOut { after, limit, stage: Stage::Running, hung }
                }
                cause => cause,
            };
            return self.end_with(cause, loss, last_started);
        }
        if is_repeated {
            self.retries -= 1;
            self.is_repeated = true;
        }
        let replacing = Assignment::Replacing { is_unstarted: is_unstarted && !begun };
        let Assignment::Worker(connection) = std::mem::replace(&mut self.assignment, replacing)
        else {
            return;
        };
        self.emit(Event::Returned(
            connection,
            match disconnect {
                Disconnect::NoHandshake(reason) => Return::FailHandshake(reason),
                _ if is_repeated => Return::Lose(Loss::Used),
                _ => Return::Lose(Loss::Unused),
            },
        ));
        self.calls.requeue_sent();
        self.emit(Event::NeedsWorker);
    }

    /// The worker can send no hello any more.
    pub(super) fn handle_handshake_aborted(&mut self, has_hello: bool) {
        match std::mem::replace(&mut self.assignment, Assignment::None) {
            Assignment::Ending(ending) => {
                let begun = if has_hello { ending.connection.calls_sent() } else { 0 };
                self.end_aborted(*ending, begun);
            }
            assignment => {
                self.assignment = assignment;
                let limit = self.options.connect_timeout;
                self.handle_disconnect(match has_hello {
                    true => Disconnect::Closed,
                    false => Disconnect::NoHandshake(handshake_timeout(limit)),
                });
            }
        }
    }

    /// It is known which calls a worker has begun that was given up during its `setup`.
    pub(super) fn handle_setup_aborted(&mut self, begun: u64) {
        let Assignment::Ending(ending) = std::mem::replace(&mut self.assignment, Assignment::None)
        else {
            return;
        };
        self.end_aborted(*ending, begun);
    }

    /// Ends a session that has waited until it was known which calls its worker has begun.
    fn end_aborted(&mut self, ending: Ending, begun: u64) {
        let Ending { connection, mut cause, loss } = ending;
        if let FatalError::TimedOut { stage, .. } = &mut cause
            && begun > 0
        {
            *stage = Stage::Running;
        }
        self.assignment = Assignment::Worker(connection);
        self.end_with(cause, loss, begun);
    }

    /// Ends the session because the time of its first call is over.
    pub(super) fn time_out(&mut self) {
        let is_run =
            |head: &Entry| head.run_deadline.is_some() && head.run_deadline == head.ends_at();
        let (after, limit) = self.limit(self.calls.first().is_some_and(is_run));
        match &self.assignment {
            Assignment::Worker(connection) if connection.is_established() => {
                let stage = if connection.is_started() { Stage::Running } else { Stage::Setup };
                self.emit(Event::WorkerLost(stats::TIMED_OUT));
                self.end(FatalError::TimedOut { after, limit, stage, hung: None }, Loss::Used);
            }
            // No call has begun to run, so this is its `timeout`.
            _ => self.emit(Event::WaitTimedOut { after }),
        }
    }

    /// Whether an answer says that the time of the first call was over. The worker may have a limit of its own.
    pub(super) fn is_timeout(&self, error: &AnswerError) -> bool {
        let has_limit =
            |head: &Entry| head.timeout != TimeLimit::NEVER || head.run_timeout != TimeLimit::NEVER;
        matches!(error, AnswerError::TimedOut { .. }) && self.calls.first().is_some_and(has_limit)
    }

    /// Ends the session because the worker's code was interrupted at the deadline of the first call. Its state may be that
    /// in the middle of a call.
    pub(super) fn time_out_in_worker(&mut self, error: AnswerError) {
        let AnswerError::TimedOut { stack, ran_for, .. } = error else { return };
        let hung = Box::new(Hung { ran_for, stack, no_stack: None, stderr: None });
        let is_run = |head: &Entry| match (head.run_timeout.get(), head.deadline) {
            (Some(most), Some(_)) => ran_for >= most,
            (most, _) => most.is_some(),
        };
        let (after, limit) = self.limit(self.calls.first().is_some_and(is_run));
        self.emit(Event::WorkerLost(stats::TIMED_OUT));
        let (stage, hung) = (Stage::Running, Some(hung));
        self.end(FatalError::TimedOut { after, limit, stage, hung }, Loss::Used);
    }

    /// The time limit for which the server has killed the worker of the first call. It kills when the grace is over
    /// too, and says how long the call had run.
    fn limit_of_killed(&self, hung: Option<&Hung>) -> (Duration, TimeoutOption) {
        let Some(head) = self.calls.first() else { return self.limit(false) };
        let is_run = match (head.run_timeout.get(), head.deadline, hung) {
            (None, ..) => false,
            (Some(_), None, _) => true,
            (Some(_), Some(_), Some(hung)) => head
                .run_timeout
                .plus(self.options.grace)
                .get()
                .is_some_and(|most| hung.ran_for >= most),
            (Some(_), Some(deadline), None) => head.run_deadline.is_some_and(|end| end < deadline),
        };
        self.limit(is_run)
    }

    /// A time limit of the first call, and the option that sets it.
    fn limit(&self, is_run: bool) -> (Duration, TimeoutOption) {
        let (limit, option) = match self.calls.first() {
            Some(head) if is_run => (head.run_timeout.get(), TimeoutOption::RunTimeout),
            head => (head.and_then(|head| head.timeout.get()), TimeoutOption::Timeout),
        };
        (limit.unwrap_or_default(), option)
    }

    /// Fails the checkout with all of its calls, also later ones. Those up to the number `begun` on their
    /// connection may have run.
    pub(super) fn end_with(&mut self, cause: FatalError, loss: Loss, begun: u64) {
        let failed = Assignment::Failed(Box::new(cause.clone()));
        match std::mem::replace(&mut self.assignment, failed) {
            Assignment::Worker(connection) => {
                self.emit(Event::Returned(connection, Return::Lose(loss)));
            }
            Assignment::Waiting => self.emit(Event::LeavesQueue),
            over @ (Assignment::Failed(_) | Assignment::Ending(..)) => {
                self.assignment = over;
                return;
            }
            Assignment::None | Assignment::Replacing { .. } => {}
        }
        while let Some((_, head)) = self.calls.head() {
            let may_have_run =
                self.is_repeated || head.number().is_some_and(|number| number <= begun);
            self.finish_head(Outcome::Fatal { cause: cause.clone(), may_have_run });
        }
    }

    /// Returns the worker, the timer and the log once the checkout is dropped and no call is awaited.
    #[inline]
    pub(crate) fn finish_if_done(&mut self) {
        if self.handle == Handle::Held || self.calls.is_awaited() {
            return;
        }
        self.check_at = None;
        let is_running = match self.calls.head() {
            Some((_, head)) => {
                head.timing.end();
                true
            }
            None => false,
        };
        if let Some(log) = self.log.take() {
            self.emit(Event::DropLog(log));
        }
        match std::mem::replace(&mut self.assignment, Assignment::None) {
            // The result of the running call is unwanted, and the worker is lost.
            Assignment::Worker(connection) if is_running => {
                self.emit(Event::WorkerLost(stats::CANCELLED));
                self.emit(Event::Returned(connection, Return::Lose(Loss::Used)));
            }
            Assignment::Worker(mut connection) => {
                let keeps = self.usage != Usage::Spoiled || self.options.reuse_after_error;
                // AnyEvent::Task sends no end of the checkout after an error.
                if !keeps && connection.is_native() {
                    // The message is short, so it can always be encoded.
                    let _ = connection.put_done();
                }
                let how = if keeps { Return::Release } else { Return::Close };
                self.emit(Event::Returned(connection, how));
            }
            Assignment::Waiting => self.emit(Event::LeavesQueue),
            Assignment::Ending(ending) => {
                let Ending { connection, loss, .. } = *ending;
                self.emit(Event::Returned(connection, Return::Lose(loss)));
            }
            Assignment::None | Assignment::Replacing { .. } | Assignment::Failed(_) => {}
        }
    }
}

/// Whether a call has sent an item, or asked for one, so that it has begun.
fn has_streamed(call: &Entry) -> bool {
    call.items.as_ref().is_some_and(|items| items.has_begun())
        || call.input.as_ref().is_some_and(|input| input.has_begun())
}
