//! How a session goes on after its connection has ended, and how it ends itself.

use super::calls::Outcome;
use super::{Assignment, Ending, Event, Handle, Return, Session, Usage};
use crate::client::observe::stats;
use crate::client::pool::Loss;
use crate::client::proto::disconnect::Disconnect;
use crate::client::proto::handshake::handshake_timeout;
use crate::error::{Death, FatalError, Stage};

/// After this many deaths in `setup` a checkout fails instead of getting another worker.
const MAX_SETUP_DEATHS: u32 = 3;

/// After this many deaths with the first call unstarted, no further worker is connected for the checkout. The
/// workers themselves say whether a call has begun, so this bounds what a lie can cause.
const MAX_UNSTARTED_DEATHS: u32 = 10;

impl Session {
    /// Handles the end of the worker's connection. If the worker has begun nothing for this checkout, another one
    /// replaces it; otherwise the checkout fails.
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
        let has_items = head.as_ref().and_then(|head| head.items.as_ref());
        let has_items = has_items.is_some_and(|items| items.has_begun());
        let first = head.and_then(|head| head.number());
        let last_started = first.map_or(0, |first| {
            let last = disconnect.last_started(
                first,
                connection.calls_sent_unanswered(),
                connection.calls_sent(),
                connection.can_lose_answers(),
            );
            // A call that has sent an item has begun, whatever the notice says.
            if has_items { last.max(first) } else { last }
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
        if begun || is_used || hopeless || matches!(disconnect, Disconnect::Protocol(_)) {
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
                    let after = self.calls.head_timeout();
                    FatalError::TimedOut { after, stage: Stage::Running, hung }
                }
                cause => cause,
            };
            return self.end_with(cause, loss, last_started);
        }
        let replacing = Assignment::Replacing { is_unstarted };
        let Assignment::Worker(connection) = std::mem::replace(&mut self.assignment, replacing)
        else {
            return;
        };
        self.emit(Event::Returned(
            connection,
            match disconnect {
                Disconnect::NoHandshake(reason) => Return::FailHandshake(reason),
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
                let Ending { connection, cause, loss } = *ending;
                let begun = if has_hello { connection.calls_sent() } else { 0 };
                self.assignment = Assignment::Worker(connection);
                self.end_with(cause, loss, begun);
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

    /// Ends the session because the time of its first call is over.
    pub(super) fn time_out(&mut self) {
        let after = self.calls.head_timeout();
        match &self.assignment {
            Assignment::Worker(connection) if connection.is_established() => {
                self.emit(Event::WorkerLost(stats::TIMED_OUT));
                let stage = Stage::Running;
                self.end(FatalError::TimedOut { after, stage, hung: None }, Loss::Used);
            }
            _ => self.emit(Event::WaitTimedOut { after }),
        }
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
            let may_have_run = head.number().is_some_and(|number| number <= begun);
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
                let keeps = self.usage != Usage::CallFailed || self.options.reuse_after_error;
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
