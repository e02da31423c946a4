//! What must hold after every step. The first complaint ends a run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use taskfork::blob::OpenFile;
use taskfork::error::{CallError, FatalError, Stage, TimeoutOption};
use taskfork::{Client, Error};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::caller::fill;
use super::plan::{ClientPlan, Plan, ServerPlan, Step};

/// How long another process of this program, forked by some other test, may hold a file open.
const INHERITED: Duration = Duration::from_secs(30);

/// How long after its timeout a call may end: the grace, the wait for the notice of a death, and a tick of the
/// clock for each.
pub(crate) const MAX_DELAY: Duration = Duration::from_millis(100 + 2000 + 10);

/// How long it takes to take an outcome that is there.
const TICK: Duration = Duration::from_millis(10);

/// The longest time of a call in a run without calls that hang. A longer one shows that an event is missing.
const BRISK: Duration = Duration::from_secs(60);

/// A call that begins less than this before its time is over may run out of time in such a run: it has waited for a worker
/// that a caller held, who waited for another one.
const LEFT: Duration = Duration::from_secs(10);

/// Longer bytes may not fit into a frame.
const LONG: u64 = 65_000;

/// A run with more steps than this goes in a circle.
const MAX_STEPS: u64 = 200_000;

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

#[derive(Debug)]
struct Record {
    made: Made,
    at: Instant,
    /// After how many steps it was made, and has ended for its caller.
    made_after: u64,
    ended_after: Option<u64>,
    is_begun: bool,
    begun_at: Option<Instant>,
    has_failed: bool,
    end: Option<End>,
}

impl Record {
    /// When it must have ended, if nothing is before it.
    fn due(&self) -> Instant {
        self.at + self.made.timeout + MAX_DELAY
    }

    /// Whether it may run, or wait. That goes on if its caller drops it.
    fn may_go_on(&self) -> bool {
        matches!(self.end, None | Some(End::Dropped))
    }

    /// Whether its time was over.
    fn is_late(&self) -> bool {
        self.at.elapsed() >= self.made.timeout
    }

    /// Whether it began shortly before its time was over.
    fn began_late(&self) -> bool {
        self.begun_at.is_some_and(|begun| begun + LEFT > self.at + self.made.timeout)
    }

    /// Whether it may have run for this time, which was its limit.
    fn has_run_for(&self, time: Duration) -> bool {
        let since = self.begun_at.unwrap_or(self.at);
        self.made.run_timeout == Some(time) && since.elapsed() >= time
    }

    /// Whether its outcome was not taken when another call was made.
    fn was_open_at(&self, other: &Self) -> bool {
        self.ended_after.is_none_or(|ended| ended > other.made_after)
    }
}

