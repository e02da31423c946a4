//! The decisions of a server as a machine without I/O: which client gets a worker, waits or is refused,
//! who makes room for whom, when spare workers are forked, when a worker is interrupted, killed or
//! replaced, and how the server shuts down and restarts.
//!
//! [`Supervisor`] reads no clock, and has no descriptor, process id or lock. It knows workers by their
//! numbers, and connections and waiting clients by their keys. The event loop maps them to descriptors. Its methods are
//! of four kinds:
//!
//! 1. **Events.** `handle_…` reports what has happened, and when. The time is that of
//!    [`clock`](crate::clock), and never decreases. An event cannot fail. If its worker or client
//!    is no longer known, it changes nothing.
//! 2. **Actions.** [`poll_action`](Supervisor::poll_action) returns what to do next. The caller carries
//!    it out, and reports its result, if [`Action`] names one, before it asks for the next action. It
//!    asks after each event until there is none.
//! 3. **Time.** [`poll_timeout`](Supervisor::poll_timeout) says how long the caller may sleep. It calls
//!    [`handle_slots`](Supervisor::handle_slots) and [`handle_timeout`](Supervisor::handle_timeout)
//!    then, or earlier. If the slots are not due, it may observe only the workers of
//!    [`poll_changed`](Supervisor::poll_changed).
//! 4. **Questions**, which change nothing.
//!
//! The events of one wake-up are a turn. The caller reports exits before new clients, so that a free
//! place goes to a client that has waited. At the end of the turn it calls
//! [`end_turn`](Supervisor::end_turn), which assigns free places and forks a spare worker that is due.
//!
//! Slots are memory that workers write. So the machine never acts on a slot. It judges an
//! [`Observation`] and says in the action which view it has judged. The caller acts by
//! compare-and-swap, and reports whether that held. Before it observes a slot for `handle_client_gone`
//! or `handle_retiring`, it sets the flag that the worker reads. One of the two sees the other then.

mod action;
mod exit;
mod fair_share;
mod handshakes;
mod kill;
mod lifecycle;
mod observation;
mod placement;
mod queue;
mod review;
mod spares;
#[cfg(test)]
mod tests;
mod timeouts;
mod worker;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

pub(crate) use action::{Action, ClientKey, Config, ConnectionKey, HandshakeFailure, Purpose};
pub(crate) use exit::{Exit, ExitFacts, Explanation};
pub(crate) use fair_share::{ClientId, PeerId};
use handshakes::Handshakes;
#[cfg(test)]
pub(crate) use kill::KillCause;
pub(crate) use lifecycle::ACCEPT_PAUSE;
use lifecycle::{AcceptPause, Mode, Succession};
pub(crate) use observation::Observation;
use placement::{Placement, Turn};
use queue::ClientQueue;
use review::Review;
use spares::Spares;
use worker::Worker;
#[cfg(test)]
pub(crate) use worker::{Leaving, Role};

use crate::server::numbered::Numbered;
use crate::sys::VecPages;

#[derive(Debug)]
pub(crate) struct Supervisor {
    config: Config,
    /// By number. Numbers are never reused.
    workers: Numbered<Worker>,
    /// The number of workers that have been forked.
    forked: u64,
    /// Decisions that have not been carried out.
    actions: VecDeque<Action>,
    /// The client or spare worker for which something is being done.
    placement: Placement,
    turn: Turn,
    handshakes: Handshakes,
    queue: ClientQueue,
    review: Review,
    spares: Spares,
    mode: Mode,
    succession: Succession,
    accept_pause: AcceptPause,
    /// When a worker is due, by the last look at the slots.
    slots_due: Option<Duration>,
    /// Workers that something has happened to since that look.
    changed: Vec<u64>,
    /// The workers that were forked as spare workers and have no client.
    spare_numbers: BTreeSet<u64>,
    /// The number of workers that had to be killed during shutdown.
    killed: usize,
}

impl Supervisor {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            workers: Numbered::default(),
            forked: 0,
            actions: VecDeque::new(),
            placement: Placement::None,
            turn: Turn::default(),
            handshakes: Handshakes::default(),
            queue: ClientQueue::default(),
            review: Review::default(),
            spares: Spares::default(),
            mode: Mode::Serving,
            succession: Succession::None,
            accept_pause: AcceptPause::default(),
            slots_due: None,
            changed: Vec::new(),
            spare_numbers: BTreeSet::new(),
            killed: 0,
        }
    }

    /// The next thing to do. The result of the one before must have been reported.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        // The placement of a client comes from its own field: a queue would be one more page that the
        // server writes around a fork.
        self.actions.pop_front().or_else(|| self.next_placement())
    }

    /// Ends the pauses and waits that are over. The caller calls `handle_slots` before this, so that it
    /// decides about what workers do now.
    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        self.end_late_handshakes(now);
        self.update_spares(now);
        self.begin_due_review(now);
        self.end_accept_pause(now);
        self.end_grace(now);
    }

    /// How long the caller may sleep if nothing happens. `None` stands for any time.
    pub(crate) fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        let due = [
            self.slots_due,
            self.handshakes.due(),
            self.spares.due(),
            self.review_due(),
            self.accept_pause.until(),
            self.mode.deadline(),
        ];
        due.into_iter().flatten().min().map(|due| due.saturating_sub(now))
    }

    /// The memory of what is known about workers.
    pub(crate) fn pages(&self) -> VecPages<'_> {
        self.workers.pages()
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.mode == Mode::Serving
    }

    /// Whether the server shuts down and no worker is left.
    pub(crate) fn is_finished(&self) -> bool {
        self.mode != Mode::Serving && self.workers.is_empty()
    }

    pub(crate) fn is_accept_paused(&self) -> bool {
        self.accept_pause.until().is_some()
    }

    pub(crate) fn max_workers(&self) -> usize {
        self.config.max_workers
    }

    /// How many workers there are.
    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The number of workers that have been forked.
    pub(crate) fn forked(&self) -> u64 {
        self.forked
    }

    /// How many clients wait for a worker.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// The number of workers that had to be killed during shutdown.
    pub(crate) fn killed(&self) -> usize {
        self.killed
    }
}
