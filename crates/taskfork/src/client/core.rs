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
use super::connect::Terms;
use super::connection::{Connection, Lost};
use super::deadlines::{Alarm, Deadlines};
use super::lane::Lane;
use super::pool::{Lease, Loss, Pool, Released, WorkerKey};
use super::replay::Replay;
use super::stats::{self, Tally};
use super::step::Ending;
use crate::error::FatalError;

pub(crate) type ClientPool = Pool<Box<Connection>, Arc<Lane>>;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pool: Mutex<ClientPool>,
    deadlines: Mutex<Deadlines<Weak<Lane>>>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) tally: Tally,
    /// A number that no other client has.
    pub(crate) id: u64,
    /// How many checkouts waited when a worker was told last.
    waiting: AtomicUsize,
    /// On what terms workers greet, if the last one did so at once.
    terms: Mutex<Option<Terms>>,
    /// The runtime is gone, so that nothing will ever be connected.
    stopped: AtomicBool,
}

/// What "at once" is.
const AT_ONCE: Duration = Duration::from_millis(5);

/// What the driver is to look at.
#[derive(Debug)]
pub(crate) enum Work {
    Idle(WorkerKey),
    Lane(Weak<Lane>),
    /// The server has no worker yet for a connection that is being made, for this reason.
    Waits(String),
    /// It has a worker that has not greeted since then.
    Ungreeted(Instant, WorkerKey, Weak<Lane>),
}

/// Where work for the driver is left.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    work: Mutex<Vec<Work>>,
    pub(crate) notify: Notify,
}

impl Mailbox {
    pub(crate) fn send(&self, work: Work) {
        lock(&self.work).push(work);
        self.notify.notify_one();
    }

    pub(crate) fn take(&self) -> Vec<Work> {
        std::mem::take(&mut *lock(&self.work))
    }
}

/// What follows from a change of a lane, to be done once the lane is not locked any more.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// One as a rule, so that it needs no memory of its own.
    pub(crate) wakers: SmallVec<[Waker; 1]>,
    pub(crate) workers: Vec<Change>,
    /// Who has lost its place in the queue to another.
    pub(crate) turned_away: Vec<Arc<Lane>>,
    /// Logs that are let go of. The last handle of one calls what its user wants called.
    pub(crate) logs: Vec<Log>,
    /// What has spans and events to give to the user's subscriber, or is over.
    pub(crate) replays: Vec<Arc<Replay>>,
}

/// A worker changes hands.
#[derive(Debug)]
pub(crate) enum Change {
    /// A checkout is over and its worker as good as before.
    Release(Lease<Box<Connection>>),
    /// The worker is of no use any more.
    Lose(Lease<Box<Connection>>, Loss),
    /// It has never greeted, for this reason.
    Fail(Lease<Box<Connection>>, String),
    Assign(Arc<Lane>, Lease<Box<Connection>>),
    /// The worker was not used, and is for the next one.
    HandBack(Lease<Box<Connection>>),
}

impl Effects {
    /// As after most calls there is at most somebody to be woken.
    fn are_few(&self) -> bool {
        self.workers.is_empty()
            && self.turned_away.is_empty()
            && self.logs.is_empty()
            && self.replays.is_empty()
    }
}

