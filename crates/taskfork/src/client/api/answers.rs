//! An event loop of another language that looks for the answers of a client's workers.

use std::sync::{Arc, Weak};

use super::handle::Client;
use crate::client::io::core::Core;
use crate::client::io::driver_queue::Look;
use crate::client::io::spin::LoopSpin;

/// The answers of a client's workers, for an event loop that looks for them instead of being woken for each.
#[derive(Debug)]
pub struct Answers(Weak<Core>);

/// What an event loop waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// No call runs.
    Nothing,
    /// Calls run.
    Answers,
    /// Something has come, and tasks have been woken for it.
    Arrived,
}

impl Answers {
    /// Those of a client.
    pub fn of(client: &Client) -> Self {
        Self(Arc::downgrade(client.core()))
    }

    /// Whether the client, its checkouts and its calls have been dropped.
    pub fn are_over(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// How many calls and checkouts wait for a worker, and how many workers run calls.
    fn counts(&self) -> (usize, usize) {
        let counts = self.0.upgrade().map(|core| core.pool().counts());
        counts.map_or((0, 0), |counts| (counts.queued, counts.busy))
    }
}

/// An event loop that looks for answers.
///
/// It neither waits nor lets workers wait: it looks again soon, or it calls [`sleep`](Self::sleep).
#[derive(Debug, Default)]
pub struct AnswerWatch {
    clients: Vec<Answers>,
    spin: Option<LoopSpin>,
    is_on: bool,
}

impl AnswerWatch {
    /// Looks at the workers of this client too.
    pub fn add(&mut self, answers: Answers) {
        self.clients.retain(|known| !known.are_over());
        if let Some(core) = answers.0.upgrade()
            && self.spin.is_none()
        {
            self.spin = Some(LoopSpin::new(core.config.busy_poll, core.config.cores));
        }
        self.clients.push(answers);
    }

    /// Whether it looks at the workers of a client.
    pub fn has(&self, client: &Client) -> bool {
        self.clients.iter().any(|known| known.0.as_ptr() == Arc::as_ptr(client.core()))
    }

    /// Handles what has come.
    pub fn look(&mut self) -> Awaited {
        let checks_socket = self.spin.as_ref().is_some_and(LoopSpin::checks_socket);
        let cores = self.clients.iter().filter_map(|answers| answers.0.upgrade());
        let found = cores.map(|core| core.watched.look(checks_socket)).max();
        self.is_on |= found > Some(Look::Idle);
        match found {
            Some(Look::Found) => {
                self.record_found();
                Awaited::Arrived
            }
            Some(Look::Waiting) => Awaited::Answers,
            Some(Look::Idle) | None => Awaited::Nothing,
        }
    }

    /// How many calls and checkouts wait for a worker.
    pub fn queued(&self) -> usize {
        self.clients.iter().map(|answers| answers.counts().0).sum()
    }

    /// Waits for a moment. Returns whether to look again: otherwise the loop sleeps.
    pub fn pause(&mut self) -> bool {
        let busy = self.clients.iter().map(|answers| answers.counts().1).sum();
        self.spin.as_mut().is_some_and(|spin| spin.pause(busy))
    }

    /// Something has come.
    pub fn record_found(&mut self) {
        self.spin.iter_mut().for_each(LoopSpin::record_found);
    }

    /// The loop runs. `is_for_answer` says whether it was woken by an answer.
    pub fn record_wake(&mut self, is_for_answer: bool) {
        self.spin.iter_mut().for_each(|spin| spin.record_wake(is_for_answer));
    }

    /// Has tasks be woken for answers from here on. `is_waiting` says whether calls run.
    pub fn sleep(&mut self, is_waiting: bool) {
        match &mut self.spin {
            Some(spin) if is_waiting => spin.record_sleep(),
            Some(spin) => spin.stop(),
            None => {}
        }
        if std::mem::take(&mut self.is_on) {
            let cores = self.clients.iter().filter_map(|answers| answers.0.upgrade());
            cores.for_each(|core| core.watched.end(|key| core.poll_idle(key)));
        }
    }
}
