//! Whether a session is in use, and whether the node wants it to end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

/// What a node knows of one session. Clones belong to the same session.
///
/// Whoever relays the session says when it is in use. A node without room asks sessions to leave when clients wait that have
/// none, and prefers those that are not in use. A session of which nothing is said is never asked.
///
/// ```
/// # fn example(accepted: &taskfork_nats::Accepted) {
/// let usage = accepted.usage();
/// // A client makes calls.
/// usage.set_used(true);
/// // It has got all answers.
/// usage.set_used(false);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SessionUsage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    leaving: watch::Sender<bool>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    began: Instant,
    usage: Usage,
}

/// How a session is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// Nothing has been said yet.
    Unknown,
    Used,
    UnusedSince(Instant),
}

impl SessionUsage {
    pub(crate) fn new() -> Self {
        let state = State { began: Instant::now(), usage: Usage::Unknown };
        Self {
            inner: Arc::new(Inner { state: Mutex::new(state), leaving: watch::Sender::new(false) }),
        }
    }

    /// Says whether the session is in use. Saying the same again changes nothing.
    pub fn set_used(&self, is_used: bool) {
        let mut state = self.lock();
        match (is_used, state.usage) {
            (true, _) => state.usage = Usage::Used,
            (false, Usage::UnusedSince(_)) => {}
            (false, _) => state.usage = Usage::UnusedSince(Instant::now()),
        }
    }

    /// Waits until the session is to leave because clients wait: it ends as soon as it is not in use. Cancelling loses
    /// nothing.
    ///
    /// ```
    /// # async fn example(accepted: taskfork_nats::Accepted) {
    /// accepted.usage().leaves().await;
    /// drop(accepted.session);
    /// # }
    /// ```
    pub async fn leaves(&self) {
        // The sender is in this value.
        let _ = self.inner.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    pub(super) fn leave(&self) {
        self.inner.leaving.send_replace(true);
    }

    /// When the session began, and how it is used.
    pub(super) fn get(&self) -> (Instant, Usage) {
        let State { began, usage } = *self.lock();
        (began, usage)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment, so the state is whole even after a panic.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn an_unused_session_is_unused_since_it_was_said_first() {
        let usage = SessionUsage::new();
        assert_eq!(usage.get().1, Usage::Unknown);
        usage.set_used(false);
        let first = usage.get().1;
        assert!(matches!(first, Usage::UnusedSince(_)));
        usage.set_used(false);
        assert_eq!(usage.get().1, first);
        usage.set_used(true);
        assert_eq!(usage.get().1, Usage::Used);
    }

    #[test]
    fn a_session_is_told_to_leave_also_before_it_listens() {
        let usage = SessionUsage::new();
        assert!(usage.leaves().now_or_never().is_none());
        usage.clone().leave();
        assert!(usage.leaves().now_or_never().is_some());
    }
}