impl Core {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            pool: Mutex::new(Pool::new(config.limits)),
            deadlines: Mutex::new(Deadlines::new(Instant::now())),
            mailbox: Arc::default(),
            tally: Tally::new(&config.name),
            // Every language has integers of so many bits.
            id: u64::from(RandomState::new().build_hasher().finish() as u32).max(1),
            waiting: AtomicUsize::new(0),
            terms: Mutex::new(None),
            stopped: AtomicBool::new(false),
            config,
        }
    }

    pub(crate) fn pool(&self) -> MutexGuard<'_, ClientPool> {
        lock(&self.pool)
    }

    /// Has `lane` looked at when the time has come.
    pub(crate) fn set_alarm(&self, at: Instant, lane: &Arc<Lane>) -> Alarm {
        let (alarm, asleep) = lock(&self.deadlines).set(at, Arc::downgrade(lane));
        if asleep {
            self.mailbox.notify.notify_one();
        }
        alarm
    }

    pub(crate) fn clear_alarm(&self, alarm: Alarm) {
        lock(&self.deadlines).clear(alarm);
    }

    /// The driver looks then, or only when it is told to.
    pub(crate) fn awake_at(&self, at: Option<Instant>) {
        lock(&self.deadlines).awake_at(at);
    }

    pub(crate) fn next_alarm(&self) -> Option<Instant> {
        lock(&self.deadlines).next()
    }

    pub(crate) fn due(&self, now: Instant) -> Option<Weak<Lane>> {
        lock(&self.deadlines).due(now)
    }

    /// Does what follows from a change, and what follows from that. No lane may be locked.
    pub(crate) fn settle(&self, effects: Effects) {
        if effects.are_few() {
            effects.wakers.into_iter().for_each(Waker::wake);
        } else {
            self.settle_all(effects);
        }
    }

    fn settle_all(&self, effects: Effects) {
        let mut wakers = effects.wakers;
        drop(effects.logs);
        effects.replays.iter().for_each(|replay| replay.play());
        drop(effects.replays);
        let mut changes = VecDeque::from(effects.workers);
        while let Some(change) = changes.pop_front() {
            let next = match change {
                Change::Release(lease) => self.release(lease),
                Change::Lose(lease, loss) => self.lose(lease, loss),
                Change::Fail(lease, reason) => self.fail(lease, reason),
                Change::HandBack(lease) => self.hand_back(lease),
                Change::Assign(lane, lease) => match lane.assign(lease) {
                    Ok(effects) => {
                        wakers.extend(effects.wakers);
                        changes.extend(effects.workers);
                        effects.replays.iter().for_each(|replay| replay.play());
                        None
                    }
                    // It gave up in this instant: the worker goes to the next one.
                    Err(lease) => self.hand_back(lease),
                },
            };
            changes.extend(next);
        }
        wakers.into_iter().for_each(Waker::wake);
        effects.turned_away.iter().for_each(|lane| lane.fail(self.overloaded()));
    }

    /// The error of a checkout for which there is no place in the queue.
    pub(crate) fn overloaded(&self) -> FatalError {
        self.tally.refused();
        FatalError::Overloaded { queued: self.config.limits.max_queue.unwrap_or(usize::MAX) }
    }

    fn release(&self, mut lease: Lease<Box<Connection>>) -> Option<Change> {
        if let Err(loss) = self.part(&mut lease) {
            return self.lose(lease, loss);
        }
        let (key, said) = (lease.key(), lease.connection.unsent() == 0);
        let released = self.pool().release(lease);
        self.see_off(key, said, &released);
        self.released(released)
    }

    /// Sends the farewell that was to go with what the next one sends, if there is none after all.
    fn see_off(&self, key: WorkerKey, said: bool, released: &Released<Box<Connection>, Arc<Lane>>) {
        if let (Released::Idle, false) = (released, said) {
            self.look_at_idle(key);
        }
    }

    /// How many checkouts wait, if a worker is to be told: while there are any, and once when there are
    /// none any more.
    pub(crate) fn waiting(&self) -> Option<u64> {
        let waiting = self.pool().counts().queued;
        let before = self.waiting.swap(waiting, Ordering::Relaxed);
        (waiting > 0 || before > 0).then_some(waiting as u64)
    }

    /// Has it said if a worker has been told otherwise.
    fn tell_that_none_waits(&self, connection: &mut Connection) -> Result<(), Lost> {
        match self.waiting.swap(0, Ordering::Relaxed) {
            0 => Ok(()),
            _ => connection.put_waiting(0),
        }
    }

    /// Says goodbye at the end of a checkout, and has the driver look after the connection. Where
    /// somebody waits for the worker, the farewell goes with what the next one sends.
    fn part(&self, lease: &mut Lease<Box<Connection>>) -> Result<(), Loss> {
        let said = lease.connection.put_done().and_then(|()| match self.pool().counts().queued {
            0 => {
                self.tell_that_none_waits(&mut lease.connection)?;
                lease.connection.flush()
            }
            _ => Ok(()),
        });
        said.map_err(|_: Lost| Loss::Used)?;
        watch_idle(lease)
    }

    fn hand_back(&self, mut lease: Lease<Box<Connection>>) -> Option<Change> {
        // Whoever was to have it has seen to nothing.
        let _ = lease.connection.is_held();
        if self.pool().counts().queued == 0 {
            // If the connection is over, watching it tells.
            let _ = self.tell_that_none_waits(&mut lease.connection);
        }
        if watch_idle(&mut lease).is_err() {
            return self.lose(lease, Loss::Unused);
        }
        let (key, said) = (lease.key(), lease.connection.unsent() == 0);
        let released = self.pool().decline(lease);
        self.see_off(key, said, &released);
        self.released(released)
    }

    /// Says what to do with a worker that has become free.
    pub(crate) fn released(
        &self,
        released: Released<Box<Connection>, Arc<Lane>>,
    ) -> Option<Change> {
        match released {
            Released::Idle => None,
            Released::Assigned(lane, lease) => Some(Change::Assign(lane, lease)),
            Released::Spent(mut connection) => {
                // It is closed next; a farewell that cannot be sent is not needed.
                let _ = connection.flush();
                drop(connection);
                self.mailbox.notify.notify_one();
                None
            }
        }
    }

    fn lose(&self, lease: Lease<Box<Connection>>, loss: Loss) -> Option<Change> {
        // Closed only after the lock is released: the kernel's work is not the pool's.
        let connection = self.pool().lose(lease, loss, Instant::now());
        drop(connection);
        self.mailbox.notify.notify_one();
        None
    }

    fn fail(&self, lease: Lease<Box<Connection>>, reason: String) -> Option<Change> {
        self.tell_failure(&reason);
        let connection = self.pool().never_greeted(lease, reason, Instant::now());
        drop(connection);
        self.mailbox.notify.notify_one();
        None
    }

    /// An attempt to connect a worker has failed.
    pub(crate) fn tell_failure(&self, reason: &str) {
        *lock(&self.terms) = None;
        tracing::debug!(address = self.config.addresses(), "cannot connect a worker: {reason}");
    }

    /// A worker has greeted, so long after it was connected.
    pub(crate) fn greeted(&self, terms: Terms, after: Duration) {
        self.tally.connected();
        *lock(&self.terms) = (after < AT_ONCE).then_some(terms);
    }

    /// The terms on which the next worker can be expected to greet at once.
    pub(crate) fn terms(&self) -> Option<Terms> {
        *lock(&self.terms)
    }

    /// Looks at an idle worker on which something happened: it is dead, or nothing is to be done.
    pub(crate) fn look_at_idle(&self, key: WorkerKey) {
        let mut pool = self.pool();
        let Some(connection) = pool.idle_mut(key) else { return };
        connection.begin_turn();
        let flushed = matches!(connection.poll_flush(), Poll::Pending | Poll::Ready(Ok(())));
        let ending = match connection.poll_message() {
            Poll::Ready(ended) => Ending::of(ended),
            Poll::Pending if connection.talks() => Ending::talks(),
            Poll::Pending if flushed => return,
            Poll::Pending => Ending::Closed,
        };
        let connection = pool.lose_idle(key, Instant::now());
        drop(pool);
        drop(connection);
        match ending {
            Ending::Ungreeted(reason) => self.tell_failure(&reason),
            ending => self.tally.died(stats::cause(&ending)),
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Ends all who wait if the server has ended, is not replaced, and cannot be reached.
    pub(crate) fn turn_away_if_ended(&self) {
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
            let Some(lane) = self.pool().turn_away() else { return };
            lane.fail(cause.clone());
        }
    }

    /// Ends all who wait: there is nobody left to connect a worker for them.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        loop {
            let Some(lane) = self.pool().turn_away() else { return };
            lane.fail(runtime_is_gone());
        }
    }
}

pub(crate) fn runtime_is_gone() -> FatalError {
    let message = "the tokio runtime in which the client was built has been shut down";
    FatalError::Aborted { message: message.to_owned() }
}

fn watch_idle(lease: &mut Lease<Box<Connection>>) -> Result<(), Loss> {
    let key = lease.key();
    lease.connection.signal.belongs_to_pool(key);
    lease.connection.begin_turn();
    // Registers the waker as well, so that a death is noticed from here on.
    match lease.connection.poll_message() {
        Poll::Pending => Ok(()),
        Poll::Ready(_) => Err(Loss::Used),
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
