//! Whether the kernel has killed for want of memory.

use std::cell::Cell;

use crate::sys;

/// How many such kills are known of.
#[derive(Debug)]
pub(crate) struct OutOfMemory {
    known: Cell<u64>,
}

impl Default for OutOfMemory {
    fn default() -> Self {
        Self { known: Cell::new(kills()) }
    }
}

impl OutOfMemory {
    /// Whether there have been more since this was asked last.
    pub(crate) fn has_struck(&self) -> bool {
        let kills = kills();
        kills > self.known.replace(kills)
    }
}

/// How many processes the kernel has killed so, in this machine and all its groups of processes.
fn kills() -> u64 {
    let counters = sys::read_at_once("/proc/vmstat");
    let count = counters.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
