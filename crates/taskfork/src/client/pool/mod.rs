//! Which checkout holds which worker, which checkouts wait, and how many workers are needed.
//!
//! It is pure: it does no I/O and reads no clock. So random sequences of events can check its invariants. Every operation
//! takes constant time, whatever the length of the queue, except the loss of an idle worker. With priorities it takes
//! a time in proportion to how many different ones wait.
//!
//! A right is a value: a [`Permit`] to connect comes back through `connected`, `failed` or
//! `cancelled`, and a [`Lease`] of a worker through `release`, `decline`, `lose` or
//! `handshake_failed`. So no count can drift.

pub(crate) mod priority_queue;
pub(crate) mod timers;
pub(crate) mod wait_queue;

use std::time::{Duration, Instant};

use slab::Slab;

use self::priority_queue::{PriorityQueue, QueuePlace};

const MIN_RETRY_DELAY: Duration = Duration::from_millis(5);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);
/// A worker that dies before this age, without having been used, counts as a failed attempt to
/// connect.
const EARLY_DEATH: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolLimits {
    pub(crate) min_workers: usize,
    pub(crate) max_workers: usize,
    pub(crate) max_checkouts: Option<u64>,
    /// The length limit of the queue.
    pub(crate) max_queue: Option<usize>,
    pub(crate) overload: Overload,
    /// How much waiting one level of priority is worth.
    pub(crate) aging: Duration,
}

/// Which checkout fails when [`max_queue`](crate::client::ClientBuilder::max_queue) checkouts wait
/// already.
///
/// ```
/// use taskfork::Client;
/// use taskfork::client::Overload;
///
/// let client = Client::builder().max_queue(100).overload(Overload::DropOldest);
/// # let _ = client;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overload {
    /// The new checkout fails. Those in the queue keep their places.
    #[default]
    RefuseNewest,
    /// Of those with the lowest priority, the checkout that has waited longest fails, because its caller may have
    /// given up. The new checkout joins the queue. If its own priority is lower than all others, it fails itself.
    /// A checkout that has already had a worker, which died before the first call began, keeps its place. If only such
    /// checkouts wait, the new one fails.
    DropOldest,
}

/// The result of a request for a worker.
#[derive(Debug)]
pub(crate) enum CheckedOut<C, W> {
    Worker(Lease<C>),
    /// A place in the queue, and the checkout that lost its own place for it.
    Queued(QueuePlace, Option<W>),
    /// The queue is full.
    Refused,
    /// The pool is closed.
    Closed,
}

/// `C` is a connection to a worker, `W` a waiting checkout, and `E` why an attempt to connect failed.
#[derive(Debug)]
pub(crate) struct Pool<C, W, E> {
    limits: PoolLimits,
    workers: Slab<Worker<C>>,
    /// Indices of idle workers. The most recently used one is the last.
    idle: Vec<usize>,
    waiting: PriorityQueue<W>,
    leased: usize,
    connecting: usize,
    next_generation: u64,
    backoff: Backoff,
    unreachable: Option<Unreachable<E>>,
    closed: bool,
    /// Workers up to this generation are used no more.
    expired: u64,
}

#[derive(Debug)]
struct Worker<C> {
    generation: u64,
    connected_at: Option<Instant>,
    checkouts: u64,
    /// The connection, while no checkout holds it.
    idle: Option<C>,
}

#[derive(Debug, Default)]
struct Backoff {
    delay: Duration,
    /// While this is set, one attempt is made at a time, and none before that time.
    next: Option<Instant>,
    /// How often the delay has been set.
    waits: u64,
}

/// When the attempts to connect began to fail, and why the last one did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreachable<E> {
    pub(crate) since: Instant,
    pub(crate) reason: E,
}

/// Identifies one worker. It is never used for another one, even after its worker is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerKey {
    index: usize,
    generation: u64,
}

impl WorkerKey {
    /// The place of the worker. Once its worker is gone, another one may have it.
    pub(crate) fn index(self) -> usize {
        self.index
    }
}

/// The right to connect one more worker.
#[derive(Debug)]
#[must_use = "a permit comes back as `connected` or `failed`"]
pub(crate) struct Permit {
    key: WorkerKey,
    /// The number of delays at the time when it was given.
    waits: u64,
}

impl Permit {
    pub(crate) fn key(&self) -> WorkerKey {
        self.key
    }
}

