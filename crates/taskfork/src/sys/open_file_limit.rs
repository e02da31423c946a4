//! The limit of open files. A server raises its own, because it has some descriptors for each worker. Workers
//! get back the limit with which the program was started, because `select(2)` takes only descriptors below
//! 1024.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit before it was raised, or `NONE` if it was not.
static BEFORE: AtomicU64 = AtomicU64::new(NONE);
const NONE: u64 = u64::MAX;

/// A raised limit. Dropping this restores the one from before.
#[derive(Debug)]
pub(crate) struct OpenFileLimit(());

impl OpenFileLimit {
    /// Raises the soft limit to the hard one. If the system refuses that, the limit stays.
    pub(crate) fn raise() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum
            && let Some(current) = current
            && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok()
        {
            BEFORE.store(current, Relaxed);
        }
        Self(())
    }

    /// Returns the number of files that may be open, or `None` without a limit.
    pub(crate) fn most(&self) -> Option<u64> {
        getrlimit(Resource::Nofile).current
    }

    /// Restores the limit from before.
    #[inline]
    pub(crate) fn restore(&self) {
        restore();
    }
}

impl Drop for OpenFileLimit {
    fn drop(&mut self) {
        restore();
        BEFORE.store(NONE, Relaxed);
    }
}

/// Restores the limit from before. It only makes system calls, so it is safe after a fork.
#[inline]
pub(super) fn restore() {
    let before = BEFORE.load(Relaxed);
    if before != NONE {
        set_soft_limit(before);
    }
}

fn set_soft_limit(before: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // User code may have set a lower limit in the meantime.
    if current.is_none_or(|current| current > before) {
        // The kernel never refuses a lower soft limit.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(before), maximum });
    }
}
