//! What all checkouts of a client share, and the one place that applies pool commands.
//!
//! Lock order: a session may lock the pool. Code that holds the pool never locks a session.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::connection::Connection;
use super::driver_queue::{Driven, DriverQueue};
use super::effects::{Effects, PoolCommand, RareEffects, Waiter};
use super::time;
use super::waker::ConnectionWaker;
use super::watch::Watched;
use crate::client::config::Config;
use crate::client::now::Now;
use crate::client::observe::stats::{self, Counters};
use crate::client::pool::timers::{TimerKey, Timers};
use crate::client::pool::{Counts, Lease, Loss, Permit, Pool, Released, WorkerKey};
use crate::client::proto::disconnect::{Disconnect, runtime_shut_down};
use crate::client::proto::handshake::PeerLimits;
use crate::client::proto::io_types::Event;
use crate::error::{ConnectionError, FatalError};
use crate::sync::lock;
use crate::wire::interface_description::InterfaceDescription;
use crate::wire::native::FromWorker;

pub(crate) type ClientPool = Pool<Connection, Arc<dyn Waiter>, ConnectionError>;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pool: Mutex<ClientPool>,
    timers: Mutex<Timers<Weak<dyn Driven>>>,
    pub(crate) driver_queue: Arc<DriverQueue>,
    pub(crate) counters: Counters,
    /// A random number by which servers tell clients apart.
    pub(crate) id: u64,
    /// The queue length that was last reported to a worker.
    reported_waiting: AtomicUsize,
    /// The limits of the last worker, if its handshake was fast. The next one is expected to have
    /// the same.
    expected_limits: Mutex<Option<PeerLimits>>,
    /// How many servers, one after the other, did not serve an interface that the client requires.
    refusals: AtomicUsize,
    /// The runtime has shut down, so nothing will ever be connected.
    stopped: AtomicBool,
    /// Notified when the last connection of a closed pool may have been closed.
    drained: Notify,
    /// The connections at which an event loop looks.
    pub(crate) watched: Watched,
}

/// A connection that is watched as an idle one, and that the pool does not have yet.
struct WatchedIdle {
    key: WorkerKey,
    has_unsent: bool,
    notifier: Arc<ConnectionWaker>,
}

impl WatchedIdle {
    fn of(lease: &Lease<Connection>) -> Self {
        let Connection { proto, link } = &lease.connection;
        let (has_unsent, notifier) = (proto.unsent_bytes() > 0, link.notifier.clone());
        Self { key: lease.key(), has_unsent, notifier }
    }
}

/// A handshake that takes less than this makes the next one optimistic.
const FAST_HANDSHAKE: Duration = Duration::from_millis(5);

/// How often nodes of a service must refuse a client, one after the other, before it takes them for all nodes. With the
/// delays between the attempts this takes about 2 seconds.
const REFUSALS_OF_SERVICE: usize = 10;

