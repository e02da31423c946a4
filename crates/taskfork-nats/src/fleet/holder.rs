//! Who holds sessions, for the nodes that share their room among clients.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// One that holds sessions, as a pool. Clones are the same holder.
///
/// Nodes without room take sessions from holders that have many, for those that wait and have none. They distinguish
/// holders by the names of their clients, and by a random number.
///
/// ```
/// use taskfork_nats::Holder;
///
/// assert_eq!(Holder::new().sessions(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct Holder {
    number: u32,
    sessions: Arc<AtomicU32>,
}

impl Holder {
    /// A new one, without sessions.
    pub fn new() -> Self {
        // Each state has its own random keys.
        let number = RandomState::new().hash_one(0) as u32;
        Self { number, sessions: Arc::default() }
    }

    /// How many sessions it has.
    pub fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::Relaxed)
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn hold(&self) -> HeldSession {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        HeldSession { holder: self.clone() }
    }
}

impl Default for Holder {
    fn default() -> Self {
        Self::new()
    }
}

/// A session that a [`Holder`] has, until this is dropped.
///
/// ```
/// # fn example(grant: taskfork_nats::Grant) {
/// // As long as the direct connection lasts.
/// let held = grant.used();
/// drop(held);
/// # }
/// ```
#[derive(Debug)]
pub struct HeldSession {
    holder: Holder,
}

impl Drop for HeldSession {
    fn drop(&mut self) {
        self.holder.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_counts_what_it_holds_and_differs_from_others() {
        let holder = Holder::new();
        let (one, other) = (holder.hold(), holder.clone().hold());
        assert_eq!(holder.sessions(), 2);
        drop((one, other));
        assert_eq!(holder.sessions(), 0);
        let numbers: std::collections::HashSet<_> =
            (0..9).map(|_| Holder::new().number()).collect();
        assert!(numbers.len() > 1);
    }
}
