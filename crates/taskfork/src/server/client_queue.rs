//! The queue of clients that have sent their first message while all workers were in use. It is
//! served in the order of arrival. `fair_share` decides which worker makes room for a client.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::error::ServerError;
use super::fair_share::ClientId;
use super::watched_set::WatchedSet;
use crate::wire::Protocol;
use crate::worker::AcceptedClient;

/// How long an evicted worker is waited for before another is evicted for the same client. The first
/// may serve a long checkout.
const EVICTION_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct ClientQueue {
    clients: WatchedSet<QueuedClient>,
    /// When the server next looks for workers to evict.
    pub(super) next_review: Duration,
    /// An eviction for a client that has left the queue meanwhile. It serves the next one.
    pub(super) unused_eviction: Option<Eviction>,
}

/// A worker that was asked to leave, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Eviction {
    pub(super) worker: u64,
    pub(super) at: Duration,
}

#[derive(Debug)]
pub(super) struct QueuedClient {
    pub(super) client: AcceptedClient,
    pub(super) protocol: Protocol,
    pub(super) id: ClientId,
    /// The last worker that was asked to leave for this client.
    pub(super) eviction: Option<Eviction>,
    /// That worker has exited, so the next free place belongs to this client.
    pub(super) is_next: bool,
}

impl QueuedClient {
    /// Whether a worker is about to leave for this client, or has left.
    pub(super) fn is_promised(&self, now: Duration) -> bool {
        let waits = |eviction: Eviction| now < eviction.at.saturating_add(EVICTION_WAIT);
        self.is_next || self.eviction.is_some_and(waits)
    }
}

impl AsFd for QueuedClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.socket.as_fd()
    }
}

impl ClientQueue {
    pub(crate) fn new() -> Result<Self, ServerError> {
        let clients = WatchedSet::new()
            .map_err(ServerError::system("cannot create an epoll instance for waiting clients"))?;
        Ok(Self { clients, next_review: Duration::ZERO, unused_eviction: None })
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// The descriptors that a worker must close.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.clients.descriptors()
    }

    /// Closes this process's copies, in a process that was forked from the server.
    pub(crate) fn close_copies(&mut self) {
        self.clients.close_copies();
    }

    /// Closes all connections. Native clients try again.
    pub(crate) fn close_all(&mut self) {
        while let Some(number) = self.clients.oldest() {
            self.clients.remove(number);
        }
    }

    /// Adds a client and returns its number. The queue watches the connection for its end.
    pub(super) fn push(&mut self, client: QueuedClient) -> Result<u64, (QueuedClient, Errno)> {
        let number = self.clients.insert(client, EventFlags::RDHUP)?;
        if let Some(client) = self.clients.get_mut(number) {
            client.eviction = self.unused_eviction.take();
        }
        Ok(number)
    }

    /// Removes the clients that have closed their connections.
    pub(super) fn remove_closed(&mut self) {
        for number in self.clients.ready() {
            if let Some(client) = self.clients.remove(number) {
                self.unused_eviction = client.eviction.filter(|_| !client.is_next);
            }
        }
    }

    /// Records that a worker has exited. Its place belongs to the client that it was evicted for.
    pub(crate) fn worker_exited(&mut self, worker: u64) {
        let left_for = |client: &&mut QueuedClient| {
            !client.is_next && client.eviction.is_some_and(|eviction| eviction.worker == worker)
        };
        if let Some(client) = self.clients.iter_from(0).map(|(_, client)| client).find(left_for) {
            client.is_next = true;
        }
    }

    /// Removes the client that gets the next free place.
    pub(super) fn pop(&mut self) -> Option<QueuedClient> {
        let next = self.clients.iter().find(|(_, client)| client.is_next);
        let number = next.map(|(number, _)| number).or_else(|| self.clients.oldest())?;
        self.clients.remove(number)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &QueuedClient> {
        self.clients.iter().map(|(_, client)| client)
    }

    /// The clients with this number and later ones.
    pub(super) fn iter_from(&mut self, first: u64) -> impl Iterator<Item = &mut QueuedClient> {
        self.clients.iter_from(first).map(|(_, client)| client)
    }
}

impl AsFd for ClientQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.clients.as_fd()
    }
}