/// One worker, held exclusively.
#[derive(Debug)]
#[must_use = "a lease comes back by `release` or `lose`"]
pub(crate) struct Lease<C> {
    key: WorkerKey,
    pub(crate) connection: C,
}

impl<C> Lease<C> {
    pub(crate) fn key(&self) -> WorkerKey {
        self.key
    }

    /// Takes a part of the connection out of the lease.
    pub(crate) fn split<L, P>(self, split: impl FnOnce(C) -> (L, P)) -> (Lease<L>, P) {
        let (connection, part) = split(self.connection);
        (Lease { key: self.key, connection }, part)
    }

    /// Puts the connection together again.
    pub(crate) fn map<D>(self, join: impl FnOnce(C) -> D) -> Lease<D> {
        Lease { key: self.key, connection: join(self.connection) }
    }
}

/// What happened to a released worker.
#[derive(Debug)]
pub(crate) enum Released<C, W> {
    Idle,
    /// It goes to the checkout that is first in the queue.
    Assigned(W, Lease<C>),
    /// It has reached `max_checkouts`, it has expired, there are more than `max_workers`, or the pool is closed.
    Expired(C),
}

/// Whether a lost worker counts as a failed attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It died before a checkout sent it anything.
    Unused,
    Used,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) idle: usize,
    pub(crate) busy: usize,
    pub(crate) connecting: usize,
    pub(crate) queued: usize,
}

