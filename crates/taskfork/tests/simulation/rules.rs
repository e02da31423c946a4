//! What must hold for the calls of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::PipeReader;
use std::time::Duration;

use taskfork::Error;
use taskfork::error::{CallError, FatalError, Stage, TimeoutOption};
use tokio::time::Instant;

use super::caller::fill;
use super::plan::Step;
use super::record::{CheckoutId, Complaint, Counts, End, LONG, Made, Record, Trouble};

/// The longest time of a call in a run without calls that hang. A longer one shows that an event is missing.
const BRISK: Duration = Duration::from_secs(60);

/// A run with more steps than this goes in a circle.
const MAX_STEPS: u64 = 200_000;

/// What is known of a run.
#[derive(Debug)]
pub(super) struct State {
    pub(super) start: Instant,
    pub(super) calls: BTreeMap<u64, Record>,
    pub(super) checkouts: BTreeMap<CheckoutId, Vec<u64>>,
    /// When the calls that callers wait for must have ended.
    pub(super) limits: BTreeSet<(Instant, u64)>,
    pub(super) closed: BTreeSet<usize>,
    /// The clients that have one worker, each with the last checkout of which a call has begun.
    pub(super) single: BTreeMap<usize, CheckoutId>,
    /// The worker of each checkout of which a call has begun, and the checkouts of each worker.
    pub(super) workers: BTreeMap<CheckoutId, u64>,
    pub(super) served: BTreeMap<u64, Vec<CheckoutId>>,
    /// The longest queues of clients.
    pub(super) queues: BTreeMap<usize, usize>,
    /// The checkouts in the order in which they began.
    pub(super) order: BTreeMap<CheckoutId, usize>,
    pub(super) aborted: BTreeSet<CheckoutId>,
    /// Whether connections carry files.
    pub(super) carries_files: bool,
    /// Whether a call never takes as long as `BRISK`.
    pub(super) is_brisk: bool,
    /// The pipes whose other ends calls pass on.
    pub(super) pipes: Vec<(u64, PipeReader)>,
    pub(super) troubles: BTreeSet<Trouble>,
    /// How much the clock has jumped.
    pub(super) jumped: Duration,
    /// Whether it is reported when calls begin. Otherwise that is known at the end.
    pub(super) knows_beginnings: bool,
    /// Whether that was so from the start.
    pub(super) is_live: bool,
    pub(super) counts: Counts,
    pub(super) complaint: Option<Complaint>,
    /// The steps so far, if they are to be shown.
    pub(super) trace: Option<Vec<String>>,
}

impl State {
    /// What must be in the file of a call.
    pub(super) fn check_passed(&self, call: u64, bytes: &[u8]) -> Result<(), String> {
        let record = self.record(call)?;
        let has_succeeded = record.end == Some(End::Succeeded);
        let is_right = match bytes {
            [] => !has_succeeded,
            [byte] => *byte == fill(call) && (record.is_begun || !self.knows_beginnings),
            _ => false,
        };
        match is_right {
            true => Ok(()),
            false => Err(format!("the file of call {call} has the wrong bytes: {bytes:?}")),
        }
    }

    pub(super) fn check_time(&self, now: Instant) -> Result<(), String> {
        if let Some((_, call)) = self.limits.first().filter(|(limit, _)| *limit < now) {
            return Err(format!("call {call} ends late"));
        }
        match self.counts.steps > MAX_STEPS {
            true => Err("it goes on without end".to_owned()),
            false => Ok(()),
        }
    }

    pub(super) fn record(&self, call: u64) -> Result<&Record, String> {
        self.calls.get(&call).ok_or_else(|| format!("nobody has made call {call}"))
    }

    /// The calls of the same checkout before and behind this one.
    pub(super) fn others(&self, record: &Record) -> impl Iterator<Item = &Record> {
        let (own, checkout) = (record.made.call, &self.checkouts[&record.made.checkout]);
        checkout.iter().filter(move |call| **call != own).map(|call| &self.calls[call])
    }

    pub(super) fn is_behind_failed(&self, record: &Record) -> bool {
        let before = self.others(record).filter(|other| other.made.call < record.made.call);
        let mut failed = before.filter(|other| match other.end {
            // What is known only at the end says nothing of the order: the call may have begun before that.
            Some(End::Failed { is_fatal: true, .. }) => self.is_live,
            _ => other.has_failed && other.was_open_at(record),
        });
        failed.next().is_some()
    }

    pub(super) fn begun(&mut self, call: u64) -> Result<(), String> {
        let record = self.record(call)?;
        match record.end {
            Some(End::Succeeded) => return Err(format!("call {call} is begun behind its answer")),
            Some(End::Failed { may_have_run: false, .. }) => {
                return Err(format!("call {call} is begun, and its error says that it was not"));
            }
            _ => {}
        }
        self.begun_before_end(call)
    }

    /// A checkout has one worker, and a worker one checkout at a time.
    pub(super) fn begun_by(&mut self, call: u64, worker: u64) -> Result<(), String> {
        let checkout = self.record(call)?.made.checkout;
        if *self.workers.entry(checkout).or_insert(worker) != worker {
            return Err(format!("call {call} is begun by another worker of its checkout"));
        }
        let served = self.served.entry(worker).or_default();
        if served.last() == Some(&checkout) {
            return Ok(());
        }
        if served.contains(&checkout) {
            return Err(format!("call {call} is begun though its worker has another checkout"));
        }
        served.push(checkout);
        Ok(())
    }

