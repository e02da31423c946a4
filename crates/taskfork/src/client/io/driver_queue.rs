//! The queue of events for the driver, and what a checkout does when the driver calls it.

use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use tokio::sync::Notify;

use crate::client::pool::WorkerKey;
use crate::sync::lock;

/// What the driver does for a session. A trait, so that the waker of a connection need not know what a
/// session is.
pub(crate) trait Driven: std::fmt::Debug + Send + Sync {
    /// Something happened on the session's connection, or it has calls to send.
    fn connection_event(self: Arc<Self>);

    /// A timer that was set for the session has expired.
    fn timer_expired(self: Arc<Self>, now: Instant);

    /// Handles what the worker of a running call has sent, if it has sent something. `checks_socket` says whether a look
    /// includes the socket of a connection with rings.
    fn look(self: Arc<Self>, checks_socket: bool) -> Look;
}

/// What a look for answers has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Look {
    /// No call runs.
    Idle,
    /// The workers of running calls have sent nothing.
    Waiting,
    /// Something has been handled.
    Found,
}

#[derive(Debug)]
pub(crate) enum DriverEvent {
    /// Something happened on the connection of an idle worker.
    IdleConnection(WorkerKey),
    Session(Weak<dyn Driven>),
    /// The server has no free worker yet for a connection that is being made, for this reason.
    ServerBusy(String),
}

#[derive(Debug, Default)]
pub(crate) struct DriverQueue {
    events: Mutex<Vec<DriverEvent>>,
    notify: Notify,
}

impl DriverQueue {
    pub(crate) fn send(&self, event: DriverEvent) {
        lock(&self.events).push(event);
        self.wake();
    }

    /// Wakes the driver without an event.
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Waits for the next [`send`](Self::send) or [`wake`](Self::wake). A wake before the wait ends it at
    /// once. Cancelling the wait loses no wake.
    pub(crate) async fn woken(&self) {
        self.notify.notified().await;
    }

    pub(crate) fn take(&self) -> Vec<DriverEvent> {
        std::mem::take(&mut *lock(&self.events))
    }
}
