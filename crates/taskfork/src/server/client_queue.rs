//! Connections that have greeted and wait for a worker, as there are as many workers as there may be. They are
//! served in the order in which they came. Meanwhile the server makes room, see `share`.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{SendFlags, send};

use super::error::ServerError;
use super::event_loop::{EventLoop, Mode};
use super::fair_share::{self, AssignedWorker, ClientId};
use super::log;
use super::refusal::Refusal;
use crate::wire::frame::{self, DEFAULT_MAX_FRAME, PREAMBLE};
use crate::wire::{Protocol, WireError, native};
use crate::worker::AcceptedClient;
use crate::worker::scoreboard::{Retirement, now};

/// How often room is looked for while somebody waits, and how much longer than a look the pause after it is at
/// least.
const PAUSE_SHARE: u32 = 20;
const REVIEW: Duration = Duration::from_millis(50);

/// The server looks for more room for a connection if what it had hoped for has not come after this time: the
/// worker that was to leave serves a long checkout.
const MORE_ROOM_AFTER: Duration = Duration::from_millis(500);

/// How long the rest of a long first message may take that has waited for a worker in the middle of it.
const REST_WITHIN: Duration = Duration::from_secs(5);

/// All connections that wait.
#[derive(Debug)]
pub(crate) struct ClientQueue {
    /// One descriptor for the event loop to watch for the end of any of them.
    epoll: OwnedFd,
    /// By numbers that grow: the first has waited longest.
    waiting: BTreeMap<u64, QueuedClient>,
    next: u64,
    /// Room is looked for then.
    review_at: Duration,
    /// A worker that was asked to leave for one that has left the queue meanwhile, and when.
    unused_eviction: Option<(u64, Duration)>,
}

#[derive(Debug)]
struct QueuedClient {
    client: AcceptedClient,
    protocol: Protocol,
    holder: ClientId,
    /// The worker that was asked last to leave for it, and when.
    asked: Option<(u64, Duration)>,
    /// That worker has left.
    is_next: bool,
}

impl QueuedClient {
    /// Whether a worker is about to leave for it.
    fn is_hopeful(&self, now: Duration) -> bool {
        self.asked.is_some_and(|(_, at)| now < at.saturating_add(MORE_ROOM_AFTER))
    }
}

impl ClientQueue {
    pub(crate) fn new() -> Result<Self, ServerError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(ServerError::system("cannot make an epoll instance for waiting clients"))?;
        let (waiting, review_at) = (BTreeMap::new(), Duration::ZERO);
        Ok(Self { epoll, waiting, next: 0, review_at, unused_eviction: None })
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// All that a worker has no use for.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let waiting = self.waiting.values().map(|waiting| waiting.client.socket.as_fd());
        [self.epoll.as_fd()].into_iter().chain(waiting)
    }

    /// In a process that is forked from the server: closes its copies.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
    }

    /// In the server: closes all. Native clients try again.
    pub(crate) fn close_all(&mut self) {
        while let Some((number, _)) = self.waiting.first_key_value() {
            self.take(*number);
        }
    }

    fn add(&mut self, mut waiting: QueuedClient) -> Result<u64, (QueuedClient, rustix::io::Errno)> {
        let number = self.next;
        // The end of a connection is always told.
        let (data, flags) = (EventData::new_u64(number), EventFlags::RDHUP);
        if let Err(errno) = epoll::add(&self.epoll, &waiting.client.socket, data, flags) {
            return Err((waiting, errno));
        }
        self.next += 1;
        waiting.asked = self.unused_eviction.take();
        self.waiting.insert(number, waiting);
        Ok(number)
    }

    fn take(&mut self, number: u64) -> Option<QueuedClient> {
        let waiting = self.waiting.remove(&number)?;
        // A worker that has just been forked may hold a copy, with which closing would not end the watch.
        let _ = epoll::delete(&self.epoll, &waiting.client.socket);
        Some(waiting)
    }

    /// A worker has ended. Its place is for whom it was asked to leave.
    pub(crate) fn freed(&mut self, worker: u64) {
        let left_for = |waiting: &&mut QueuedClient| {
            !waiting.is_next && waiting.asked.is_some_and(|(asked, _)| asked == worker)
        };
        if let Some(waiting) = self.waiting.values_mut().find(left_for) {
            waiting.is_next = true;
        }
    }

    /// The one that gets the next free place.
    fn pop(&mut self) -> Option<QueuedClient> {
        let next = self.waiting.iter().find(|(_, waiting)| waiting.is_next);
        let number = *next.or_else(|| self.waiting.first_key_value())?.0;
        self.take(number)
    }
}

