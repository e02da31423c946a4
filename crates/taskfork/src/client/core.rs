//! What all checkouts of a client share, and the one place where workers change hands.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use log_defer::Log;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::builder::Config;
use super::connect::PeerLimits;
use super::connection::{Connection, Lost};
use super::deadlines::{Deadlines, TimerKey};
use super::pool::{Lease, Loss, Pool, Released, WorkerKey};
use super::replay::Replay;
use super::session::Session;
use super::stats::{self, Counters};
use super::step::Disconnect;
use crate::error::FatalError;

pub(crate) type ClientPool = Pool<Box<Connection>, Arc<Session>>;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pool: Mutex<ClientPool>,
    deadlines: Mutex<Deadlines<Weak<Session>>>,
    pub(crate) driver_queue: Arc<DriverQueue>,
    pub(crate) counters: Counters,
    /// A number that no other client has.
    pub(crate) id: u64,
    /// How many checkouts waited when a worker was told last.
    reported_waiting: AtomicUsize,
    /// On what limits workers greet, if the last one did so at once.
    expected_limits: Mutex<Option<PeerLimits>>,
    /// The runtime is gone, so that nothing will ever be connected.
    stopped: AtomicBool,
}

/// What "at once" is.
const FAST_HANDSHAKE: Duration = Duration::from_millis(5);

/// What the driver is to look at.
#[derive(Debug)]
pub(crate) enum DriverEvent {
    Idle(WorkerKey),
    Session(Weak<Session>),
    /// The server has no worker yet for a connection that is being made, for this reason.
    ServerBusy(String),
    /// It has a worker that has not greeted since then.
    HandshakePending(Instant, WorkerKey, Weak<Session>),
}

/// Where work for the driver is left.
#[derive(Debug, Default)]
pub(crate) struct DriverQueue {
    events: Mutex<Vec<DriverEvent>>,
    pub(crate) notify: Notify,
}

impl DriverQueue {
    pub(crate) fn send(&self, event: DriverEvent) {
        lock(&self.events).push(event);
        self.notify.notify_one();
    }

    pub(crate) fn take(&self) -> Vec<DriverEvent> {
        std::mem::take(&mut *lock(&self.events))
    }
}

/// What follows from a change of a session, to be done once the session is not locked any more.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// One as a rule, so that it needs no memory of its own.
    pub(crate) wakers: SmallVec<[Waker; 1]>,
    pub(crate) pool_commands: Vec<PoolCommand>,
    /// Who has lost its place in the queue to another.
    pub(crate) evicted: Vec<Arc<Session>>,
    /// Logs that are let go of. The last handle of one calls what its user wants called.
    pub(crate) logs: Vec<Log>,
    /// What has spans and events to give to the user's subscriber, or is over.
    pub(crate) replays: Vec<Arc<Replay>>,
}

/// A worker changes hands.
#[derive(Debug)]
pub(crate) enum PoolCommand {
    /// A checkout is over and its worker as good as before.
    Release(Lease<Box<Connection>>),
    /// The worker is of no use any more.
    Lose(Lease<Box<Connection>>, Loss),
    /// It has never greeted, for this reason.
    FailHandshake(Lease<Box<Connection>>, String),
    Assign(Arc<Session>, Lease<Box<Connection>>),
    /// The worker was not used, and is for the next one.
    Decline(Lease<Box<Connection>>),
}

impl Effects {
    /// As after most calls there is at most somebody to be woken.
    fn is_only_wakers(&self) -> bool {
        self.pool_commands.is_empty()
            && self.evicted.is_empty()
            && self.logs.is_empty()
            && self.replays.is_empty()
    }
}

