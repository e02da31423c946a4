//! The one task of a client: it connects workers, looks at connections that nobody waits on, and
//! keeps the time. It takes no part in a call that somebody awaits.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::task::{JoinSet, coop};
use tokio::time::{Sleep, sleep_until};

use super::connect::{GreetError, Hearing, Terms, connect, connect_at_once, most_files, most_lent};
use super::connection::{Connection, Greeted, Greeting};
use super::core::{Core, Effects, Mailbox, Work};
use super::lane::Lane;
use super::look::Look;
use super::pool::{Permit, Released, WorkerKey};
use super::signal::Signal;

/// An attempt to connect, and how long it took.
type Attempt = (Permit, Result<Greeted, NoWorker>, Duration);

/// What came of an attempt to connect that has not succeeded.
enum NoWorker {
    Failed(String),
    /// It was given up, as nobody needed it any more.
    Withdrawn,
}

/// Who has a worker that has not greeted, and until when it may; those that have come first are first.
type Ungreeted = VecDeque<(Instant, WorkerKey, Weak<Lane>)>;

/// Runs until the client and all its checkouts are dropped.
pub(crate) fn drive(core: Weak<Core>, mailbox: Arc<Mailbox>) -> impl Future<Output = ()> {
    // Made before the task is first run, as a runtime that ends may never run it.
    let stop = StopOnDrop(core.clone());
    async move {
        let _stop = stop;
        run(core, mailbox).await;
    }
}

async fn run(core: Weak<Core>, mailbox: Arc<Mailbox>) {
    let mut attempts = JoinSet::<Attempt>::new();
    let mut clock = Clock::default();
    let (mut ungreeted, withdrawn) = (Ungreeted::new(), Arc::<Notify>::default());
    while look(&core, &mut attempts, &withdrawn, &mut ungreeted, &mut clock).is_some() {
        tokio::select! {
            biased;
            Some(attempt) = attempts.join_next() => {
                let (Some(core), Ok(attempt)) = (core.upgrade(), attempt) else { return };
                settle_attempt(&core, attempt);
            }
            () = mailbox.notify.notified() => {}
            () = clock.ring() => {}
        }
        // A worker that never stops sending gives the driver something to do each time that it looks.
        coop::consume_budget().await;
    }
}

/// Does what is due, and has the clock ring when to look again; nothing if the client is gone.
fn look(
    core: &Weak<Core>,
    attempts: &mut JoinSet<Attempt>,
    withdrawn: &Arc<Notify>,
    ungreeted: &mut Ungreeted,
    clock: &mut Clock,
) -> Option<()> {
    let core = core.upgrade()?;
    if clock.at.is_none() {
        core.awake_at(None);
    }
    for work in core.mailbox.take() {
        match work {
            Work::Idle(key) => core.look_at_idle(key),
            Work::Waits(reason) => {
                core.pool().must_wait(GreetError::Wait(reason).to_string(), Instant::now())
            }
            Work::Lane(lane) => {
                if let Some(lane) = lane.upgrade() {
                    lane.look();
                }
            }
            Work::Ungreeted(since, key, lane) => {
                let late = core.config.connect_timeout.after(since);
                ungreeted.extend(late.map(|late| (late, key, lane)));
            }
        }
    }
    let now = Instant::now();
    while let Some(lane) = core.due(now) {
        if let Some(lane) = lane.upgrade() {
            lane.expire(now);
        }
    }
    while let Some(permit) = { core.pool().permit(now) } {
        let Some(permit) = engage(&core, permit, ungreeted, now) else { continue };
        let (config, mailbox) = (core.config.clone(), core.mailbox.clone());
        let withdrawn = withdrawn.clone();
        let id = core.id;
        attempts.spawn(async move {
            let on_wait = move |reason| mailbox.send(Work::Waits(reason));
            let outcome = tokio::select! {
                biased;
                outcome = connect(&config, id, &on_wait) => outcome.map_err(NoWorker::Failed),
                () = withdrawn.notified() => Err(NoWorker::Withdrawn),
            };
            (permit, outcome, now.elapsed())
        });
    }
    if core.pool().makes_too_many() {
        withdrawn.notify_waiters();
    }
    core.turn_away_if_ended();
    let late = loop {
        match ungreeted.front() {
            Some((_, _, lane)) if lane.strong_count() == 0 => {}
            Some((late, key, lane)) if *late <= now => {
                lane.upgrade().into_iter().for_each(|lane| lane.give_up_greeting(*key));
            }
            first => break first.map(|(late, ..)| *late),
        }
        ungreeted.pop_front();
    };
    let (retry, counts) = {
        let pool = core.pool();
        (pool.retry_at(), pool.counts())
    };
    let show = core.tally.show(counts).map(|interval| now + interval);
    if let Some(at) = [retry, late, core.next_alarm(), show].into_iter().flatten().min()
        && clock.at.is_none_or(|set| at < set)
    {
        clock.set(at);
        core.awake_at(clock.at);
    }
    Some(())
}