    pub(super) fn begun_before_end(&mut self, call: u64) -> Result<(), String> {
        let record = self.record(call)?;
        if record.is_begun {
            return Err(format!("call {call} is begun twice"));
        }
        if let Some(End::Failed { may_have_run: false, .. }) = record.end {
            return Err(format!("call {call} is begun, and its error says that it was not"));
        }
        if self.others(record).any(|other| other.made.call > call && other.is_begun) {
            return Err(format!("call {call} is begun behind a later one"));
        }
        if self.is_behind_failed(record) {
            return Err(format!("call {call} is begun behind a failed one"));
        }
        let Made { checkout, client, .. } = record.made;
        if let Some(last) = self.single.get_mut(&client) {
            let last = std::mem::replace(last, checkout);
            if self.order.get(&last) > self.order.get(&checkout) {
                return Err(format!("call {call} is begun behind one of a later checkout"));
            }
        }
        self.calls.entry(call).and_modify(|record| {
            record.is_begun = true;
            record.begun_at = Some(Instant::now());
        });
        Ok(())
    }

    pub(super) fn end(&mut self, call: u64, end: End) -> Result<(), String> {
        let record = self.calls.get_mut(&call).ok_or_else(|| format!("who made call {call}?"))?;
        if record.end.is_some() {
            return Err(format!("call {call} ends twice"));
        }
        record.end = Some(end);
        record.ended_after = Some(self.counts.steps);
        // Its limit may have moved.
        self.limits.retain(|(_, other)| *other != call);
        Ok(())
    }

    pub(super) fn succeeded(&mut self, call: u64, value: u64) -> Result<(), String> {
        let record = self.record(call)?;
        if value != call {
            return Err(format!("call {call} has another one's answer: {value}"));
        }
        if self.knows_beginnings && !record.is_begun {
            return Err(format!("call {call} was not begun, and has an answer"));
        }
        if self.is_behind_failed(record) {
            return Err(format!("call {call} succeeds behind a failed one"));
        }
        self.end(call, End::Succeeded)
    }

    pub(super) fn ended_with(&mut self, call: u64, error: &Error) -> Result<(), String> {
        let record = self.record(call)?;
        let (is_fatal, may_have_run) = (error.is_fatal(), error.may_have_run());
        if record.is_begun && !may_have_run {
            return Err(format!(
                "call {call} was begun, and its error says that it was not: {error}"
            ));
        }
        if !self.fits(record, error) {
            return Err(format!("call {call} fails without a reason: {error}"));
        }
        let is_dropped = matches!(error, Error::Call { error: CallError::Dropped { .. }, .. });
        let has_failed = !is_fatal && !is_dropped;
        self.calls.entry(call).and_modify(|record| record.has_failed |= has_failed);
        self.end(call, End::Failed { is_fatal, may_have_run })
    }

    /// Whether something has happened for which a call may end so.
    pub(super) fn fits(&self, record: &Record, error: &Error) -> bool {
        let Made { call, checkout, client, step, .. } = record.made;
        let happened = |trouble| self.troubles.contains(&trouble);
        // The time of any call of the checkout may have been over.
        let is_late = |after: Option<Duration>| {
            let mut calls = self.others(record).chain([record]);
            calls.any(|call| call.is_late() && after.is_none_or(|after| after == call.made.timeout))
        };
        match error {
            Error::Call { error: CallError::Interface(failure), .. } => {
                step == Step::Fail {}
                    && failure.message() == call.to_string()
                    && (record.is_begun || !self.knows_beginnings)
            }
            Error::Call { error: CallError::Dropped { .. }, .. } => {
                self.others(record).any(|other| {
                    let may_be_open = other.was_open_at(record) || other.end == Some(End::Dropped);
                    other.made.call < call && other.may_fail() && may_be_open
                })
            }
            Error::Call { error: CallError::Arguments { .. }, .. } => {
                matches!(step, Step::Send { length } if length >= LONG)
                    || step == Step::Pass {} && !self.carries_files
            }
            Error::Call { error: CallError::Result { .. }, .. } => {
                matches!(step, Step::Get { length } if length >= LONG)
                    || step == Step::Open {} && !self.carries_files
            }
            Error::Fatal { cause, .. } => match cause {
                // A caller that holds one checkout may wait for another, so some get no worker.
                FatalError::TimedOut { after, stage: Stage::Running, .. }
                    if self.is_brisk && *after >= BRISK =>
                {
                    let mut calls = self.others(record).chain([record]);
                    is_late(Some(*after)) && calls.any(Record::began_late)
                }
                FatalError::TimedOut { after, limit: TimeoutOption::RunTimeout, .. } => {
                    self.others(record).chain([record]).any(|call| call.has_run_for(*after))
                }
                FatalError::TimedOut { after, .. } => is_late(Some(*after)),
                FatalError::CannotConnect { .. } => is_late(None) && happened(Trouble::Unreachable),
                FatalError::WorkerDied(_) => happened(Trouble::WorkerEnded),
                FatalError::Protocol { .. } => {
                    happened(Trouble::Garbage) || happened(Trouble::WorkerEnded)
                }
                FatalError::Aborted { .. } => self.aborted.contains(&checkout),
                FatalError::ClientClosed => self.closed.contains(&client),
                FatalError::Overloaded { queued } => {
                    self.queues.get(&client).is_some_and(|longest| queued >= longest)
                }
                _ => false,
            },
            _ => false,
        }
    }
}
