//! Detecting that the kernel has killed processes because memory ran out.

use std::cell::Cell;
use std::os::fd::BorrowedFd;

use crate::sys::KernelFile;

/// The number of such kills that are known.
#[derive(Debug)]
pub(crate) struct OomKills {
    counters: KernelFile,
    known: Cell<u64>,
}

impl Default for OomKills {
    fn default() -> Self {
        let counters = KernelFile::open("/proc/vmstat");
        Self { known: Cell::new(kills(&counters)), counters }
    }
}

impl OomKills {
    /// How many there have been since the last time that this was called.
    pub(crate) fn count_new(&self) -> u64 {
        let kills = kills(&self.counters);
        kills.saturating_sub(self.known.replace(kills))
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.counters.as_fd()
    }
}

/// The number of such kills since boot, on the whole machine.
fn kills(counters: &KernelFile) -> u64 {
    counters.number("oom_kill ").unwrap_or(0)
}
