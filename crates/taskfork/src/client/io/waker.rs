//! The waker of a connection. A connection keeps it for life and only changes its target, so a new holder
//! registers nothing with the reactor.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Wake, Waker};

use super::driver_queue::{Driven, DriverEvent, DriverQueue};
use crate::client::pool::WorkerKey;
use crate::sync::lock;

#[derive(Debug)]
pub(crate) struct ConnectionWaker {
    target: Mutex<Target>,
    /// An event loop looks for messages of the worker again and again.
    is_watched: AtomicBool,
    /// There was an event since the connection has become idle.
    has_fired: AtomicBool,
    driver_queue: Arc<DriverQueue>,
}

#[derive(Debug, Default)]
struct Target {
    holder: Holder,
    /// The waker of the task that waits for the running call.
    task: Option<Waker>,
    /// Whether an event goes to the driver too, because it concerns more than the task.
    driver: bool,
}

/// Who gets the events of a connection.
#[derive(Debug, Default, Clone)]
pub(crate) enum Holder {
    #[default]
    None,
    Idle(WorkerKey),
    Session(Weak<dyn Driven>),
}

impl ConnectionWaker {
    pub(crate) fn new(driver_queue: Arc<DriverQueue>) -> Arc<Self> {
        Arc::new(Self {
            target: Mutex::default(),
            is_watched: AtomicBool::new(false),
            has_fired: AtomicBool::new(false),
            driver_queue,
        })
    }

    pub(crate) fn holder(&self) -> Holder {
        lock(&self.target).holder.clone()
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    /// Says whether an event loop looks for messages of the worker. Returns whether one did.
    pub(crate) fn set_watched(&self, is_watched: bool) -> bool {
        self.is_watched.swap(is_watched, Ordering::Relaxed)
    }

    /// Sets the driver as the target, because no checkout holds the connection.
    pub(crate) fn set_idle(&self, key: WorkerKey) {
        self.has_fired.store(false, Ordering::Relaxed);
        *lock(&self.target) = Target { holder: Holder::Idle(key), task: None, driver: true };
    }

    /// Whether there was an event since [`set_idle`](Self::set_idle). The driver has not found the connection if the pool did not
    /// have it yet.
    pub(crate) fn has_fired(&self) -> bool {
        self.has_fired.load(Ordering::Relaxed)
    }

    pub(crate) fn set_session(&self, session: Weak<dyn Driven>) {
        *lock(&self.target) = Target { holder: Holder::Session(session), task: None, driver: true };
    }

    /// Sets the task that waits now, and whether the driver gets events too.
    pub(crate) fn set_task(&self, task: Option<&Waker>, driver: bool) {
        let mut target = lock(&self.target);
        target.driver = driver;
        match (task, &mut target.task) {
            (Some(new), Some(old)) => old.clone_from(new),
            (new, old) => *old = new.cloned(),
        }
    }
}

impl Wake for ConnectionWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_fired.store(true, Ordering::Relaxed);
        let (task, event) = {
            let mut target = lock(&self.target);
            let event = match &target.holder {
                _ if !target.driver => None,
                Holder::None => None,
                Holder::Idle(key) => Some(DriverEvent::IdleConnection(*key)),
                Holder::Session(session) => Some(DriverEvent::Session(session.clone())),
            };
            (target.task.take(), event)
        };
        if let Some(event) = event {
            self.driver_queue.send(event);
        }
        if let Some(task) = task {
            task.wake();
        }
    }
}
