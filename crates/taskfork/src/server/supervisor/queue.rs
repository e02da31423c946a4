//! The queue of clients that have sent their first message while all workers were in use. It is
//! served in the order of arrival. `fair_share` decides which worker makes room for a client.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::action::ClientKey;
use super::fair_share::{self, AssignedWorker, ClientId};

/// How long an evicted worker is waited for before another is evicted for the same client. The first
/// may serve a long checkout.
pub(super) const EVICTION_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct ClientQueue {
    clients: BTreeMap<ClientKey, QueuedClient>,
    /// An eviction for a client that has left the queue meanwhile. If the client comes again, it serves that one:
    /// clients leave the queue to make their first calls on another connection.
    unused_eviction: Option<(ClientId, Eviction)>,
}

/// A worker that was asked to leave, and when.
#[derive(Debug, Clone, Copy)]
struct Eviction {
    worker: u64,
    at: Duration,
}

#[derive(Debug)]
struct QueuedClient {
    id: ClientId,
    /// The last worker that was asked to leave for this client.
    eviction: Option<Eviction>,
    /// That worker has exited, so the next free place belongs to this client.
    is_next: bool,
}

impl QueuedClient {
    /// Whether a worker is about to leave for this client, or has left.
    fn is_promised(&self, now: Duration) -> bool {
        let waits = |eviction: Eviction| now < eviction.at.saturating_add(EVICTION_WAIT);
        self.is_next || self.eviction.is_some_and(waits)
    }
}

impl ClientQueue {
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.clients.clear();
    }

    pub(super) fn push(&mut self, client: ClientKey, id: ClientId) {
        let eviction = self.unused_eviction.take_if(|(before, _)| *before == id);
        let eviction = eviction.map(|(_, eviction)| eviction);
        self.clients.insert(client, QueuedClient { id, eviction, is_next: false });
    }

    /// Removes a client that waits no longer.
    pub(super) fn remove(&mut self, client: ClientKey) {
        if let Some(client) = self.clients.remove(&client) {
            let unused = client.eviction.filter(|_| !client.is_next);
            self.unused_eviction = unused.map(|eviction| (client.id, eviction));
        }
    }

    /// Records that a worker has exited. Its place belongs to the client that it was evicted for. Of several
    /// connections of that client, the one that has waited longest gets it.
    pub(super) fn worker_exited(&mut self, worker: u64) {
        let left_for = |(_, client): &(&ClientKey, &QueuedClient)| {
            !client.is_next && client.eviction.is_some_and(|eviction| eviction.worker == worker)
        };
        let Some((&key, &QueuedClient { id, .. })) = self.clients.iter().find(left_for) else {
            return;
        };
        let mut waiting = self.clients.iter_mut();
        if let Some((&first, client)) =
            waiting.find(|(_, client)| client.id == id && !client.is_next)
        {
            client.is_next = true;
            let eviction = client.eviction;
            if let Some(other) = self.clients.get_mut(&key).filter(|_| first != key) {
                other.eviction = eviction;
            }
        }
    }

    /// Removes the client that gets the next free place.
    pub(super) fn pop(&mut self) -> Option<(ClientKey, ClientId)> {
        let next = self.clients.iter().find(|(_, client)| client.is_next).map(|(key, _)| *key);
        let key = next.or_else(|| self.clients.first_key_value().map(|(key, _)| *key))?;
        self.clients.remove(&key).map(|client| (key, client.id))
    }

    /// Chooses the workers that make room for clients, if one can for those from `newest` on. `assigned`
    /// are the workers that can. The oldest clients come first: since the last review, a worker may have
    /// become one that can make room for them.
    pub(super) fn evict(
        &mut self,
        newest: ClientKey,
        mut assigned: Vec<AssignedWorker>,
        now: Duration,
        mut evict: impl FnMut(u64),
    ) {
        // Places that are promised to clients count as theirs.
        let promised = self.clients.values().filter(|client| client.is_promised(now));
        assigned.extend(promised.map(|client| AssignedWorker::promised(client.id)));
        // A look at all clients takes longer, and is of no use if even the newest has no candidate.
        let has_older = self.clients.range(..newest).next().is_some();
        let mut new = self.clients.range(newest..).filter(|(_, client)| !client.is_promised(now));
        if has_older
            && !new.any(|(_, client)| fair_share::choose_eviction(&assigned, client.id).is_some())
        {
            return;
        }
        let mut without_candidate = BTreeSet::new();
        for client in self.clients.values_mut() {
            if client.is_promised(now) || without_candidate.contains(&client.id) {
                continue;
            }
            let Some(worker) = fair_share::choose_eviction(&assigned, client.id) else {
                without_candidate.insert(client.id);
                continue;
            };
            assigned.retain(|it| it.worker != worker);
            assigned.push(AssignedWorker::promised(client.id));
            client.eviction = Some(Eviction { worker, at: now });
            evict(worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::supervisor::fair_share::PeerId;

    #[test]
    fn of_two_connections_of_a_client_the_older_one_gets_the_first_place_that_is_made() {
        let [busy, waiting] = [1, 2].map(|it| ClientId::new(PeerId::Process(it), 0));
        let mut queue = ClientQueue::default();
        let assigned = |worker| AssignedWorker {
            worker,
            age: Duration::from_secs(1),
            is_used: true,
            ..AssignedWorker::promised(busy)
        };
        queue.push(ClientKey(1), waiting);
        queue.push(ClientKey(2), waiting);
        let mut evicted = Vec::new();
        let workers = (1..5).map(assigned).collect();
        queue.evict(ClientKey(1), workers, Duration::ZERO, |worker| evicted.push(worker));
        assert_eq!(evicted.len(), 2);
        for (worker, next) in evicted.into_iter().rev().zip([1, 2]) {
            queue.push(ClientKey(next + 10), busy);
            queue.worker_exited(worker);
            assert_eq!(queue.pop(), Some((ClientKey(next), waiting)));
        }
    }

    #[test]
    fn a_place_that_was_made_for_a_client_is_not_taken_by_another_one_that_comes_before_it_is_back()
    {
        let [busy, other, waiting] = [1, 2, 3].map(|it| ClientId::new(PeerId::Process(it), 0));
        let mut queue = ClientQueue::default();
        queue.push(ClientKey(1), other);
        queue.push(ClientKey(2), waiting);
        let worker = |worker, client| AssignedWorker {
            worker,
            age: Duration::from_secs(1),
            is_used: true,
            ..AssignedWorker::promised(client)
        };
        let mut evicted = Vec::new();
        let assigned = vec![worker(7, busy), worker(8, other)];
        queue.evict(ClientKey(2), assigned, Duration::ZERO, |worker| evicted.push(worker));
        assert_eq!(evicted.len(), 1, "one worker makes room, for the client without any");
        queue.remove(ClientKey(2));
        queue.push(ClientKey(3), other);
        queue.push(ClientKey(4), waiting);
        queue.worker_exited(evicted[0]);
        assert_eq!(queue.pop(), Some((ClientKey(4), waiting)));
        assert_eq!(queue.pop(), Some((ClientKey(1), other)));
    }
}
