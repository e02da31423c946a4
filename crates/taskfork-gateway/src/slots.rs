//! The places of clients that have not sent their first message: a new client displaces the oldest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The places, of which there are so many.
#[derive(Debug)]
pub(crate) struct Slots {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// The number of the next place.
    next: u64,
    /// Who learns that it is displaced, the oldest first.
    by_age: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    displaced: oneshot::Receiver<()>,
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// Takes a place, if necessary that of the client that has waited longest.
    pub(crate) fn take(self: &Arc<Self>) -> Slot {
        let (sender, displaced) = oneshot::channel();
        let mut taken = self.lock();
        let number = taken.next;
        taken.next += 1;
        taken.by_age.insert(number, sender);
        if taken.by_age.len() > self.limit {
            // Dropping the sender tells its client.
            taken.by_age.pop_first();
        }
        Slot { slots: self.clone(), number, displaced }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // The map is whole even after a panic.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Waits until another client has taken the place.
    pub(crate) async fn displaced(&mut self) {
        // Nothing is ever sent: the other end is dropped.
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().by_age.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_displaced(slot: &mut Slot) -> bool {
        slot.displaced.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn a_client_too_many_displaces_the_oldest_only() {
        let slots = Slots::new(2);
        let (mut first, mut second) = (slots.take(), slots.take());
        assert!(!is_displaced(&mut first) && !is_displaced(&mut second));
        let mut third = slots.take();
        assert!(is_displaced(&mut first));
        assert!(!is_displaced(&mut second) && !is_displaced(&mut third));
        drop((first, second));
        let _fourth = slots.take();
        assert!(!is_displaced(&mut third), "the second has left its place");
    }
}
