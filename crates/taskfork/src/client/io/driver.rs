//! The driver, the one task of a client: it connects workers, watches connections that no task waits on,
//! and fires timers. It takes no part in a call that a task awaits.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet, coop};
use tokio::time::{Sleep, sleep_until};

use super::connect::{NewConnection, connect, connect_without_waiting};
use super::connection::Connection;
use super::core::Core;
use super::driver_queue::{DriverEvent, DriverQueue};
use super::effects::Effects;
use super::spin::ReplySpin;
use super::time;
use super::waker::ConnectionWaker;
use crate::client::pool::{Permit, WorkerKey};
use crate::client::proto::connection::{self as proto, ConnectionConfig};
use crate::client::proto::handshake::{HandshakeError, PeerLimits, PendingHandshake};
use crate::error::ConnectionError;

/// An attempt to connect, and how long it took.
type Attempt = (Permit, Result<NewConnection, AttemptError>, Duration);

/// Why an attempt to connect did not succeed.
enum AttemptError {
    Failed(ConnectionError),
    /// No checkout needed it any more.
    Cancelled,
}

/// Runs until the client and all its checkouts are dropped.
pub(crate) fn drive(core: Weak<Core>, driver_queue: Arc<DriverQueue>) -> impl Future<Output = ()> {
    // Created before the task first runs, because a runtime that shuts down may never run it.
    let stop = StopOnDrop(core.clone());
    async move {
        let _stop = stop;
        run(core, driver_queue).await;
    }
}

async fn run(core: Weak<Core>, driver_queue: Arc<DriverQueue>) {
    let mut attempts = JoinSet::<Attempt>::new();
    let mut timer = Timer::default();
    let cancelled = Arc::<Notify>::default();
    while tick(&core, &mut attempts, &cancelled, &mut timer).is_some() {
        if let Some(attempt) = next_attempt(&mut attempts, &driver_queue, &mut timer).await {
            let (Some(core), Ok(attempt)) = (core.upgrade(), attempt) else { return };
            finish_attempt(&core, attempt);
        }
        // A worker that sends without end gives the driver something to do at each tick, so other tasks need this.
        coop::consume_budget().await;
    }
}

