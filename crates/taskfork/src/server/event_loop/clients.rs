//! The connections of clients that wait for a worker.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::net::{SendFlags, send};

use super::EventLoop;
use crate::clock::now;
use crate::peer::Peer;
use crate::server::error::ServerError;
use crate::server::refusal::Refusal;
use crate::server::status::WaitingClientStatus;
use crate::server::supervisor::{ClientId, ClientKey};
use crate::server::watched_set::WatchedSet;
use crate::sys;
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::{Protocol, native};
use crate::worker::AcceptedClient;

/// How long the rest of a long first message may take after its client has waited in the queue.
const GREETING_REST_TIMEOUT: Duration = Duration::from_secs(5);

/// How many clients in the queue a status shows.
const MAX_SHOWN: usize = 50;

/// The clients that have sent their first message, and have no worker.
#[derive(Debug)]
pub(super) struct WaitingClients {
    /// The number of the last client.
    last: u64,
    /// The client that is being given to a worker.
    current: Option<(ClientKey, WaitingClient)>,
    /// Those in the queue, by their keys. They are watched for their end.
    queued: WatchedSet<WaitingClient>,
}

#[derive(Debug)]
pub(super) struct WaitingClient {
    pub(super) client: AcceptedClient,
    pub(super) protocol: Protocol,
    /// When its first message was complete.
    pub(super) since: Duration,
}

impl WaitingClient {
    /// Who is at its other end. `None` on TCP.
    fn peer(&self) -> Option<Peer> {
        match &self.client.relayed_peer {
            Some(peer) => Some(Peer::clone(peer)),
            None => sys::peer_credentials(&self.client.socket).map(Peer::from),
        }
    }
}

impl AsFd for WaitingClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.socket.as_fd()
    }
}

impl WaitingClients {
    pub(super) fn new() -> Result<Self, ServerError> {
        let queued = WatchedSet::new()
            .map_err(ServerError::system("cannot create an epoll instance for waiting clients"))?;
        Ok(Self { last: 0, current: None, queued })
    }

    /// The descriptors that a worker must close.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let current = self.current.iter().map(|(_, client)| client.as_fd());
        self.queued.descriptors().chain(current)
    }

    /// Closes this process's copies, in a process that was forked from the server.
    pub(super) fn close_copies(&mut self) {
        self.current = None;
        self.queued.close_copies();
    }

    /// Closes all connections. Native clients try again.
    pub(super) fn close_all(&mut self) {
        self.current = None;
        while let Some(number) = self.queued.oldest() {
            self.queued.remove(number);
        }
    }

    fn set_current(&mut self, client: WaitingClient) -> ClientKey {
        self.last += 1;
        let key = ClientKey(self.last);
        self.current = Some((key, client));
        key
    }

    /// Removes a client, which gets a worker or is refused.
    pub(super) fn take(&mut self, key: ClientKey) -> Option<WaitingClient> {
        if let Some((_, client)) = self.current.take_if(|(current, _)| *current == key) {
            return Some(client);
        }
        let mut waiting = self.queued.remove(key.0)?;
        // The time in the queue does not count against the client.
        let client = &mut waiting.client;
        client.deadline =
            client.deadline.map(|until| until.max(Instant::now() + GREETING_REST_TIMEOUT));
        Some(waiting)
    }

    /// Those in the queue that have waited longest.
    pub(super) fn status(&self, now: Duration) -> Vec<WaitingClientStatus> {
        let longest = self.queued.iter().take(MAX_SHOWN);
        let status = longest.map(|(_, client)| WaitingClientStatus {
            peer: client.peer(),
            seconds: now.saturating_sub(client.since).as_secs_f64(),
        });
        status.collect()
    }

    /// Gives back a client that a spare worker has not taken.
    pub(super) fn give_back(&mut self, key: ClientKey, client: WaitingClient) {
        self.current = Some((key, client));
    }
}

impl AsFd for WaitingClients {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queued.as_fd()
    }
}

