//! How often this process has been forked.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;

/// How many times this process has been forked since this was first asked. A child has whatever was mapped
/// then, and nobody knows what it reads.
pub(crate) fn fork_count() -> u64 {
    static COUNTS: Once = Once::new();
    COUNTS.call_once(|| {
        // SAFETY: the function adds to a number, which can be done at any time.
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