/// Waits for the end of an attempt to connect. Returns `None` when there is an event first, or when the timer fires.
async fn next_attempt(
    attempts: &mut JoinSet<Attempt>,
    driver_queue: &DriverQueue,
    timer: &mut Timer,
) -> Option<Result<Attempt, JoinError>> {
    let (mut woken, mut fired) = (pin!(driver_queue.woken()), pin!(timer.fired()));
    poll_fn(|context| {
        // It is `Ready(None)` while there is no attempt, and then this waits for the others.
        if let Poll::Ready(Some(attempt)) = attempts.poll_join_next(context) {
            return Poll::Ready(Some(attempt));
        }
        if woken.as_mut().poll(context).is_ready() || fired.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}

/// Returns the output of `work`, or `None` if `cancelled` is ready first.
async fn unless_cancelled<T>(
    work: impl Future<Output = T>,
    cancelled: impl Future<Output = ()>,
) -> Option<T> {
    let (mut work, mut cancelled) = (pin!(work), pin!(cancelled));
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => cancelled.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// Handles events and timers, connects workers, and sets the timer for the next tick. Returns `None` if the client is gone.
fn tick(
    core: &Weak<Core>,
    attempts: &mut JoinSet<Attempt>,
    cancelled: &Arc<Notify>,
    timer: &mut Timer,
) -> Option<()> {
    let core = core.upgrade()?;
    if timer.at.is_none() {
        core.set_driver_wakeup(None);
    }
    for event in core.driver_queue.take() {
        match event {
            DriverEvent::IdleConnection(key) => core.poll_idle(key),
            DriverEvent::ServerBusy(reason) => {
                core.pool().server_busy(HandshakeError::ServerBusy(reason).into(), time::now())
            }
            DriverEvent::Session(session) => {
                if let Some(session) = session.upgrade() {
                    session.connection_event();
                }
            }
        }
    }
    let now = time::now();
    while let Some(session) = core.pop_due(now) {
        if let Some(session) = session.upgrade() {
            session.timer_expired(now);
        }
    }
    while let Some(permit) = { core.pool().permit(now) } {
        let Some(permit) = connect_optimistically(&core, permit, now) else { continue };
        let (config, driver_queue) = (core.config.clone(), core.driver_queue.clone());
        // Created here: otherwise an attempt whose task has not run yet would miss the notification.
        let cancelled = cancelled.clone().notified_owned();
        let id = core.id;
        attempts.spawn(async move {
            let on_wait = move |reason| driver_queue.send(DriverEvent::ServerBusy(reason));
            let outcome = unless_cancelled(connect(&config, id, &on_wait), cancelled).await;
            let outcome = outcome.map_or(Err(AttemptError::Cancelled), |connected| {
                connected.map_err(AttemptError::Failed)
            });
            (permit, outcome, time::now().saturating_duration_since(now))
        });
    }
    if core.pool().has_surplus_attempt() {
        cancelled.notify_waiters();
    }
    core.fail_waiting_if_server_ended();
    let (retry, counts) = {
        let pool = core.pool();
        (pool.retry_at(), pool.counts())
    };
    let show = core.counters.publish_gauges(counts).map(|interval| now + interval);
    if let Some(at) = [retry, core.next_timer(), show].into_iter().flatten().min()
        && timer.at.is_none_or(|set| at < set)
    {
        timer.set(at);
        core.set_driver_wakeup(timer.at);
    }
    Some(())
}

/// A timer that fires once. It is left as it is if it is early enough, because each reset wakes the
/// runtime.
#[derive(Default)]
struct Timer {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn set(&mut self, at: Instant) {
        self.at = Some(at);
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at.into()),
            None => self.sleep = Some(Box::pin(sleep_until(at.into()))),
        }
    }

    async fn fired(&mut self) {
        match &mut self.sleep {
            Some(sleep) if self.at.is_some() => sleep.await,
            _ => std::future::pending().await,
        }
        self.at = None;
    }
}

/// Connects a worker without waiting for its hello. The checkout that has waited longest gets it at once, and
/// sends its first call with the client's hello. Returns the permit if this is not possible now.
fn connect_optimistically(core: &Arc<Core>, permit: Permit, now: Instant) -> Option<Permit> {
    let Some(limits) = core.expected_limits() else { return Some(permit) };
    if core.pool().counts().queued == 0 {
        return Some(permit);
    }
    let Some((stream, hello)) = connect_without_waiting(&core.config, core.id) else {
        return Some(permit);
    };
    let config = &core.config;
    let files = config.max_files();
    let due = config.connect_timeout.after(now);
    let handshake = PendingHandshake::new(now, due, config.max_frame, files);
    let expected = ConnectionConfig {
        protocol: config.protocol,
        inbox: BytesMut::new(),
        pid: 0,
        limits: PeerLimits { pipeline_window: 0, ..limits },
        max_receive: config.max_frame,
        max_blob: config.max_blob,
        max_files: files,
        max_shared: config.max_shared(files),
        copy_shared_memory: config.copy_shared_memory,
        can_lose_answers: stream.can_lose_answers(),
        // Its hello will say it.
        announces_setup: false,
    };
    let proto = proto::Connection::before_handshake(expected, hello, handshake);
    let connection = Connection::new(stream, proto, notifier(core, permit.key()), spin(core));
    let mut pool = core.pool();
    if pool.counts().queued == 0 {
        // The checkout that waited has another worker, and no other would wait for the hello.
        drop(pool);
        drop(connection);
        return Some(permit);
    }
    let released = pool.connected(permit, connection, now);
    drop(pool);
    core.apply(Effects::of(core.handle_released(released)));
    None
}

fn spin(core: &Core) -> ReplySpin {
    ReplySpin::new(core.config.busy_poll, core.config.cores)
}

/// The waker of a new connection.
fn notifier(core: &Core, key: WorkerKey) -> Arc<ConnectionWaker> {
    let notifier = ConnectionWaker::new(core.driver_queue.clone());
    notifier.set_idle(key);
    core.watched.add(key, &notifier);
    notifier
}

fn finish_attempt(core: &Arc<Core>, (permit, outcome, took): Attempt) {
    match outcome {
        Ok(NewConnection { stream, config }) => {
            core.record_handshake(config.limits, took);
            let key = permit.key();
            let proto = proto::Connection::new(config);
            let connection = Connection::new(stream, proto, notifier(core, key), spin(core));
            let released = core.pool().connected(permit, connection, time::now());
            core.apply(Effects::of(core.handle_released(released)));
            // If no checkout waited, this registers the connection's waker.
            core.poll_idle(key);
        }
        Err(AttemptError::Cancelled) => {
            core.pool().cancelled(permit);
            core.worker_removed();
        }
        Err(AttemptError::Failed(reason)) => {
            let reason = match core.config.trouble() {
                Some(trouble) => reason.with_detail(&trouble),
                None => reason,
            };
            core.finish_failed_attempt(permit, reason);
        }
    }
}

struct StopOnDrop(Weak<Core>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.stop();
        }
    }
}
