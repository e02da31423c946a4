//! Who gets a worker: new clients, clients from the queue, and spare workers that are forked in advance.

use std::time::Duration;

use super::Supervisor;
use super::action::{Action, ClientKey, Purpose};
use super::fair_share::ClientId;
use super::lifecycle::Mode;
use super::spares::MAX_FORK_DELAY;
use super::worker::{Role, Worker};

/// What is being done for a client, or to have a spare worker. It is one thing at a time.
#[derive(Debug, Clone, Copy)]
pub(super) enum Placement {
    None,
    /// The client gets the first spare worker after number `tried` that takes it, or a new worker.
    Searching {
        client: ClientKey,
        id: ClientId,
        tried: u64,
    },
    /// The caller tries to give the client to a spare worker.
    Offered {
        client: ClientKey,
        id: ClientId,
    },
    Forking(Role),
}

/// What is left to do at the end of a turn.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Turn {
    /// The caller may report more events.
    #[default]
    Running,
    /// Free places are given to clients in the queue.
    Assigning { had_events: bool, now: Duration },
    /// A spare worker may be due.
    Sparing { had_events: bool, now: Duration },
}

impl Supervisor {
    /// A client's first message has arrived, and the server serves its protocol.
    pub(crate) fn handle_client(&mut self, client: ClientKey, id: ClientId) {
        let is_idle = matches!(self.placement, Placement::None);
        if self.mode != Mode::Serving {
            self.actions.push_back(Action::Close { client });
        } else if self.queue.is_empty() && is_idle {
            self.placement = Placement::Searching { client, id, tried: 0 };
        } else {
            self.enqueue(client, id);
        }
    }

    /// A client that was put into the queue is there, and its connection is watched.
    pub(crate) fn handle_queued(&mut self, client: ClientKey) {
        self.request_review(client);
    }

    /// A client in the queue has closed its connection, or could not be put there.
    pub(crate) fn handle_queued_client_gone(&mut self, client: ClientKey) {
        self.queue.remove(client);
    }

    /// The worker has been forked.
    pub(crate) fn handle_forked(&mut self, worker: u64, now: Duration) {
        if let Placement::Forking(role) = self.placement {
            self.placement = Placement::None;
            self.forked = worker;
            self.workers.insert(worker, Worker::new(role, now));
            self.changed.push(worker);
            if role == Role::Spare {
                self.spare_numbers.insert(worker);
            }
        }
    }

    /// The worker could not be forked. Its number is used again.
    pub(crate) fn handle_fork_failed(&mut self) {
        if matches!(self.placement, Placement::Forking(_)) {
            self.placement = Placement::None;
        }
    }

    /// The spare worker has been sent its client's connection.
    pub(crate) fn handle_assigned(&mut self, worker: u64, now: Duration) {
        let Placement::Offered { id, .. } = self.placement else { return };
        self.placement = Placement::None;
        if let Some(state) = self.workers.get_mut(worker) {
            state.role = Role::Client(id);
        }
        self.spare_numbers.remove(&worker);
        self.changed.push(worker);
        self.spares.record_assignment(now);
    }

    /// The spare worker has not taken the client.
    pub(crate) fn handle_assign_failed(&mut self, worker: u64) {
        if let Placement::Offered { client, id } = self.placement {
            self.placement = Placement::Searching { client, id, tried: worker };
        }
    }

    /// A spare worker of this age has failed, or could not be forked. Returns the time until the next is
    /// forked, unless an earlier failure has delayed it.
    pub(crate) fn handle_spare_failed(&mut self, age: Duration, now: Duration) -> Option<Duration> {
        self.spares.record_failure(age, self.forked, now)
    }

    /// All events of this wake-up have been reported. Without events there is time for a spare worker.
    pub(crate) fn end_turn(&mut self, had_events: bool, now: Duration) {
        self.turn = Turn::Assigning { had_events, now };
    }

    /// The next step of giving places to clients, and of having spare workers.
    pub(super) fn next_placement(&mut self) -> Option<Action> {
        loop {
            match (self.placement, self.turn) {
                (Placement::Searching { client, id, tried }, _) => {
                    return Some(self.place(client, id, tried));
                }
                // The caller has not reported how that went.
                (Placement::Offered { .. } | Placement::Forking(_), _) => return None,
                (Placement::None, Turn::Running) => return None,
                (Placement::None, Turn::Assigning { had_events, now }) => {
                    let may_assign = self.mode == Mode::Serving && self.has_room();
                    match may_assign.then(|| self.queue.pop()).flatten() {
                        Some((client, id)) => {
                            self.placement = Placement::Searching { client, id, tried: 0 };
                        }
                        None => self.turn = Turn::Sparing { had_events, now },
                    }
                }
                (Placement::None, Turn::Sparing { had_events, now }) => {
                    self.turn = Turn::Running;
                    if self.is_spare_due(had_events, now) {
                        self.placement = Placement::Forking(Role::Spare);
                        return Some(Action::Fork {
                            worker: self.forked + 1,
                            purpose: Purpose::Spare,
                        });
                    }
                }
            }
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.workers.len() < self.config.max_workers
    }

    /// A spare worker whose setup still runs is chosen only if no further worker can be forked.
    fn place(&mut self, client: ClientKey, id: ClientId, tried: u64) -> Action {
        self.placement = Placement::None;
        if self.mode != Mode::Serving {
            return Action::Close { client };
        }
        let may_be_in_setup = !self.has_room();
        let spare = self.spares().find(|&worker| worker > tried);
        if let Some(worker) = spare {
            self.placement = Placement::Offered { client, id };
            Action::Assign { client, worker, may_be_in_setup }
        } else if self.has_room() {
            self.placement = Placement::Forking(Role::Client(id));
            Action::Fork { worker: self.forked + 1, purpose: Purpose::Client(client) }
        } else {
            self.put_into_queue(client, id)
        }
    }

    fn enqueue(&mut self, client: ClientKey, id: ClientId) {
        let action = self.put_into_queue(client, id);
        self.actions.push_back(action);
    }

    fn put_into_queue(&mut self, client: ClientKey, id: ClientId) -> Action {
        if self.queue.len() >= self.config.max_waiting {
            return Action::Refuse { client };
        }
        self.queue.push(client, id);
        Action::Enqueue { client }
    }

    /// The workers that can get a client, now or after their setup, in the order of their numbers.
    fn spares(&self) -> impl Iterator<Item = u64> {
        let is_spare = |number: &u64| self.workers.get(*number).is_some_and(Worker::is_spare);
        self.spare_numbers.iter().copied().filter(is_spare)
    }

    /// Notes whether there are too few spare workers, and when one is forked.
    pub(super) fn update_spares(&mut self, now: Duration) {
        let wanted = self.config.spare_workers;
        let is_short = wanted > 0
            && self.mode == Mode::Serving
            && self.queue.is_empty()
            && self.has_room()
            && self.spares().count() < wanted;
        let probe = self.spares().find(|&worker| is_short && self.spares.is_probe(worker));
        let is_probing = probe.is_some();
        self.changed.extend(probe);
        self.spares.update(is_short, is_probing, now);
    }

    /// Whether a spare worker is due, and there are no events to handle first.
    fn is_spare_due(&mut self, had_events: bool, now: Duration) -> bool {
        let is_late = |since: Duration| now.saturating_sub(since) >= MAX_FORK_DELAY;
        if had_events && !self.spares.short_since().is_some_and(is_late) {
            return false;
        }
        self.update_spares(now);
        self.spares.due().is_some_and(|due| due <= now)
    }
}
