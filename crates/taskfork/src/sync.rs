//! The one place that ignores poisoned locks.
//!
//! A lock is poisoned when a thread panics while it holds the lock. Here all code under a lock leaves the
//! data consistent at each step, and users' code never runs under one, so the data stays usable.

use std::sync::{LockResult, Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also if it is poisoned.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    ignore_poison(mutex.lock())
}

/// Returns the guard of a lock, or of a wait on a condition variable, also if the lock is poisoned.
pub(crate) fn ignore_poison<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}