impl AsFd for ClientQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl EventLoop {
    /// Has a connection wait for a worker, or refuses it if too many wait.
    pub(super) fn enqueue_client(
        &mut self,
        mut client: AcceptedClient,
        protocol: Protocol,
        holder: ClientId,
    ) {
        let most = self.worker_limit();
        let reason = format!("it has all of its {most} workers (max_workers)");
        if self.queue.len() >= self.handshakes.most() {
            self.refuse(client.socket, Refusal::busy(protocol, reason));
            return;
        }
        if protocol == Protocol::Native {
            if !send_wait(&client.socket, &reason) {
                // It is gone, or does not read.
                return;
            }
            client.is_preamble_sent = true;
        }
        let waiting = QueuedClient { client, protocol, holder, asked: None, is_next: false };
        match self.queue.add(waiting) {
            Ok(number) => self.request_evictions(number),
            Err((waiting, errno)) => {
                let refusal = Refusal::busy(protocol, format!("it cannot be watched: {errno}"));
                let refusal = refusal.with_preamble_sent(waiting.client.is_preamble_sent);
                self.refuse(waiting.client.socket, refusal);
            }
        }
    }

    /// Removes the connections that have ended.
    pub(super) fn remove_disconnected(&mut self) {
        let mut room = [MaybeUninit::uninit(); 64];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((events, _)) = epoll::wait(&self.queue.epoll, &mut room, Some(&at_once)) else {
            return;
        };
        for event in events.iter() {
            if let Some(left) = self.queue.take(event.data.u64()) {
                self.queue.unused_eviction = left.asked.filter(|_| !left.is_next);
            }
        }
    }

    /// Looks for room if it is time, while somebody waits; gives the time until the next look.
    pub(super) fn rebalance_queue(&mut self) -> Option<Duration> {
        if self.queue.is_empty() {
            return None;
        }
        let begun = now();
        let left = self.queue.review_at.saturating_sub(begun);
        if !left.is_zero() {
            return Some(left);
        }
        self.request_evictions(0);
        let took = now().saturating_sub(begun);
        let pause = took.saturating_mul(PAUSE_SHARE).max(REVIEW);
        self.queue.review_at = now().saturating_add(pause);
        Some(pause)
    }

    /// Asks workers to leave for those that wait and may have their places, from this number on.
    fn request_evictions(&mut self, first: u64) {
        let now = now();
        let mut held: Vec<_> =
            self.children.values_mut().filter_map(|child| child.held(now)).collect();
        // What has been promised counts as theirs.
        let promised = |waiting: &QueuedClient| waiting.is_next || waiting.is_hopeful(now);
        let of_waiting = self.queue.waiting.values().filter(|waiting| promised(waiting));
        held.extend(of_waiting.map(|waiting| AssignedWorker::promised(waiting.holder)));
        let mut hopeless = BTreeSet::new();
        for (_, waiting) in self.queue.waiting.range_mut(first..) {
            if promised(waiting) || hopeless.contains(&waiting.holder) {
                continue;
            }
            let Some(number) = fair_share::choose_eviction(&held, waiting.holder) else {
                hopeless.insert(waiting.holder);
                continue;
            };
            held.retain(|held| held.worker != number);
            held.push(AssignedWorker::promised(waiting.holder));
            waiting.asked = Some((number, now));
            if let Some(child) = self.children.get_mut(&number) {
                log::debug!(worker = number, "it makes room for another client");
                child.retire(Retirement::Fairness);
            }
        }
    }

    /// Gives places that have become free to those who wait.
    pub(super) fn assign_free_workers(&mut self) {
        while self.mode == Mode::Serving && self.children.len() < self.worker_limit() {
            let Some(waiting) = self.queue.pop() else { return };
            let QueuedClient { mut client, protocol, holder, .. } = waiting;
            // The client is not to blame for the time in the queue.
            client.deadline =
                client.deadline.map(|deadline| deadline.max(Instant::now() + REST_WITHIN));
            if let Some(client) = self.assign_spare(client, holder) {
                self.fork_for_client(client, protocol, holder);
            }
        }
    }
}

/// Tells a native client that it is in the queue; tells whether that could be said in one piece.
fn send_wait(connection: &OwnedFd, reason: &str) -> bool {
    let mut out = PREAMBLE.to_vec();
    let written = frame::write::<WireError>(&mut out, DEFAULT_MAX_FRAME, |out| {
        native::put_queued(out, reason);
        Ok(())
    });
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    written.is_ok() && send(connection, &out, flags) == Ok(out.len())
}
