//! The limit of open files. A server raises its own, since it has some descriptors for each worker. Workers get the
//! limit back that the program was started with: `select` takes descriptors below 1024 only.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit before it was raised; `NONE` where it was not.
static BEFORE: AtomicU64 = AtomicU64::new(NONE);
const NONE: u64 = u64::MAX;

/// The raised limit; the one before holds again when this is dropped.
#[derive(Debug)]
pub(crate) struct OpenFileLimit(());

impl OpenFileLimit {
    /// Raises the soft limit to the hard one. Where that is refused the limit stays.
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

    /// How many files may be open; nothing where there is no limit.
    pub(crate) fn most(&self) -> Option<u64> {
        getrlimit(Resource::Nofile).current
    }

    /// Sets the limit again that was there before.
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

/// Sets the limit again that was there before. It makes system calls only.
#[inline]
pub(super) fn restore() {
    let before = BEFORE.load(Relaxed);
    if before != NONE {
        set_soft_limit(before);
    }
}

fn set_soft_limit(before: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Somebody may have set a lower one meanwhile.
    if current.is_none_or(|current| current > before) {
        // A lower soft limit is never refused.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(before), maximum });
    }
}