/// It rings once at the time for which it is set. It is left as it is while that is early enough, as
/// each time that is set makes the runtime look up.
#[derive(Default)]
struct Clock {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    fn set(&mut self, at: Instant) {
        self.at = Some(at);
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at.into()),
            None => self.sleep = Some(Box::pin(sleep_until(at.into()))),
        }
    }

    async fn ring(&mut self) {
        match &mut self.sleep {
            Some(sleep) if self.at.is_some() => sleep.await,
            _ => std::future::pending().await,
        }
        self.at = None;
    }
}

/// Connects a worker whose greeting need not be waited for: who waits longest has it at once, and its first call
/// goes with what is said first. Gives the permit back where that cannot be.
fn engage(
    core: &Arc<Core>,
    permit: Permit,
    ungreeted: &mut Ungreeted,
    now: Instant,
) -> Option<Permit> {
    let Some(terms) = core.terms() else { return Some(permit) };
    if core.pool().counts().queued == 0 {
        return Some(permit);
    }
    let Some((stream, said)) = connect_at_once(&core.config, core.id) else { return Some(permit) };
    let greeted = Greeted {
        stream,
        protocol: core.config.protocol,
        inbox: BytesMut::with_capacity(4096),
        pid: 0,
        terms: Terms { ahead: 0, ..terms },
        max_receive: core.config.max_frame,
        max_blob: core.config.max_blob,
        most_lent: most_lent(&core.config, most_files(&core.config)),
        look: Look::new(core.config.busy_poll, core.config.cores),
    };
    let key = permit.key();
    let (hearing, core_of_it) = (Hearing::default(), Arc::downgrade(core));
    let greeting = Greeting { hearing, since: now, held: false, core: core_of_it };
    let connection = Connection::ungreeted(greeted, signal(core, key), said, greeting);
    let connection = Box::new(connection);
    let mut pool = core.pool();
    if pool.counts().queued == 0 {
        // Whoever waited has another worker, and nobody would wait for the greeting.
        drop(pool);
        drop(connection);
        return Some(permit);
    }
    let released = pool.connected(permit, connection, now);
    drop(pool);
    if let Released::Assigned(lane, _) = &released {
        let late = core.config.connect_timeout.after(now);
        ungreeted.extend(late.map(|late| (late, key, Arc::downgrade(lane))));
    }
    let workers = core.released(released).into_iter().collect();
    core.settle(Effects { workers, ..Effects::default() });
    None
}

/// What tells of a new connection.
fn signal(core: &Core, key: WorkerKey) -> Arc<Signal> {
    let signal = Signal::new(core.mailbox.clone());
    signal.belongs_to_pool(key);
    signal
}

fn settle_attempt(core: &Arc<Core>, (permit, outcome, took): Attempt) {
    match outcome {
        Ok(greeted) => {
            core.greeted(greeted.terms, took);
            let key = permit.key();
            let connection = Box::new(Connection::new(greeted, signal(core, key)));
            let released = core.pool().connected(permit, connection, Instant::now());
            let workers = core.released(released).into_iter().collect();
            core.settle(Effects { workers, ..Effects::default() });
            // Registers the waker of one that nobody waited for.
            core.look_at_idle(key);
        }
        Err(NoWorker::Withdrawn) => core.pool().withdrawn(permit),
        Err(NoWorker::Failed(reason)) => {
            let reason = match core.config.trouble() {
                Some(trouble) if !reason.contains(&trouble) => format!("{reason}: {trouble}"),
                _ => reason,
            };
            core.tell_failure(&reason);
            core.pool().failed(permit, reason, Instant::now());
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
