//! Who is to be told when something happens on a connection. A connection keeps one waker for its
//! whole life, so that handing it from hand to hand registers nothing anew with the reactor.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Wake, Waker};

use super::core::{Mailbox, Work};
use super::lane::Lane;
use super::pool::WorkerKey;

#[derive(Debug)]
pub(crate) struct Signal {
    target: Mutex<Target>,
    mailbox: Arc<Mailbox>,
}

#[derive(Debug, Default)]
struct Target {
    owner: Owner,
    /// Who waits for the call that runs.
    task: Option<Waker>,
    /// Whether the driver must look too, as the task may not come.
    driver: bool,
}

#[derive(Debug, Default)]
enum Owner {
    #[default]
    Nobody,
    Idle(WorkerKey),
    Lane(Weak<Lane>),
}

impl Signal {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Arc<Self> {
        Arc::new(Self { target: Mutex::default(), mailbox })
    }

    /// The connection is in nobody's hands: the driver looks after it.
    pub(crate) fn belongs_to_pool(&self, key: WorkerKey) {
        *self.lock() = Target { owner: Owner::Idle(key), task: None, driver: true };
    }

    pub(crate) fn belongs_to_lane(&self, lane: &Arc<Lane>) {
        *self.lock() =
            Target { owner: Owner::Lane(Arc::downgrade(lane)), task: None, driver: true };
    }

    /// Sets who waits now.
    pub(crate) fn wake_next(&self, task: Option<&Waker>, driver: bool) {
        let mut target = self.lock();
        target.driver = driver;
        match (task, &mut target.task) {
            (Some(new), Some(old)) => old.clone_from(new),
            (new, old) => *old = new.cloned(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let (task, work) = {
            let mut target = self.lock();
            let work = match &target.owner {
                _ if !target.driver => None,
                Owner::Nobody => None,
                Owner::Idle(key) => Some(Work::Idle(*key)),
                Owner::Lane(lane) => Some(Work::Lane(lane.clone())),
            };
            (target.task.take(), work)
        };
        if let Some(work) = work {
            self.mailbox.send(work);
        }
        if let Some(task) = task {
            task.wake();
        }
    }
}