impl Core {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            pool: Mutex::new(Pool::new(config.limits)),
            timers: Mutex::new(Timers::new(time::now())),
            driver_queue: Arc::default(),
            counters: Counters::new(&config.name),
            // 32 bits, because every language has integers of that size.
            id: u64::from(RandomState::new().build_hasher().finish() as u32).max(1),
            reported_waiting: AtomicUsize::new(0),
            expected_limits: Mutex::new(None),
            refusals: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            drained: Notify::new(),
            watched: Watched::default(),
            config,
        }
    }

    /// Requires an interface of the servers. Workers that are connected already are used no more, because their servers
    /// did not compare it.
    pub(crate) fn require(&self, interface: &'static InterfaceDescription) {
        if self.config.required.add(interface) {
            let idle = self.pool().expire_workers();
            // Dropped after the pool is unlocked, because closing a socket can take the kernel a while.
            drop(idle);
            self.worker_removed();
        }
    }

    pub(crate) fn pool(&self) -> MutexGuard<'_, ClientPool> {
        lock(&self.pool)
    }

    /// Sets a timer for a session.
    pub(crate) fn set_timer(&self, at: Instant, session: Weak<dyn Driven>) -> TimerKey {
        let (timer, must_wake) = lock(&self.timers).set(at, session);
        if must_wake {
            self.driver_queue.wake();
        }
        timer
    }

    pub(crate) fn clear_timer(&self, timer: TimerKey) {
        lock(&self.timers).clear(timer);
    }

    /// Sets when the driver wakes in any case. `None` if it wakes for events only.
    pub(crate) fn set_driver_wakeup(&self, at: Option<Instant>) {
        lock(&self.timers).set_driver_wakeup(at);
    }

    pub(crate) fn next_timer(&self) -> Option<Instant> {
        lock(&self.timers).next()
    }

    pub(crate) fn pop_due(&self, now: Instant) -> Option<Weak<dyn Driven>> {
        lock(&self.timers).pop_due(now)
    }

    /// Applies the effects of a change, and the effects of those. No session may be locked.
    pub(crate) fn apply(&self, effects: Effects) {
        if effects.is_only_wakers() {
            effects.wakers.into_iter().for_each(Waker::wake);
        } else {
            self.apply_all(effects);
        }
    }

    fn apply_all(&self, mut effects: Effects) {
        let RareEffects { evicted, logs, replays, progress } = effects.take_rare();
        drop(logs);
        replays.iter().for_each(|replay| replay.play());
        drop(replays);
        progress.iter().for_each(|cell| cell.wake());
        let Effects { mut wakers, pool_commands: mut changes, .. } = effects;
        while !changes.is_empty() {
            let next = match changes.remove(0) {
                PoolCommand::Release(lease) => self.release(lease),
                PoolCommand::Lose(lease, loss) => self.lose(lease, loss),
                PoolCommand::Close(mut lease) => {
                    // If it cannot be sent, the connection has ended, which tells the worker the same.
                    let _ = lease.connection.flush();
                    self.lose(lease, Loss::Used)
                }
                PoolCommand::FailHandshake(lease, reason) => self.fail_handshake(lease, reason),
                PoolCommand::Decline(lease) => self.decline(lease),
                PoolCommand::Assign(session, lease) => match session.assign(lease) {
                    Ok(mut effects) => {
                        let rare = effects.take_rare();
                        rare.replays.iter().for_each(|replay| replay.play());
                        rare.progress.iter().for_each(|cell| cell.wake());
                        wakers.extend(effects.wakers);
                        changes.extend(effects.pool_commands);
                        None
                    }
                    // It gave up at this moment: the worker goes to the next one.
                    Err(lease) => self.decline(lease),
                },
            };
            changes.extend(next);
        }
        wakers.into_iter().for_each(Waker::wake);
        evicted.into_iter().for_each(|session| session.fail(self.overloaded()));
    }

    /// Returns the error of a checkout for which the queue has no room.
    pub(crate) fn overloaded(&self) -> FatalError {
        self.counters.count_refused();
        FatalError::Overloaded { queued: self.config.limits.max_queue.unwrap_or(usize::MAX) }
    }

    /// Makes the worker available again.
    fn release(&self, mut lease: Lease<Connection>) -> Option<PoolCommand> {
        if let Err(loss) = self.finish_checkout(&mut lease) {
            return self.lose(lease, loss);
        }
        let watched = WatchedIdle::of(&lease);
        let released = self.pool().release(lease);
        self.look_at_released(&watched, &released);
        self.handle_released(released)
    }

    /// If the worker has no next checkout, sends what was left in the outbox for that, and handles an event that came before the pool
    /// had the connection.
    fn look_at_released(
        &self,
        watched: &WatchedIdle,
        released: &Released<Connection, Arc<dyn Waiter>>,
    ) {
        if let Released::Idle = released
            && (watched.has_unsent || watched.notifier.has_fired())
        {
            self.poll_idle(watched.key);
        }
    }

    /// Returns the queue length if a worker should be told: while checkouts wait, and once when no
    /// checkout waits any more.
    pub(crate) fn take_queue_report(&self) -> Option<u64> {
        let waiting = self.pool().counts().queued;
        let before = self.reported_waiting.swap(waiting, Ordering::Relaxed);
        (waiting > 0 || before > 0).then_some(waiting as u64)
    }

    /// Queues a report of an empty queue, if the last report said otherwise.
    fn put_empty_queue(&self, connection: &mut Connection) -> Result<(), Disconnect> {
        match self.reported_waiting.swap(0, Ordering::Relaxed) {
            0 => Ok(()),
            _ => connection.proto.put_queue_length(0),
        }
    }

    /// Ends the checkout at the worker, and makes the connection idle. If a checkout waits for the worker, the message
    /// stays in the outbox and goes out with that one's call, in one write.
    fn finish_checkout(&self, lease: &mut Lease<Connection>) -> Result<(), Loss> {
        let connection = &mut lease.connection;
        let put = connection.proto.put_done().and_then(|()| match self.pool().counts().queued {
            0 => {
                self.put_empty_queue(connection)?;
                connection.flush()
            }
            _ => Ok(()),
        });
        put.map_err(|_| Loss::Used)?;
        self.watch_idle(lease)
    }

    fn decline(&self, mut lease: Lease<Connection>) -> Option<PoolCommand> {
        if self.pool().counts().queued == 0 {
            // If the connection has ended, `watch_idle` finds that.
            let _ = self.put_empty_queue(&mut lease.connection);
        }
        if self.watch_idle(&mut lease).is_err() {
            return self.lose(lease, Loss::Unused);
        }
        let watched = WatchedIdle::of(&lease);
        let released = self.pool().decline(lease);
        self.look_at_released(&watched, &released);
        self.handle_released(released)
    }

    /// Returns the command that follows from a released worker.
    pub(crate) fn handle_released(
        &self,
        released: Released<Connection, Arc<dyn Waiter>>,
    ) -> Option<PoolCommand> {
        match released {
            Released::Idle => None,
            Released::Assigned(session, lease) => Some(PoolCommand::Assign(session, lease)),
            Released::Expired(mut connection) => {
                // The connection is closed next, so it does not matter if this cannot be sent.
                let _ = connection.flush();
                drop(connection);
                self.worker_removed();
                None
            }
        }
    }

    fn lose(&self, lease: Lease<Connection>, loss: Loss) -> Option<PoolCommand> {
        // Dropped after the pool is unlocked, because closing a socket can take the kernel a while.
        let connection = self.pool().lose(lease, loss, time::now());
        drop(connection);
        self.worker_removed();
        None
    }

    fn fail_handshake(
        &self,
        lease: Lease<Connection>,
        reason: ConnectionError,
    ) -> Option<PoolCommand> {
        self.record_connect_failure(&reason);
        let connection = self.pool().handshake_failed(lease, reason.clone(), time::now());
        drop(connection);
        self.worker_removed();
        self.fail_if_refused(&reason);
        None
    }

    /// Ends a failed attempt to connect.
    pub(crate) fn finish_failed_attempt(&self, permit: Permit, reason: ConnectionError) {
        self.record_connect_failure(&reason);
        self.pool().failed(permit, reason.clone(), time::now());
        self.worker_removed();
        self.fail_if_refused(&reason);
    }

    /// Fails all checkouts that wait, if another attempt would not help either.
    fn fail_if_refused(&self, reason: &ConnectionError) {
        if reason.is_wrong_interface() {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            let counts = self.pool().counts();
            let refused = self.wrong_interface(reason, counts);
            refused.into_iter().for_each(|cause| self.fail_waiting(&cause));
        }
    }

    /// The error of all checkouts that wait, if the server does not serve what this client requires, so that another
    /// attempt would not help. The nodes of a service may differ, for example while a new version is rolled out. So a
    /// service is given up only if its nodes have refused many times one after the other, and no worker is connected.
    fn wrong_interface(&self, reason: &ConnectionError, counts: Counts) -> Option<FatalError> {
        let may_others_serve = self.config.is_service()
            && (self.refusals.load(Ordering::Relaxed) < REFUSALS_OF_SERVICE
                || counts.idle + counts.busy > 0);
        (reason.is_wrong_interface() && !may_others_serve).then(|| FatalError::WrongInterface {
            address: self.config.addresses(),
            difference: reason.to_string(),
        })
    }

    /// Records a failed attempt to connect: the next handshake is not optimistic.
    pub(crate) fn record_connect_failure(&self, reason: &ConnectionError) {
        *lock(&self.expected_limits) = None;
        tracing::debug!(address = self.config.addresses(), "cannot connect a worker: {reason}");
    }

    /// Records a completed handshake, `after` the connection was made.
    pub(crate) fn record_handshake(&self, limits: PeerLimits, after: Duration) {
        self.counters.count_connected();
        self.refusals.store(0, Ordering::Relaxed);
        *lock(&self.expected_limits) = (after < FAST_HANDSHAKE).then_some(limits);
    }

    /// Returns the limits that the next worker is expected to have, if its handshake may be
    /// optimistic.
    pub(crate) fn expected_limits(&self) -> Option<PeerLimits> {
        *lock(&self.expected_limits)
    }

    /// Watches an idle worker. This also registers the waker, so that a death is noticed from here on.
    fn watch_idle(&self, lease: &mut Lease<Connection>) -> Result<(), Loss> {
        let key = lease.key();
        lease.connection.link.notifier.set_idle(key);
        lease.connection.proto.begin_turn();
        match self.poll_unassigned(&mut lease.connection) {
            Poll::Pending => Ok(()),
            Poll::Ready(_) => Err(Loss::Used),
        }
    }

    /// Waits for the end of a connection that no checkout holds.
    fn poll_unassigned(&self, connection: &mut Connection) -> Poll<Disconnect> {
        let now = Now::read_by(time::now);
        loop {
            match ready!(connection.poll_event(&now)) {
                Event::Established(limits, took) => self.record_handshake(limits, took),
                Event::Message(body) => {
                    return Poll::Ready(Disconnect::of_message(FromWorker::decode(&body)));
                }
                Event::Ended(disconnect) => return Poll::Ready(disconnect),
                Event::HandshakeAborted { .. } | Event::SetupAborted { .. } => {
                    return Poll::Ready(Disconnect::Closed);
                }
                Event::Handled => {}
            }
        }
    }

    /// Handles an event on the connection of an idle worker. If the worker is dead, it leaves the
    /// pool.
    pub(crate) fn poll_idle(&self, key: WorkerKey) {
        let mut pool = self.pool();
        let Some(connection) = pool.idle_mut(key) else { return };
        connection.proto.begin_turn();
        let flushed = connection.flush();
        let disconnect = match self.poll_unassigned(connection) {
            Poll::Ready(disconnect) => disconnect,
            Poll::Pending if connection.proto.sends_unsolicited() => Disconnect::unsolicited(),
            // What has been received may have to be answered.
            Poll::Pending => match flushed.and_then(|()| connection.flush()) {
                Ok(()) => return,
                Err(_) => Disconnect::Closed,
            },
        };
        let connection = pool.lose_idle(key, time::now());
        drop(pool);
        drop(connection);
        self.drained.notify_waiters();
        match disconnect {
            Disconnect::NoHandshake(reason) => self.record_connect_failure(&reason),
            disconnect => self.counters.count_death(stats::death_cause(&disconnect)),
        }
    }

    /// Wakes the driver, which may have to connect another worker, and those who wait until the
    /// client is closed.
    pub(crate) fn worker_removed(&self) {
        self.driver_queue.wake();
        self.drained.notify_waiters();
    }

    /// Why no checkout can get a worker, if the client is closed, its runtime is gone, or the server has just refused
    /// what the client requires.
    pub(crate) fn unavailable(&self) -> Option<FatalError> {
        let refused = {
            let pool = self.pool();
            if pool.is_closed() {
                return Some(FatalError::ClientClosed);
            }
            // Once the delay is over, the next checkout finds out whether it is still so.
            let known = pool.unreachable().filter(|_| pool.is_delayed(time::now()));
            known.and_then(|known| self.wrong_interface(&known.reason, pool.counts()))
        };
        refused.or_else(|| self.is_stopped().then(runtime_shut_down))
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Changes how many workers there are.
    pub(crate) fn resize(&self, min_workers: usize, max_workers: usize) {
        let idle = self.pool().resize(min_workers, max_workers);
        // Dropped after the pool is unlocked, because closing a socket can take the kernel a while.
        drop(idle);
        // The driver connects workers, and cancels attempts of which there are too many.
        self.driver_queue.wake();
    }

    /// Closes the pool and its idle connections, and fails the checkouts that wait.
    pub(crate) fn close(&self) {
        let idle = self.pool().close();
        // Dropped after the pool is unlocked, because closing a socket can take the kernel a while.
        drop(idle);
        self.worker_removed();
        self.fail_waiting(&FatalError::ClientClosed);
    }

    /// Waits until the pool is closed and has no connection.
    pub(crate) async fn wait_drained(&self) {
        loop {
            // Created before the check: otherwise a notification between the check and the wait
            // would be lost.
            let notified = self.drained.notified();
            // Attempts to connect end with the runtime, and give no permit back.
            let is_drained = {
                let pool = self.pool();
                pool.is_drained() || (self.is_stopped() && pool.counts().busy == 0)
            };
            if is_drained {
                return;
            }
            notified.await;
        }
    }

    /// Fails all waiting checkouts if the servers have ended for good.
    pub(crate) fn fail_waiting_if_server_ended(&self) {
        let is_hopeless = {
            let pool = self.pool();
            let counts = pool.counts();
            counts.queued > 0 && counts.connecting == 0 && pool.unreachable().is_some()
        };
        if !is_hopeless {
            return;
        }
        if let Some(cause) = self.config.ended() {
            self.fail_waiting(&cause);
        }
    }

    fn fail_waiting(&self, cause: &FatalError) {
        loop {
            let Some(session) = self.pool().pop_waiting() else { return };
            session.fail(cause.clone());
        }
    }

    /// Fails all waiting checkouts, because the driver has stopped with its runtime. Connections of that runtime cannot
    /// be read any more, so no checkout may get one.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        let idle = self.pool().expire_workers();
        drop(idle);
        self.fail_waiting(&runtime_shut_down());
        self.drained.notify_waiters();
    }
}
