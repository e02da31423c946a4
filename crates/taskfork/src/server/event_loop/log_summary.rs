//! Logging how many repeated lines were left out.

use std::time::{Duration, Instant};

use super::EventLoop;
use crate::server::log;
use crate::server::log_limit::WINDOW;

impl EventLoop {
    /// Logs the number of omitted lines where it is due. Returns the time until that is due next.
    pub(super) fn report_omitted(&mut self) -> Option<Duration> {
        self.report_omitted_at(Instant::now())
    }

    /// Logs all numbers of omitted lines, before the server ends.
    pub(super) fn report_all_omitted(&mut self) {
        self.report_omitted_at(Instant::now() + WINDOW);
    }

    fn report_omitted_at(&mut self, now: Instant) -> Option<Duration> {
        let name = &self.options.name;
        let mut next: Option<Duration> = None;
        for (limit, what) in self.logs.limits.all() {
            if let Some(times) = limit.take_omitted(now) {
                let seconds = WINDOW.as_secs();
                log::warn!(name, times, "{what}: {times} times in the last {seconds} s");
            } else if let Some(left) = limit.time_until_report(now) {
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        next
    }
}