impl Record {
    /// Whether it has failed, or cannot succeed.
    fn may_fail(&self) -> bool {
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
enum End {
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

#[derive(Debug)]
struct State {
    start: Instant,
    calls: BTreeMap<u64, Record>,
    checkouts: BTreeMap<CheckoutId, Vec<u64>>,
    /// When the calls that callers wait for must have ended.
    limits: BTreeSet<(Instant, u64)>,
    closed: BTreeSet<usize>,
    /// The clients that have one worker, each with the last checkout of which a call has begun.
    single: BTreeMap<usize, CheckoutId>,
    /// The worker of each checkout of which a call has begun, and the checkouts of each worker.
    workers: BTreeMap<CheckoutId, u64>,
    served: BTreeMap<u64, Vec<CheckoutId>>,
    /// The longest queues of clients.
    queues: BTreeMap<usize, usize>,
    /// The checkouts in the order in which they began.
    order: BTreeMap<CheckoutId, usize>,
    aborted: BTreeSet<CheckoutId>,
    /// Whether connections carry files.
    carries_files: bool,
    /// Whether a call never takes as long as `BRISK`.
    is_brisk: bool,
    /// The pipes whose other ends calls pass on.
    pipes: Vec<(u64, PipeReader)>,
    troubles: BTreeSet<Trouble>,
    /// How much the clock has jumped.
    jumped: Duration,
    /// Whether it is reported when calls begin. Otherwise that is known at the end.
    knows_beginnings: bool,
    /// Whether that was so from the start.
    is_live: bool,
    counts: Counts,
    complaint: Option<Complaint>,
    /// The steps so far, if they are to be shown.
    trace: Option<Vec<String>>,
}

/// Watches a run.
#[derive(Debug, Clone)]
pub(crate) struct Monitor {
    state: Arc<Mutex<State>>,
    complained: Arc<Notify>,
}

impl Monitor {
    /// `knows_beginnings` says whether [`begun`](Self::begun) is called when a worker begins a call.
    pub(crate) fn new(knows_beginnings: bool, has_trace: bool) -> Self {
        let state = State {
            start: Instant::now(),
            calls: BTreeMap::new(),
            checkouts: BTreeMap::new(),
            limits: BTreeSet::new(),
            closed: BTreeSet::new(),
            single: BTreeMap::new(),
            workers: BTreeMap::new(),
            served: BTreeMap::new(),
            queues: BTreeMap::new(),
            order: BTreeMap::new(),
            aborted: BTreeSet::new(),
            carries_files: true,
            is_brisk: false,
            pipes: Vec::new(),
            troubles: BTreeSet::new(),
            jumped: Duration::ZERO,
            knows_beginnings,
            is_live: knows_beginnings,
            counts: Counts::default(),
            complaint: None,
            trace: has_trace.then(Vec::new),
        };
        Self { state: Arc::new(Mutex::new(state)), complained: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a step, and checks what time alone can make wrong.
    pub(crate) fn step(&self, what: impl FnOnce() -> String) {
        self.with(what, |_| Ok(()));
    }

    fn with(
        &self,
        what: impl FnOnce() -> String,
        check: impl FnOnce(&mut State) -> Result<(), String>,
    ) {
        let mut state = self.lock();
        state.counts.steps += 1;
        let now = Instant::now();
        let start = state.start;
        if let Some(trace) = &mut state.trace {
            let at = now.duration_since(start).as_secs_f64() * 1000.0;
            trace.push(format!("{at:>9.1} ms  {}", what()));
        }
        let checked = check(&mut state).and_then(|()| state.check_time(now));
        if let Err(text) = checked {
            self.set_complaint(&mut state, text);
        }
    }

    fn set_complaint(&self, state: &mut State, text: String) {
        let step = state.counts.steps;
        state.complaint.get_or_insert(Complaint { text, step });
        self.complained.notify_one();
    }

    /// Reports something that must not be.
    pub(crate) fn complain(&self, text: impl Into<String>) {
        self.set_complaint(&mut self.lock(), text.into());
    }

    /// Waits for a complaint.
    pub(crate) async fn complained(&self) {
        self.complained.notified().await;
    }

    pub(crate) fn complaint(&self) -> Option<Complaint> {
        self.lock().complaint.clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.lock().trace.clone().unwrap_or_default()
    }

    pub(crate) fn happened(&self, trouble: Trouble) {
        self.lock().troubles.insert(trouble);
    }

    /// The clock jumps by this much now. What is due meanwhile may end right after that.
    pub(crate) fn clock_jumps(&self, by: Duration) {
        let mut state = self.lock();
        state.jumped += by;
        state.limits = state.limits.iter().map(|&(limit, call)| (limit + by, call)).collect();
    }

    /// How much the clock has jumped so far.
    pub(crate) fn jumped(&self) -> Duration {
        self.lock().jumped
    }

    pub(crate) fn closed(&self, client: usize) {
        self.with(
            || format!("client {client} is closed"),
            |state| {
                state.closed.insert(client);
                Ok(())
            },
        );
    }

    /// Closes a client. Nothing of it may be left.
    pub(crate) async fn close(&self, number: usize, client: &Client) {
        self.closed(number);
        client.close().await;
        let stats = client.stats();
        if (stats.idle, stats.busy, stats.connecting, stats.queued) != (0, 0, 0, 0) {
            self.complain(format!("client {number} has something left: {stats:?}"));
        }
    }

    pub(crate) fn aborted(&self, checkout: CheckoutId) {
        self.with(
            || format!("checkout {checkout:?} is aborted"),
            |state| {
                state.aborted.insert(checkout);
                Ok(())
            },
        );
    }

    /// A caller begins a checkout.
    pub(crate) fn begins(&self, checkout: CheckoutId) {
        self.with(
            || format!("checkout {checkout:?} begins"),
            |state| {
                let place = state.order.len();
                state.order.insert(checkout, place);
                Ok(())
            },
        );
    }

    /// Registers what a plan permits.
    pub(crate) fn register_plan(&self, plan: &Plan) {
        let ServerPlan::Server { sharing, .. } = plan.server;
        let mut state = self.lock();
        (state.carries_files, state.is_brisk) = (sharing > 0, plan.is_brisk());
    }

    /// A worker has got a message through a ring, or sent one.
    pub(crate) fn used_ring(&self) {
        self.lock().counts.in_rings += 1;
    }

    /// Counts the files and buffers that have accompanied a message.
    pub(crate) fn attached(&self, count: usize) {
        self.lock().counts.attached += count as u64;
    }

    /// Makes a pipe for a call to pass on. Returns the end for writing, unless no descriptor is free.
    pub(crate) fn pipe(&self, call: u64) -> Option<OpenFile> {
        let (reader, writer) = std::io::pipe().ok()?;
        self.lock().pipes.push((call, reader));
        Some(OpenFile::from(OwnedFd::from(writer)))
    }

    /// At the end of a run, no process has a file open any more, and each file that was passed has the byte of its call.
    pub(crate) fn check_pipes(&self) {
        let pipes = std::mem::take(&mut self.lock().pipes);
        for (call, pipe) in pipes {
            let checked = read_all(pipe).and_then(|bytes| self.lock().check_passed(call, &bytes));
            if let Err(text) = checked {
                self.complain(text);
            }
        }
    }

    /// Registers a client. If it has one worker, its checkouts get it in the order in which they begin.
    pub(crate) fn register(&self, client: usize, plan: ClientPlan) {
        let ClientPlan::Client { workers, queue, .. } = plan;
        let mut state = self.lock();
        if workers == 1 {
            state.single.insert(client, CheckoutId::default());
        }
        if queue > 0 {
            state.queues.insert(client, queue as usize);
        }
    }

    /// A caller makes a call.
    pub(crate) fn made(&self, made: Made) {
        self.with(
            || format!("call {} is made: {} {:?}", made.call, made.step, made.checkout),
            |state| {
                let calls = state.checkouts.entry(made.checkout).or_default();
                calls.push(made.call);
                let at = Instant::now();
                let record = Record {
                    made,
                    at,
                    made_after: state.counts.steps,
                    ended_after: None,
                    is_begun: false,
                    begun_at: None,
                    has_failed: false,
                    end: None,
                };

                state.calls.insert(made.call, record);
                Ok(())
            },
        );
    }

    /// A caller waits for the outcome of a call.
    pub(crate) fn awaited(&self, call: u64) {
        self.with(
            || format!("call {call} is waited for"),
            |state| {
                // The time limit of a call is looked at once the calls before it have ended.
                let record = state.record(call)?;
                let before = state
                    .others(record)
                    .filter(|other| other.made.call < call && other.may_go_on());
                let due = before.chain([record]).map(Record::due).max().unwrap_or(record.at);
                // No test asserts how fast a real machine is.
                if state.knows_beginnings {
                    state.limits.insert((due.max(Instant::now() + TICK), call));
                }
                Ok(())
            },
        );
    }

    /// A worker begins a call.
    pub(crate) fn begun(&self, call: u64, worker: u64) {
        self.with(
            || format!("worker {worker} begins call {call}"),
            |state| state.begun(call).and_then(|()| state.begun_by(call, worker)),
        );
    }

    /// A worker answers a call with an error.
    pub(crate) fn failed(&self, call: u64) {
        self.with(
            || format!("call {call} fails in its worker"),
            |state| {
                state.calls.entry(call).and_modify(|record| record.has_failed = true);
                Ok(())
            },
        );
    }

    /// A caller drops a call.
    pub(crate) fn dropped(&self, call: u64) {
        self.with(
            || format!("call {call} is dropped"),
            |state| {
                state.counts.dropped += 1;
                state.end(call, End::Dropped)
            },
        );
    }

    /// A call ends for its caller.
    pub(crate) fn ended(&self, call: u64, result: &Result<u64, Error>) {
        let what = || match result {
            Ok(value) => format!("call {call} returns {value}"),
            Err(error) => format!("call {call} fails: {error}"),
        };
        self.with(what, |state| match result {
            Ok(value) => {
                state.counts.succeeded += 1;
                state.succeeded(call, *value)
            }
            Err(error) => {
                *(if error.is_fatal() {
                    &mut state.counts.fatal
                } else {
                    &mut state.counts.failed
                }) += 1;
                state.ended_with(call, error)
            }
        });
    }

    /// All callers have ended. `begun` has the calls that workers have begun, in that order, if that was not reported before.
    pub(crate) fn finish(&self, begun: &[u64]) {
        self.with(
            || "all callers have ended".to_owned(),
            |state| {
                if !state.knows_beginnings {
                    state.knows_beginnings = true;
                    let ends: Vec<_> =
                        state.calls.values().map(|record| (record.made.call, record.end)).collect();
                    // Each beginning is compared with the end, which came later.
                    for call in begun {
                        state.begun_before_end(*call)?;
                        state.calls.entry(*call).and_modify(|record| {
                            record.has_failed |= record.made.step == Step::Fail {};
                        });
                    }
                    for (call, end) in ends {
                        let record = &state.calls[&call];
                        if end == Some(End::Succeeded) && !record.is_begun {
                            return Err(format!("call {call} was not begun, and has an answer"));
                        }
                    }
                }
                match state.calls.values().find(|record| record.end.is_none()) {
                    Some(record) => Err(format!("call {} never ends", record.made.call)),
                    None => Ok(()),
                }
            },
        );
    }
}

/// Reads a pipe whose write ends are closed.
fn read_all(mut pipe: PipeReader) -> Result<Vec<u8>, String> {
    let limit = rustix::event::Timespec { tv_sec: INHERITED.as_secs() as i64, tv_nsec: 0 };
    let mut bytes = Vec::new();
    loop {
        let mut ready = [PollFd::new(&pipe, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut ready, Some(&limit))) {
            Ok(count) if count > 0 => {}
            _ => return Err("a descriptor that was passed is open at the end".to_owned()),
        }
        let mut buffer = [0; 16];
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes.extend(&buffer[..length]),
            Err(error) => return Err(format!("a pipe cannot be read: {error}")),
        }
    }
}

impl State {
    /// What must be in the file of a call.
    fn check_passed(&self, call: u64, bytes: &[u8]) -> Result<(), String> {
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

    fn check_time(&self, now: Instant) -> Result<(), String> {
        if let Some((_, call)) = self.limits.first().filter(|(limit, _)| *limit < now) {
            return Err(format!("call {call} ends late"));
        }
        match self.counts.steps > MAX_STEPS {
            true => Err("it goes on without end".to_owned()),
            false => Ok(()),
        }
    }

    fn record(&self, call: u64) -> Result<&Record, String> {
        self.calls.get(&call).ok_or_else(|| format!("nobody has made call {call}"))
    }

    /// The calls of the same checkout before and behind this one.
    fn others(&self, record: &Record) -> impl Iterator<Item = &Record> {
        let (own, checkout) = (record.made.call, &self.checkouts[&record.made.checkout]);
        checkout.iter().filter(move |call| **call != own).map(|call| &self.calls[call])
    }

    fn is_behind_failed(&self, record: &Record) -> bool {
        let before = self.others(record).filter(|other| other.made.call < record.made.call);
        let mut failed = before.filter(|other| match other.end {
            // What is known only at the end says nothing of the order: the call may have begun before that.
            Some(End::Failed { is_fatal: true, .. }) => self.is_live,
            _ => other.has_failed && other.was_open_at(record),
        });
        failed.next().is_some()
    }

    fn begun(&mut self, call: u64) -> Result<(), String> {
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
    fn begun_by(&mut self, call: u64, worker: u64) -> Result<(), String> {
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

    fn begun_before_end(&mut self, call: u64) -> Result<(), String> {
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

    fn end(&mut self, call: u64, end: End) -> Result<(), String> {
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

    fn succeeded(&mut self, call: u64, value: u64) -> Result<(), String> {
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

    fn ended_with(&mut self, call: u64, error: &Error) -> Result<(), String> {
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
    fn fits(&self, record: &Record, error: &Error) -> bool {
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
