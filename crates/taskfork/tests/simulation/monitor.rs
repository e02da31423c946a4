//! Watches a run: what callers, workers and the simulated kernel report is checked after every step. The first complaint
//! ends the run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use taskfork::blob::OpenFile;
use taskfork::{Client, Error};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::plan::{ClientPlan, Plan, ServerPlan, Step};
use super::record::{CheckoutId, Complaint, Counts, End, Made, Record, Trouble};
use super::rules::State;

/// How long another process of this program, forked by some other test, may hold a file open.
const INHERITED: Duration = Duration::from_secs(30);

/// How long it takes to take an outcome that is there.
const TICK: Duration = Duration::from_millis(10);

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
