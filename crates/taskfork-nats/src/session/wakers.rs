//! One waker for all that can happen to a session, and whom it wakes.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// The tasks that wait for a session. NATS' subscription and sender keep only the last waker that they
/// were polled with, and several tasks poll them; so they always get this one.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The driver waits at all times.
    driver: Option<Waker>,
}

impl Wakers {
    pub(super) fn set_reader(&self, waker: &Waker) {
        self.with(|waiting| set(&mut waiting.reader, waker));
    }

    pub(super) fn clear_reader(&self) {
        self.with(|waiting| waiting.reader = None);
    }

    pub(super) fn set_writer(&self, waker: &Waker) {
        self.with(|waiting| set(&mut waiting.writer, waker));
    }

    pub(super) fn set_driver(&self, waker: &Waker) {
        self.with(|waiting| set(&mut waiting.driver, waker));
    }

    pub(super) fn wake_users(&self) {
        let (reader, writer) = self.with(|waiting| (waiting.reader.take(), waiting.writer.take()));
        for waker in [reader, writer].into_iter().flatten() {
            waker.wake();
        }
    }

    pub(super) fn wake_driver(&self) {
        if let Some(waker) = self.with(|waiting| waiting.driver.clone()) {
            waker.wake();
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn set(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(old) => old.clone_from(waker),
        None => *place = Some(waker.clone()),
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let (reader, writer, driver) = self.with(|waiting| {
            let reader = waiting.reader.take();
            // A reader takes all that has come. Without one the driver does, so that a peer cannot fill the
            // subscription's queue unnoticed.
            let driver = if reader.is_none() { waiting.driver.clone() } else { None };
            (reader, waiting.writer.take(), driver)
        });
        for waker in [reader, writer, driver].into_iter().flatten() {
            waker.wake();
        }
    }
}
