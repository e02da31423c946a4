//! The one task of a client: it connects workers, looks at connections that nobody waits on, and
//! keeps the time. It takes no part in a call that somebody awaits.

use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::task::JoinSet;

use super::connect::connect;
use super::connection::{Connection, Greeted};
use super::core::{Core, Effects, Mailbox, Work};
use super::pool::Permit;
use super::signal::Signal;

type Attempt = (Permit, Result<Greeted, String>);

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
    loop {
        let Some(wake_at) = look(&core, &mut attempts) else { return };
        tokio::select! {
            biased;
            Some(attempt) = attempts.join_next() => {
                let (Some(core), Ok(attempt)) = (core.upgrade(), attempt) else { return };
                settle_attempt(&core, attempt);
            }
            () = mailbox.notify.notified() => {}
            () = sleep_until(wake_at) => {}
        }
    }
}

/// Does what is due; gives when to look again, or nothing if the client is gone.
fn look(core: &Weak<Core>, attempts: &mut JoinSet<Attempt>) -> Option<Option<Instant>> {
    let core = core.upgrade()?;
    for work in core.mailbox.take() {
        match work {
            Work::Idle(key) => core.look_at_idle(key),
            Work::Lane(lane) => {
                if let Some(lane) = lane.upgrade() {
                    lane.look();
                }
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
        let config = core.config.clone();
        let id = core.id;
        attempts.spawn(async move { (permit, connect(&config, id).await) });
    }
    let (retry, counts) = {
        let pool = core.pool();
        (pool.retry_at(), pool.counts())
    };
    let show = core.tally.show(counts).map(|interval| now + interval);
    Some([retry, core.next_alarm(), show].into_iter().flatten().min())
}

fn settle_attempt(core: &Arc<Core>, (permit, outcome): Attempt) {
    match outcome {
        Ok(greeted) => {
            let signal = Signal::new(core.mailbox.clone());
            signal.belongs_to_pool(permit.key());
            let connection = Connection::new(greeted, signal);
            let key = permit.key();
            core.tally.connected();
            let released = core.pool().connected(permit, connection, Instant::now());
            let workers = core.released(released).into_iter().collect();
            core.settle(Effects { workers, ..Effects::default() });
            // Registers the waker of one that nobody waited for.
            core.look_at_idle(key);
        }
        Err(reason) => {
            tracing::debug!(address = core.config.addresses(), "cannot connect a worker: {reason}");
            core.pool().failed(permit, reason, Instant::now());
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
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
