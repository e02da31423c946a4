//! Rate limits for log lines that repeat, for example while descriptors have run out. The first
//! lines are logged. The rest are counted, and their number is logged.

use std::time::{Duration, Instant};

/// The time in which lines of one kind are counted together.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// The limit of one kind of line.
#[derive(Debug)]
pub(crate) struct LogLimit {
    /// The number of lines that are logged in [`WINDOW`].
    limit: u32,
    since: Option<Instant>,
    logged: u32,
    omitted: u64,
}

impl LogLimit {
    pub(crate) const fn new(limit: u32) -> Self {
        Self { limit, since: None, logged: 0, omitted: 0 }
    }

    /// Returns whether a line may be logged now. Counts it as omitted otherwise.
    pub(crate) fn acquire(&mut self, now: Instant) -> bool {
        self.acquire_weighted(1, now)
    }

    /// Like [`acquire`](Self::acquire), for a line that counts as several.
    pub(super) fn acquire_weighted(&mut self, weight: u32, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            (self.since, self.logged) = (Some(now), 0);
        }
        let is_allowed = self.logged < self.limit;
        match is_allowed {
            true => self.logged = self.logged.saturating_add(weight),
            false => self.omitted += 1,
        }
        is_allowed
    }

    /// The time until the number of omitted lines has to be logged. `None` if there are none.
    pub(super) fn time_until_report(&self, now: Instant) -> Option<Duration> {
        let since = self.since.filter(|_| self.omitted > 0)?;
        Some((since + WINDOW).saturating_duration_since(now))
    }

    /// Returns the number of omitted lines, if it has to be logged now.
    pub(super) fn take_omitted(&mut self, now: Instant) -> Option<u64> {
        (self.time_until_report(now)? == Duration::ZERO).then(|| std::mem::take(&mut self.omitted))
    }

    /// Returns the number of omitted lines that have not been reported, if there are any.
    pub(super) fn take_all_omitted(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.omitted)).filter(|omitted| *omitted > 0)
    }
}

/// The limits of the server's log lines.
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
    /// All limits, with the text for the number of omitted lines.
    pub(super) fn all(&mut self) -> [(&mut LogLimit, &'static str); 8] {
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
            (&mut self.workers, "could not start more workers"),
            (&mut self.files, "found more changes of the sockets' files"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_counted_and_not_logged_one_by_one() {
        let (mut limit, start) = (LogLimit::new(10), Instant::now());
        assert_eq!(limit.time_until_report(start), None);
        assert_eq!((0..1000).filter(|_| limit.acquire(start)).count(), 10);
        let before = start + WINDOW / 2;
        assert_eq!(
            (limit.take_omitted(before), limit.time_until_report(before)),
            (None, Some(WINDOW / 2))
        );
        let end = start + WINDOW;
        assert_eq!((limit.take_omitted(end), limit.take_omitted(end)), (Some(990), None));
        assert_eq!((0..1000).filter(|_| limit.acquire(end)).count(), 10);
    }

    #[test]
    fn each_line_is_logged_or_counted_however_late_the_number_is_asked_for() {
        let (mut limit, start) = (LogLimit::new(2), Instant::now());
        let (mut logged, mut counted) = (0, 0);
        for step in 0..1000 {
            let now = start + step * WINDOW / 37;
            logged += u64::from(limit.acquire(now));
            if step % 50 == 0 {
                counted += limit.take_omitted(now).unwrap_or(0);
            }
        }
        counted += limit.take_omitted(start + 1000 * WINDOW).unwrap_or(0);
        assert_eq!(logged + counted, 1000);
    }
}