impl Core {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            pool: Mutex::new(Pool::new(config.limits)),
            deadlines: Mutex::new(Deadlines::new(Instant::now())),
            driver_queue: Arc::default(),
            counters: Counters::new(&config.name),
            // Every language has integers of so many bits.
            id: u64::from(RandomState::new().build_hasher().finish() as u32).max(1),
            reported_waiting: AtomicUsize::new(0),
            expected_limits: Mutex::new(None),
            stopped: AtomicBool::new(false),
            config,
        }
    }

    pub(crate) fn pool(&self) -> MutexGuard<'_, ClientPool> {
        lock(&self.pool)
    }

    /// Has `session` looked at when the time has come.
    pub(crate) fn set_timer(&self, at: Instant, session: &Arc<Session>) -> TimerKey {
        let (timer, asleep) = lock(&self.deadlines).set(at, Arc::downgrade(session));
        if asleep {
            self.driver_queue.notify.notify_one();
        }
        timer
    }

    pub(crate) fn clear_timer(&self, timer: TimerKey) {
        lock(&self.deadlines).clear(timer);
    }

    /// The driver looks then, or only when it is told to.
    pub(crate) fn awake_at(&self, at: Option<Instant>) {
        lock(&self.deadlines).awake_at(at);
    }

    pub(crate) fn next_timer(&self) -> Option<Instant> {
        lock(&self.deadlines).next()
    }

    pub(crate) fn due(&self, now: Instant) -> Option<Weak<Session>> {
        lock(&self.deadlines).due(now)
    }

    /// Does what follows from a change, and what follows from that. No session may be locked.
    pub(crate) fn apply(&self, effects: Effects) {
        if effects.is_only_wakers() {
            effects.wakers.into_iter().for_each(Waker::wake);
        } else {
            self.apply_all(effects);
        }
    }

    fn apply_all(&self, effects: Effects) {
        let mut wakers = effects.wakers;
        drop(effects.logs);
        effects.replays.iter().for_each(|replay| replay.play());
        drop(effects.replays);
        let mut changes = VecDeque::from(effects.pool_commands);
        while let Some(change) = changes.pop_front() {
            let next = match change {
                PoolCommand::Release(lease) => self.release(lease),
                PoolCommand::Lose(lease, loss) => self.lose(lease, loss),
                PoolCommand::FailHandshake(lease, reason) => self.fail_handshake(lease, reason),
                PoolCommand::Decline(lease) => self.decline(lease),
                PoolCommand::Assign(session, lease) => match session.assign(lease) {
                    Ok(effects) => {
                        wakers.extend(effects.wakers);
                        changes.extend(effects.pool_commands);
                        effects.replays.iter().for_each(|replay| replay.play());
                        None
                    }
                    // It gave up in this instant: the worker goes to the next one.
                    Err(lease) => self.decline(lease),
                },
            };
            changes.extend(next);
        }
        wakers.into_iter().for_each(Waker::wake);
        effects.evicted.iter().for_each(|session| session.fail(self.overloaded()));
    }

    /// The error of a checkout for which there is no place in the queue.
    pub(crate) fn overloaded(&self) -> FatalError {
        self.counters.count_refused();
        FatalError::Overloaded { queued: self.config.limits.max_queue.unwrap_or(usize::MAX) }
    }

    fn release(&self, mut lease: Lease<Box<Connection>>) -> Option<PoolCommand> {
        if let Err(loss) = self.finish_checkout(&mut lease) {
            return self.lose(lease, loss);
        }
        let (key, said) = (lease.key(), lease.connection.unsent_bytes() == 0);
        let released = self.pool().release(lease);
        self.flush_idle(key, said, &released);
        self.handle_released(released)
    }

    /// Sends the farewell that was to go with what the next one sends, if there is none after all.
    fn flush_idle(
        &self,
        key: WorkerKey,
        said: bool,
        released: &Released<Box<Connection>, Arc<Session>>,
    ) {
        if let (Released::Idle, false) = (released, said) {
            self.poll_idle(key);
        }
    }

    /// How many checkouts wait, if a worker is to be told: while there are any, and once when there are
    /// none any more.
    pub(crate) fn take_queue_report(&self) -> Option<u64> {
        let waiting = self.pool().counts().queued;
        let before = self.reported_waiting.swap(waiting, Ordering::Relaxed);
        (waiting > 0 || before > 0).then_some(waiting as u64)
    }

    /// Has it said if a worker has been told otherwise.
    fn put_empty_queue(&self, connection: &mut Connection) -> Result<(), Lost> {
        match self.reported_waiting.swap(0, Ordering::Relaxed) {
            0 => Ok(()),
            _ => connection.put_queue_length(0),
        }
    }

    /// Says goodbye at the end of a checkout, and has the driver look after the connection. Where
    /// somebody waits for the worker, the farewell goes with what the next one sends.
    fn finish_checkout(&self, lease: &mut Lease<Box<Connection>>) -> Result<(), Loss> {
        let said = lease.connection.put_done().and_then(|()| match self.pool().counts().queued {
            0 => {
                self.put_empty_queue(&mut lease.connection)?;
                lease.connection.flush()
            }
            _ => Ok(()),
        });
        said.map_err(|_: Lost| Loss::Used)?;
        watch_idle(lease)
    }

    fn decline(&self, mut lease: Lease<Box<Connection>>) -> Option<PoolCommand> {
        // Whoever was to have it has seen to nothing.
        let _ = lease.connection.mark_held();
        if self.pool().counts().queued == 0 {
            // If the connection is over, watching it tells.
            let _ = self.put_empty_queue(&mut lease.connection);
        }
        if watch_idle(&mut lease).is_err() {
            return self.lose(lease, Loss::Unused);
        }
        let (key, said) = (lease.key(), lease.connection.unsent_bytes() == 0);
        let released = self.pool().decline(lease);
        self.flush_idle(key, said, &released);
        self.handle_released(released)
    }

    /// Says what to do with a worker that has become free.
    pub(crate) fn handle_released(
        &self,
        released: Released<Box<Connection>, Arc<Session>>,
    ) -> Option<PoolCommand> {
        match released {
            Released::Idle => None,
            Released::Assigned(session, lease) => Some(PoolCommand::Assign(session, lease)),
            Released::Expired(mut connection) => {
                // It is closed next; a farewell that cannot be sent is not needed.
                let _ = connection.flush();
                drop(connection);
                self.driver_queue.notify.notify_one();
                None
            }
        }
    }

    fn lose(&self, lease: Lease<Box<Connection>>, loss: Loss) -> Option<PoolCommand> {
        // Closed only after the lock is released: the kernel's work is not the pool's.
        let connection = self.pool().lose(lease, loss, Instant::now());
        drop(connection);
        self.driver_queue.notify.notify_one();
        None
    }

    fn fail_handshake(&self, lease: Lease<Box<Connection>>, reason: String) -> Option<PoolCommand> {
        self.record_connect_failure(&reason);
        let connection = self.pool().handshake_failed(lease, reason, Instant::now());
        drop(connection);
        self.driver_queue.notify.notify_one();
        None
    }

    /// An attempt to connect a worker has failed.
    pub(crate) fn record_connect_failure(&self, reason: &str) {
        *lock(&self.expected_limits) = None;
        tracing::debug!(address = self.config.addresses(), "cannot connect a worker: {reason}");
    }

    /// A worker has greeted, so long after it was connected.
    pub(crate) fn record_handshake(&self, limits: PeerLimits, after: Duration) {
        self.counters.count_connected();
        *lock(&self.expected_limits) = (after < FAST_HANDSHAKE).then_some(limits);
    }

    /// The limits on which the next worker can be expected to greet at once.
    pub(crate) fn expected_limits(&self) -> Option<PeerLimits> {
        *lock(&self.expected_limits)
    }

    /// Looks at an idle worker on which something happened: it is dead, or nothing is to be done.
    pub(crate) fn poll_idle(&self, key: WorkerKey) {
        let mut pool = self.pool();
        let Some(connection) = pool.idle_mut(key) else { return };
        connection.begin_read();
        let flushed = matches!(connection.poll_flush(), Poll::Pending | Poll::Ready(Ok(())));
        let disconnect = match connection.poll_message() {
            Poll::Ready(ended) => Disconnect::of(ended),
            Poll::Pending if connection.sends_unsolicited() => Disconnect::unsolicited(),
            Poll::Pending if flushed => return,
            Poll::Pending => Disconnect::Closed,
        };
        let connection = pool.lose_idle(key, Instant::now());
        drop(pool);
        drop(connection);
        match disconnect {
            Disconnect::NoHandshake(reason) => self.record_connect_failure(&reason),
            disconnect => self.counters.count_death(stats::cause(&disconnect)),
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Ends all who wait if the server has ended, is not replaced, and cannot be reached.
    pub(crate) fn fail_waiting_if_server_ended(&self) {
        let is_hopeless = {
            let pool = self.pool();
            let counts = pool.counts();
            counts.queued > 0 && counts.connecting == 0 && pool.unreachable().is_some()
        };
        if !is_hopeless {
            return;
        }
        let Some(cause) = self.config.ended() else { return };
        loop {
            let Some(session) = self.pool().pop_waiting() else { return };
            session.fail(cause.clone());
        }
    }

    /// Ends all who wait: there is nobody left to connect a worker for them.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        loop {
            let Some(session) = self.pool().pop_waiting() else { return };
            session.fail(runtime_shut_down());
        }
    }
}

pub(crate) fn runtime_shut_down() -> FatalError {
    let message = "the tokio runtime in which the client was built has been shut down";
    FatalError::Aborted { message: message.to_owned() }
}

fn watch_idle(lease: &mut Lease<Box<Connection>>) -> Result<(), Loss> {
    let key = lease.key();
    lease.connection.notifier.set_idle(key);
    lease.connection.begin_read();
    // Registers the waker as well, so that a death is noticed from here on.
    match lease.connection.poll_message() {
        Poll::Pending => Ok(()),
        Poll::Ready(_) => Err(Loss::Used),
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