impl EventLoop {
    /// Has a client with a complete first message given to a worker, put into the queue or refused.
    pub(super) fn place_client(
        &mut self,
        client: AcceptedClient,
        protocol: Protocol,
        id: ClientId,
    ) {
        let key =
            self.connections.waiting.set_current(WaitingClient { client, protocol, since: now() });
        self.supervisor.handle_client(key, id);
        self.carry_out_actions();
    }

    /// Removes the clients that have closed their connections.
    pub(super) fn remove_closed_clients(&mut self) {
        for number in self.connections.waiting.queued.ready() {
            self.connections.waiting.queued.remove(number);
            self.supervisor.handle_queued_client_gone(ClientKey(number));
        }
    }

    /// Puts a client into the queue, and informs it.
    pub(super) fn enqueue_client(&mut self, key: ClientKey) {
        let is_queued = match self.connections.waiting.take(key) {
            Some(waiting) => self.watch_waiting(key, waiting),
            None => false,
        };
        match is_queued {
            true => self.supervisor.handle_queued(key),
            false => self.supervisor.handle_queued_client_gone(key),
        }
    }

    /// Returns whether the client is there and is watched.
    fn watch_waiting(&mut self, key: ClientKey, mut waiting: WaitingClient) -> bool {
        let WaitingClient { client, protocol, .. } = &mut waiting;
        if *protocol == Protocol::Native {
            if !send_wait(&client.socket, &self.all_in_use()) {
                // The client is gone, or does not read.
                return false;
            }
            client.is_preamble_sent = true;
        }
        match self.connections.waiting.queued.insert_as(key.0, waiting, EventFlags::RDHUP) {
            Ok(()) => true,
            Err((WaitingClient { client, protocol, .. }, errno)) => {
                let refusal = Refusal::busy(protocol, format!("it cannot be watched: {errno}"));
                let refusal = refusal.with_client(&client);
                self.refuse(client.socket, refusal);
                false
            }
        }
    }

    /// Refuses a client because the queue is full.
    pub(super) fn refuse_busy(&mut self, key: ClientKey) {
        if let Some(WaitingClient { client, protocol, .. }) = self.connections.waiting.take(key) {
            let refusal = Refusal::busy(protocol, self.all_in_use()).with_client(&client);
            self.refuse(client.socket, refusal);
        }
    }

    fn all_in_use(&self) -> String {
        let limit = self.supervisor.max_workers();
        format!("it has all of its {limit} workers (max_workers)")
    }

    /// Gives a client to a spare worker.
    pub(super) fn assign_client(&mut self, key: ClientKey, number: u64, may_be_in_setup: bool) {
        let Some(waiting) = self.connections.waiting.take(key) else {
            return self.supervisor.handle_assign_failed(number);
        };
        let WaitingClient { client, protocol, since } = waiting;
        let assigned = match self.children.get_mut(number) {
            Some(child) => child.assign_client(client, may_be_in_setup),
            None => Err(client),
        };
        match assigned {
            Ok(()) => {
                let Self { children, process, .. } = self;
                if let Some(child) = children.get_mut(number) {
                    process.partial_forks.move_up(child.role_descriptor_mut());
                }
                children.note_low(number, |descriptor| process.partial_forks.is_low(descriptor));
                let now = now();
                self.status.counters.waits.add(now.saturating_sub(since));
                self.supervisor.handle_assigned(number, now);
                self.watch_client(number);
            }
            Err(client) => {
                self.connections.waiting.give_back(key, WaitingClient { client, protocol, since });
                self.supervisor.handle_assign_failed(number);
            }
        }
    }
}

/// Sends a native client the message that it is in the queue. Returns whether the kernel took the
/// whole message.
fn send_wait(connection: &OwnedFd, reason: &str) -> bool {
    let mut out = PREAMBLE.to_vec();
    let written = frame::write_control(&mut out, |out| native::put_queued(out, reason));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    written.is_ok() && send(connection, &out, flags) == Ok(out.len())
}
