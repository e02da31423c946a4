//! How many workers the limit of open files allows.

use super::EventLoop;
use crate::server::log;
use crate::server::stderr::Stderr;

/// Descriptors that are open for a moment: an accepted client, a new worker's pipe, status
/// requests.
const RESERVE: u64 = 8;

impl EventLoop {
    /// Logs how many workers the limit of open files allows, if that is less than `max_workers`.
    pub(super) fn warn_of_few_open_files(&self) {
        let Some(limit) = self.process.open_files.most() else { return };
        let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
        let allowed = allowed(limit, open.count() as u64, self.options.stderr);
        let max_workers = self.supervisor.max_workers();
        if allowed < max_workers as u64 {
            log::warn!(
                name = self.options.name,
                "the hard limit of {limit} open files allows {allowed} workers, fewer than max_workers ({max_workers}): \
                 raise it (ulimit -Hn, LimitNOFILE of systemd), or set max_workers to {allowed}"
            );
        }
    }
}

/// The number of workers of a server that may open `limit` files and has `open` files without any
/// worker.
fn allowed(limit: u64, open: u64, stderr: Stderr) -> u64 {
    // The connection, and the pipe of standard error.
    let each = 1 + u64::from(stderr != Stderr::Inherit);
    limit.saturating_sub(open).saturating_sub(RESERVE) / each
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_takes_a_descriptor_or_two() {
        assert_eq!(allowed(100, 20, Stderr::Capture), 36);
        assert_eq!(allowed(100, 20, Stderr::Log), 36);
        assert_eq!(allowed(100, 20, Stderr::Inherit), 72);
        assert_eq!(allowed(10, 20, Stderr::Capture), 0);
    }
}
