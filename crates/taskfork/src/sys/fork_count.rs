//! How often this process has been forked.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns how many times this process has forked since the first call. A child inherits the mappings, so
/// memory that it may read must not be reused.
pub(crate) fn fork_count() -> u64 {
    static COUNTS: Once = Once::new();
    COUNTS.call_once(|| {
        // SAFETY: the handler only adds to an atomic, which is safe at any instant.
        unsafe { libc::pthread_atfork(Some(count_fork), None, None) };
    });
    FORKS.load(Ordering::SeqCst)
}

static FORKS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::test_support::in_child;

    #[test]
    fn forks_are_counted() {
        let before = fork_count();
        in_child(|| 0);
        assert!(fork_count() > before);
    }
}
