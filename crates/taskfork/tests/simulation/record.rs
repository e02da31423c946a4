//! The calls of a run as their callers see them, and what may be said about a run.

use std::time::Duration;

use tokio::time::Instant;

use super::plan::Step;

/// How long after its timeout a call may end: the grace, the wait for the notice of a death, and a tick of the
/// clock for each.
pub(crate) const MAX_DELAY: Duration = Duration::from_millis(100 + 2000 + 10);

/// A call that begins less than this before its time is over may run out of time in such a run: it has waited for a worker
/// that a caller held, who waited for another one.
const LEFT: Duration = Duration::from_secs(10);

/// Longer bytes may not fit into a frame.
pub(super) const LONG: u64 = 65_000;

/// What has gone wrong so far in a run, so that an error can be due to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    /// A worker or a connection has ended, and no client or rule wanted that.
    WorkerEnded,
    /// A worker has sent wrong bytes.
    Garbage,
    /// A connection was not made, or ended before its hello.
    Unreachable,
}

/// The identity of a checkout: its caller, and its place among the caller's checkouts.
pub(crate) type CheckoutId = (u64, u64);

/// A call as its caller sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    /// Unique in the run.
    pub(crate) call: u64,
    pub(crate) checkout: CheckoutId,
    pub(crate) client: usize,
    pub(crate) step: Step,
    pub(crate) timeout: Duration,
    pub(crate) run_timeout: Option<Duration>,
}

/// A call, and what has become of it.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) made: Made,
    pub(super) at: Instant,
    /// After how many steps it was made, and has ended for its caller.
    pub(super) made_after: u64,
    pub(super) ended_after: Option<u64>,
    pub(super) is_begun: bool,
    pub(super) begun_at: Option<Instant>,
    pub(super) has_failed: bool,
    pub(super) end: Option<End>,
}

impl Record {
    /// When it must have ended, if nothing is before it.
    pub(super) fn due(&self) -> Instant {
        self.at + self.made.timeout + MAX_DELAY
    }

    /// Whether it may run, or wait. That goes on if its caller drops it.
    pub(super) fn may_go_on(&self) -> bool {
        matches!(self.end, None | Some(End::Dropped))
    }

    /// Whether its time was over.
    pub(super) fn is_late(&self) -> bool {
        self.at.elapsed() >= self.made.timeout
    }

    /// Whether it began shortly before its time was over.
    pub(super) fn began_late(&self) -> bool {
        self.begun_at.is_some_and(|begun| begun + LEFT > self.at + self.made.timeout)
    }

    /// Whether it may have run for this time, which was its limit.
    pub(super) fn has_run_for(&self, time: Duration) -> bool {
        let since = self.begun_at.unwrap_or(self.at);
        self.made.run_timeout == Some(time) && since.elapsed() >= time
    }

    /// Whether its outcome was not taken when another call was made.
    pub(super) fn was_open_at(&self, other: &Self) -> bool {
        self.ended_after.is_none_or(|ended| ended > other.made_after)
    }

    /// Whether it has failed, or cannot succeed.
    pub(super) fn may_fail(&self) -> bool {
        self.has_failed
            || match self.made.step {
                Step::Fail {} => true,
                Step::Send { length } | Step::Get { length } => length >= LONG,
                // Some connections carry no files.
                Step::Pass {} | Step::Open {} => true,
                _ => false,
            }
    }
}

/// How a call ended for its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Succeeded,
    Failed {
        is_fatal: bool,
        may_have_run: bool,
    },
    /// The caller dropped it.
    Dropped,
}

/// What was wrong, and after how many steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) text: String,
    pub(crate) step: u64,
}

impl Complaint {
    /// The text without its numbers and details.
    pub(crate) fn kind(&self) -> String {
        let text = self.text.split(':').next().unwrap_or_default();
        text.replace(|letter: char| letter.is_ascii_digit(), "")
    }
}

/// How often something came about.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) steps: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) fatal: u64,
    pub(crate) dropped: u64,
    /// How many messages went through rings, and how many files and buffers accompanied others.
    pub(crate) in_rings: u64,
    pub(crate) attached: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.fatal += other.fatal;
        self.dropped += other.dropped;
        self.in_rings += other.in_rings;
        self.attached += other.attached;
    }
}