impl<C, W, E> Pool<C, W, E> {
    pub(crate) fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            workers: Slab::new(),
            idle: Vec::new(),
            waiting: PriorityQueue::new(limits.aging),
            leased: 0,
            connecting: 0,
            next_generation: 0,
            backoff: Backoff::default(),
            unreachable: None,
            closed: false,
            expired: 0,
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            idle: self.idle.len(),
            busy: self.leased,
            connecting: self.connecting,
            queued: self.waiting.len(),
        }
    }

    pub(crate) fn max_workers(&self) -> usize {
        self.limits.max_workers
    }

    pub(crate) fn unreachable(&self) -> Option<&Unreachable<E>> {
        self.unreachable.as_ref()
    }

    /// Closes the pool and removes its idle workers, whose connections it returns. Leased workers
    /// stay until they come back; no worker is connected or given out any more.
    pub(crate) fn close(&mut self) -> Vec<C> {
        self.closed = true;
        let idle = std::mem::take(&mut self.idle);
        idle.into_iter().filter_map(|index| self.workers.remove(index).idle).collect()
    }

    /// Uses no worker any more that is connected, or being connected. Removes the idle ones, whose connections it
    /// returns. Leased workers stay until they come back.
    pub(crate) fn expire_workers(&mut self) -> Vec<C> {
        self.expired = self.next_generation;
        let idle = std::mem::take(&mut self.idle);
        idle.into_iter().filter_map(|index| self.workers.remove(index).idle).collect()
    }

    /// Whether no attempt to connect may be made now, because the last one failed.
    pub(crate) fn is_delayed(&self, now: Instant) -> bool {
        self.backoff.next.is_some_and(|next| now < next)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the pool is closed, and has neither connections nor attempts to connect.
    pub(crate) fn is_drained(&self) -> bool {
        self.closed && self.workers.is_empty()
    }

    /// Changes how many workers there are. Returns the connections of idle workers of which there are too many, those
    /// that have not been used for longest. Others leave when they come back, and attempts to connect are
    /// cancelled.
    pub(crate) fn resize(&mut self, min_workers: usize, max_workers: usize) -> Vec<C> {
        (self.limits.min_workers, self.limits.max_workers) = (min_workers, max_workers);
        let connected = self.workers.len() - self.connecting;
        let surplus = connected.saturating_sub(max_workers).min(self.idle.len());
        let idle = self.idle.drain(..surplus);
        idle.filter_map(|index| self.workers.remove(index).idle).collect()
    }

    /// Leases an idle worker, or else adds a waiter of this priority to the queue. `waiter` returns it with the time.
    pub(crate) fn check_out(
        &mut self,
        priority: i8,
        waiter: impl FnOnce() -> (W, Instant),
    ) -> CheckedOut<C, W> {
        if self.closed {
            return CheckedOut::Closed;
        }
        if let Some(lease) = self.check_out_idle() {
            return CheckedOut::Worker(lease);
        }
        let full = self
            .limits
            .max_queue
            .is_some_and(|most| self.waiting.len() >= most.saturating_add(self.startable()));
        let evicted = match self.limits.overload {
            Overload::DropOldest if full => self.waiting.pop_lowest(priority),
            _ => None,
        };
        if full && evicted.is_none() {
            return CheckedOut::Refused;
        }
        let (waiter, since) = waiter();
        CheckedOut::Queued(self.waiting.push(priority, since, waiter), evicted)
    }

    /// How many checkouts get a worker that is being connected, or can be: they do not wait for other checkouts. While the
    /// server does not take connections, the attempts that are being made.
    fn startable(&self) -> usize {
        match self.backoff.next {
            Some(_) => self.connecting,
            None => self.limits.max_workers.saturating_sub(self.leased),
        }
    }

    /// Leases an idle worker.
    pub(crate) fn check_out_idle(&mut self) -> Option<Lease<C>> {
        self.idle.pop().map(|index| self.lease(index))
    }

    /// Leases an idle worker to a checkout whose worker died unused. If none is idle, the checkout joins the queue
    /// ahead of all checkouts that have never had a worker.
    pub(crate) fn check_out_again(
        &mut self,
        waiter: W,
        now: Instant,
    ) -> Result<(W, Lease<C>), QueuePlace> {
        match self.check_out_idle() {
            Some(lease) => Ok((waiter, lease)),
            None => Err(self.waiting.push_ahead(now, waiter)),
        }
    }

    /// Removes a checkout from the queue. Returns `None` if it has been given a worker.
    pub(crate) fn leave_queue(&mut self, place: QueuePlace) -> Option<W> {
        self.waiting.remove(place)
    }

    /// Removes the checkout that is first in the queue.
    pub(crate) fn pop_waiting(&mut self) -> Option<W> {
        self.waiting.pop()
    }

    /// Makes a worker available again after a checkout.
    pub(crate) fn release(&mut self, lease: Lease<C>) -> Released<C, W> {
        let Lease { key, connection } = lease;
        self.leased -= 1;
        self.backoff.delay = Duration::ZERO;
        let worker = &mut self.workers[key.index];
        worker.checkouts += 1;
        if self.limits.max_checkouts.is_some_and(|most| worker.checkouts >= most) {
            self.workers.remove(key.index);
            return Released::Expired(connection);
        }
        worker.idle = Some(connection);
        self.make_available(key.index)
    }

    /// Makes a worker available again that its checkout did not use.
    pub(crate) fn decline(&mut self, lease: Lease<C>) -> Released<C, W> {
        self.leased -= 1;
        self.workers[lease.key.index].idle = Some(lease.connection);
        self.make_available(lease.key.index)
    }

    /// Removes a held worker that is dead or must not be used again.
    pub(crate) fn lose(&mut self, lease: Lease<C>, loss: Loss, now: Instant) -> C {
        self.leased -= 1;
        self.remove(lease.key.index, loss, now);
        lease.connection
    }

    /// Removes a held worker that never completed its handshake: the attempt to connect has failed.
    pub(crate) fn handshake_failed(&mut self, lease: Lease<C>, reason: E, now: Instant) -> C {
        self.leased -= 1;
        self.workers.remove(lease.key.index);
        self.cannot_connect(reason, now);
        lease.connection
    }

    /// Returns the connection of a worker if it is idle.
    pub(crate) fn idle_mut(&mut self, key: WorkerKey) -> Option<&mut C> {
        let worker = self.workers.get_mut(key.index)?;
        if worker.generation == key.generation { worker.idle.as_mut() } else { None }
    }

    /// Removes an idle worker that is dead.
    pub(crate) fn lose_idle(&mut self, key: WorkerKey, now: Instant) -> Option<C> {
        self.idle_mut(key)?;
        self.idle.retain(|&index| index != key.index);
        self.remove(key.index, Loss::Unused, now)
    }

    /// Returns the right to connect one more worker, if one is needed and an attempt may be made
    /// now.
    pub(crate) fn permit(&mut self, now: Instant) -> Option<Permit> {
        let probing = self.backoff.next.is_some();
        let too_early = self.backoff.next.is_some_and(|next| now < next);
        if !self.needs_worker() || too_early || (probing && self.connecting > 0) {
            return None;
        }
        self.next_generation += 1;
        let generation = self.next_generation;
        let index = self.workers.insert(Worker {
            generation,
            connected_at: None,
            checkouts: 0,
            idle: None,
        });
        self.connecting += 1;
        Some(Permit { key: WorkerKey { index, generation }, waits: self.backoff.waits })
    }

    /// Returns when to ask [`permit`](Self::permit) again, if not after an event.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.backoff.next.filter(|_| self.needs_worker() && self.connecting == 0)
    }

    pub(crate) fn connected(
        &mut self,
        permit: Permit,
        connection: C,
        now: Instant,
    ) -> Released<C, W> {
        let key = permit.key;
        self.connecting -= 1;
        // An attempt that began before another one failed does not show that the server is back.
        if permit.waits == self.backoff.waits {
            self.backoff.next = None;
        }
        self.unreachable = None;
        let worker = &mut self.workers[key.index];
        worker.connected_at = Some(now);
        worker.idle = Some(connection);
        self.make_available(key.index)
    }

    pub(crate) fn failed(&mut self, permit: Permit, reason: E, now: Instant) {
        self.connecting -= 1;
        self.workers.remove(permit.key.index);
        self.cannot_connect(reason, now);
    }

    /// Records that the server has no free worker for a connection that is being made. More
    /// connections would gain nothing, so one is made at a time until one has completed.
    pub(crate) fn server_busy(&mut self, reason: E, now: Instant) {
        let since = self.unreachable.take().map_or(now, |known| known.since);
        self.unreachable = Some(Unreachable { since, reason });
        self.backoff.next.get_or_insert(now);
    }

    /// Whether a connection that is being made is no longer needed.
    pub(crate) fn has_surplus_attempt(&self) -> bool {
        let connected = self.workers.len() - self.connecting;
        let one_at_a_time = self.backoff.next.is_some() || self.closed;
        let is_too_many = self.workers.len() > self.limits.max_workers;
        self.connecting > 0 && (is_too_many || one_at_a_time && connected >= self.target_size())
    }

    /// Ends an attempt that was cancelled.
    pub(crate) fn cancelled(&mut self, permit: Permit) {
        self.connecting -= 1;
        self.workers.remove(permit.key.index);
    }

    fn cannot_connect(&mut self, reason: E, now: Instant) {
        let since = self.unreachable.take().map_or(now, |known| known.since);
        self.unreachable = Some(Unreachable { since, reason });
        self.backoff.wait(now);
    }

    /// Whether more workers are wanted than there are, those included that are being connected.
    pub(crate) fn needs_worker(&self) -> bool {
        self.workers.len() < self.target_size()
    }

    fn target_size(&self) -> usize {
        if self.closed {
            return 0;
        }
        let wanted = (self.leased + self.waiting.len()).max(self.limits.min_workers);
        wanted.min(self.limits.max_workers)
    }

    fn make_available(&mut self, index: usize) -> Released<C, W> {
        let connected = self.workers.len() - self.connecting;
        let is_expired = self.workers[index].generation <= self.expired;
        if self.closed || is_expired || connected > self.limits.max_workers {
            let Some(connection) = self.workers.remove(index).idle else {
                unreachable!("a worker becomes available only while its connection is here");
            };
            return Released::Expired(connection);
        }
        match self.waiting.pop() {
            Some(waiter) => Released::Assigned(waiter, self.lease(index)),
            None => {
                self.idle.push(index);
                Released::Idle
            }
        }
    }

    fn lease(&mut self, index: usize) -> Lease<C> {
        let worker = &mut self.workers[index];
        let key = WorkerKey { index, generation: worker.generation };
        let Some(connection) = worker.idle.take() else {
            unreachable!("a worker is leased only while its connection is here");
        };
        self.leased += 1;
        Lease { key, connection }
    }

    fn remove(&mut self, index: usize, loss: Loss, now: Instant) -> Option<C> {
        let worker = self.workers.remove(index);
        let young = worker
            .connected_at
            .is_some_and(|connected_at| now.saturating_duration_since(connected_at) < EARLY_DEATH);
        if loss == Loss::Unused && worker.checkouts == 0 && young {
            self.backoff.wait(now);
        }
        worker.idle
    }
}

impl Backoff {
    /// Delays the next attempt, longer each time. Failures during the delay count once.
    fn wait(&mut self, now: Instant) {
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        self.waits += 1;
        self.delay = (self.delay * 2).clamp(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
        self.next = Some(now + self.delay);
    }
}

#[cfg(test)]
mod tests;
