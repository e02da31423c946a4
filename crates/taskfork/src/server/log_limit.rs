//! Lines of the log that would repeat without limit, as while descriptors have run out: the first are logged,
//! the rest are counted, and their number is logged.

use std::time::{Duration, Instant};

use super::event_loop::EventLoop;
use super::log;

/// So long are lines of a kind counted together.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// Limits one kind of line.
#[derive(Debug)]
pub(crate) struct LogLimit {
    /// So many are logged in [`WINDOW`].
    most: u32,
    since: Option<Instant>,
    logged: u32,
    omitted: u64,
}

impl LogLimit {
    pub(crate) const fn new(most: u32) -> Self {
        Self { most, since: None, logged: 0, omitted: 0 }
    }

    /// Whether a line is to be logged now. Counts it if not.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        self.allows_weighing(1, now)
    }

    /// The same for a line that counts for several.
    pub(super) fn allows_weighing(&mut self, weight: u32, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            (self.since, self.logged) = (Some(now), 0);
        }
        let is_allowed = self.logged < self.most;
        match is_allowed {
            true => self.logged = self.logged.saturating_add(weight),
            false => self.omitted += 1,
        }
        is_allowed
    }

    /// The time until the number of omitted lines is to be logged, if there are any.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        let since = self.since.filter(|_| self.omitted > 0)?;
        Some((since + WINDOW).saturating_duration_since(now))
    }

    /// How many lines were omitted, if that is to be logged now.
    pub(super) fn take_omitted(&mut self, now: Instant) -> Option<u64> {
        (self.left(now)? == Duration::ZERO).then(|| std::mem::take(&mut self.omitted))
    }

    /// How many lines were omitted and not told, if there are any.
    pub(super) fn take_all_omitted(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.omitted)).filter(|omitted| *omitted > 0)
    }
}

/// The lines of a server that can repeat.
#[derive(Debug)]
pub(crate) struct LogLimits {
    pub(super) refusals: LogLimit,
    pub(super) deaths: LogLimit,
    pub(super) accept: LogLimit,
    pub(super) accept_status: LogLimit,
    pub(super) helpers: LogLimit,
    pub(super) guardians: LogLimit,
    pub(super) workers: LogLimit,
    pub(super) files: LogLimit,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            refusals: LogLimit::new(10),
            deaths: LogLimit::new(50),
            accept: LogLimit::new(1),
            accept_status: LogLimit::new(1),
            helpers: LogLimit::new(1),
            guardians: LogLimit::new(3),
            workers: LogLimit::new(3),
            files: LogLimit::new(10),
        }
    }
}

impl LogLimits {
    /// All of them, with what the lines that were omitted say.
    fn all(&mut self) -> [(&mut LogLimit, &'static str); 8] {
        [
            (&mut self.refusals, "refused more connections"),
            (&mut self.deaths, "more workers have died"),
            (&mut self.accept, "could not accept connections more often"),
            (
                &mut self.accept_status,
                "could not accept connections to the status socket more often",
            ),
            (&mut self.helpers, "could not fork a helper more often"),
            (&mut self.guardians, "replaced the guardian more often"),
            (&mut self.workers, "could not assign_client more workers"),
            (&mut self.files, "found more changes of the sockets' files"),
        ]
    }
}

impl EventLoop {
    /// Logs how many lines were omitted where it is time. Returns the time until that is due next.
    pub(super) fn report_omitted(&mut self) -> Option<Duration> {
        self.report_omitted_at(Instant::now())
    }

    /// The same for all that is left when the server ends.
    pub(super) fn report_all_omitted(&mut self) {
        self.report_omitted_at(Instant::now() + WINDOW);
    }

    fn report_omitted_at(&mut self, now: Instant) -> Option<Duration> {
        let name = &self.options.name;
        let mut next: Option<Duration> = None;
        for (limit, what) in self.log_limits.all() {
            if let Some(times) = limit.take_omitted(now) {
                let seconds = WINDOW.as_secs();
                log::warn!(name, times, "{what}: {times} times in the last {seconds} s");
            } else if let Some(left) = limit.left(now) {
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_counted_and_not_logged_one_by_one() {
        let (mut limit, start) = (LogLimit::new(10), Instant::now());
        assert_eq!(limit.left(start), None);
        assert_eq!((0..1000).filter(|_| limit.allows(start)).count(), 10);
        let before = start + WINDOW / 2;
        assert_eq!((limit.take_omitted(before), limit.left(before)), (None, Some(WINDOW / 2)));
        let end = start + WINDOW;
        assert_eq!((limit.take_omitted(end), limit.take_omitted(end)), (Some(990), None));
        assert_eq!((0..1000).filter(|_| limit.allows(end)).count(), 10);
    }

    #[test]
    fn each_line_is_logged_or_counted_however_late_the_number_is_asked_for() {
        let (mut limit, start) = (LogLimit::new(2), Instant::now());
        let (mut logged, mut counted) = (0, 0);
        for step in 0..1000 {
            let now = start + step * WINDOW / 37;
            logged += u64::from(limit.allows(now));
            if step % 50 == 0 {
                counted += limit.take_omitted(now).unwrap_or(0);
            }
        }
        counted += limit.take_omitted(start + 1000 * WINDOW).unwrap_or(0);
        assert_eq!(logged + counted, 1000);
    }
}
