//! The worker's side of a slot.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use super::layout::{
    CALLS, CHECKOUTS, CLIENT, CLIENT_GONE, DEADLINE, DEATH_UNREPORTABLE, HARD_DEADLINE,
    MAX_WAITING, METHOD, METHOD_WORDS, PROGRAM, PROGRAM_STAGE, PROGRESS, PROGRESS_DONE,
    PROGRESS_TEXT, PROGRESS_TEXT_WORDS, PROGRESS_TOTAL, RETIRE, SAMPLE, SAMPLE_READY, SINCE,
    SKIPPED, STACK, STACK_READY, STATE, TABLE_WORDS, TAKES_OVER, VIOLATION, WAITING, WAITING_AT,
    WAKEUP, WORKERS, pack,
};
use super::method_table;
use super::program_stage::ProgramStage;
use super::stop::{Retirement, StopRequest};
use crate::clock::now;
use crate::progress::Progress;
use crate::sys::{self, AtomicWords, MAX_STACK_FRAMES, StackSink};
use crate::time_limit::nanoseconds;
use crate::worker::phase::Phase;

#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerSlot {
    pub(super) words: AtomicWords,
    /// The page that the server writes for all workers.
    published: AtomicWords,
}

#[taskfork_macros::startup_code]
impl WorkerSlot {
    /// The slot and the published page, as this process has them mapped.
    pub(crate) fn new(words: AtomicWords, published: AtomicWords) -> Self {
        Self { words, published }
    }

    /// How many calls have begun.
    pub(crate) fn calls(&self) -> u64 {
        self.words[STATE].load(SeqCst) >> 8
    }

    /// Records why the worker leaves.
    pub(crate) fn set_retirement(&self, why: Retirement) {
        self.words[RETIRE].store(why as u64, SeqCst);
    }

    /// Where the handler of SIGALRM writes the stack.
    pub(crate) fn stack_sink(&self) -> Option<StackSink> {
        let stack = self.words[STACK..].first_chunk::<MAX_STACK_FRAMES>()?;
        Some(StackSink { stack, ready: &self.words[STACK_READY] })
    }

    /// Where the handler of SIGURG writes a sample of the stack.
    pub(crate) fn sample_sink(&self) -> Option<StackSink> {
        let stack = self.words[SAMPLE..].first_chunk::<MAX_STACK_FRAMES>()?;
        Some(StackSink { stack, ready: &self.words[SAMPLE_READY] })
    }

    /// Counts the call that runs, and ends now. Its method does not exist if it `is_unknown`.
    pub(crate) fn count_call(&self, has_failed: bool, is_unknown: bool) {
        let time = now().saturating_sub(Duration::from_nanos(self.words[SINCE].load(Relaxed)));
        let table = &self.words[CALLS..CALLS + TABLE_WORDS];
        let name = match is_unknown {
            true => &method_table::UNKNOWN_METHOD_WORDS[..],
            false => &self.words[METHOD..METHOD + METHOD_WORDS],
        };
        method_table::count(table, name, time, has_failed);
    }

    /// Where the handler of SIGSYS writes the number of a system call.
    pub(crate) fn violation_word(&self) -> &'static AtomicU64 {
        &self.words[VIOLATION]
    }

    /// Counts a call that is skipped.
    pub(crate) fn count_skipped(&self) {
        let skipped = self.words[SKIPPED].load(Relaxed);
        self.words[SKIPPED].store(skipped + 1, SeqCst);
    }

    /// Sets whether the client's protocol has a message that reports the worker's death.
    pub(crate) fn set_death_reportable(&self, is_reportable: bool) {
        self.words[DEATH_UNREPORTABLE].store(u64::from(!is_reportable), SeqCst);
    }

    /// Shows which program the worker runs.
    pub(crate) fn set_program(&self, pid: u32) {
        self.words[PROGRAM].store(u64::from(pid), SeqCst);
    }

    /// Shows how far the program is that takes the worker over. `None` if there is none.
    pub(crate) fn set_program_stage(&self, stage: Option<ProgramStage>) {
        self.words[PROGRAM_STAGE].store(stage.map_or(0, |stage| stage as u64), SeqCst);
    }

    /// Shows that the program takes the worker over. Returns false if one has done that already, or none was executed.
    pub(crate) fn begin_serving(&self) -> bool {
        let (from, to) = (ProgramStage::Executed as u64, ProgramStage::Serving as u64);
        self.words[PROGRAM_STAGE].compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }

    /// Whether the server's programs serve their connections themselves, as far as it has seen.
    pub(crate) fn programs_take_over(&self) -> bool {
        self.published[TAKES_OVER].load(SeqCst) != 0
    }

    /// Sets the client's number.
    pub(crate) fn set_client(&self, client: u64) {
        self.words[CLIENT].store(client, Relaxed);
    }

    /// Sets how many checkouts of the client wait for a worker.
    pub(crate) fn set_waiting(&self, waiting: u64, now: Duration) {
        self.words[WAITING].store(waiting.min(MAX_WAITING), Relaxed);
        self.words[WAITING_AT].store(nanoseconds(now), Relaxed);
    }

    /// Counts a checkout that has ended.
    pub(crate) fn count_checkout(&self) {
        let checkouts = self.words[CHECKOUTS].load(Relaxed);
        self.words[CHECKOUTS].store(checkouts + 1, Relaxed);
    }

    /// Describes the call that begins next.
    pub(crate) fn set_call(
        &self,
        method: &str,
        deadline: Option<Duration>,
        hard_deadline: Option<Duration>,
    ) {
        store_text(&self.words[METHOD..METHOD + METHOD_WORDS], method);
        self.words[PROGRESS].store(0, Relaxed);
        self.words[DEADLINE].store(deadline.map_or(0, nanoseconds), Relaxed);
        self.words[HARD_DEADLINE].store(hard_deadline.map_or(0, nanoseconds), Relaxed);
    }

    /// Shows how far the current call has got.
    pub(crate) fn set_progress(&self, progress: &Progress) {
        let version = self.words[PROGRESS].load(Relaxed) | 1;
        self.words[PROGRESS].store(version, SeqCst);
        self.words[PROGRESS_DONE].store(progress.done, SeqCst);
        self.words[PROGRESS_TOTAL].store(progress.total.unwrap_or(u64::MAX), SeqCst);
        let text = &self.words[PROGRESS_TEXT..PROGRESS_TEXT + PROGRESS_TEXT_WORDS];
        store_text(text, &progress.what);
        // The next even number. After the last one comes 2, because 0 means that there is no report.
        self.words[PROGRESS].store(version.checked_add(1).unwrap_or(2), SeqCst);
    }

    /// The published number of workers.
    pub(crate) fn workers(&self) -> usize {
        usize::try_from(self.published[WORKERS].load(Relaxed)).unwrap_or(usize::MAX)
    }

    /// Whether a call that has begun is due before the server's next scan.
    pub(crate) fn is_before_wakeup(&self, deadline: Duration) -> bool {
        nanoseconds(deadline) < self.published[WAKEUP].load(SeqCst)
    }

    /// Enters `phase` now. Fails if the server has stopped the worker.
    pub(crate) fn enter(&self, phase: Phase) -> Result<(), StopRequest> {
        self.enter_at(phase, phase.resets_clock().then(now))
    }

    /// Enters `phase`, which began at `since`. `None` keeps the time of the call before.
    pub(crate) fn enter_at(
        &self,
        phase: Phase,
        since: Option<Duration>,
    ) -> Result<(), StopRequest> {
        // A process that user code has forked shares the slot with its worker.
        sys::exit_if_forked();
        let state = self.words[STATE].load(SeqCst);
        // An unknown phase comes from a bug in the worker's own code. The worker begins nothing then.
        match Phase::of(state as u8).unwrap_or(Phase::KillPending) {
            Phase::KillPending => return Err(StopRequest::Kill),
            Phase::Retired => return Err(StopRequest::Retire),
            _ => {}
        }
        if let Some(since) = since {
            self.words[SINCE].store(nanoseconds(since), SeqCst);
        }
        let calls = (state >> 8) + u64::from(phase == Phase::Busy);
        match self.words[STATE].compare_exchange(state, pack(phase, calls), SeqCst, SeqCst) {
            Ok(_) => Ok(()),
            // Only the server changes the state meanwhile.
            Err(_) => self.enter_at(phase, since),
        }
    }

    /// Whether the call that runs is due before the server's next scan, or was due before.
    pub(crate) fn is_due_before_wakeup(&self) -> bool {
        match self.words[DEADLINE].load(Relaxed) {
            0 => false,
            deadline => deadline < self.published[WAKEUP].load(SeqCst),
        }
    }

    /// Runs the call on that has sent a long item. Fails if the server has stopped the worker. The server
    /// enforces deadlines only while a call runs, so the caller wakes it if one has passed meanwhile.
    pub(crate) fn resume_call(&self) -> Result<(), StopRequest> {
        let calls = self.calls();
        let (sending, running) = (pack(Phase::SendingItem, calls), pack(Phase::Busy, calls));
        match self.words[STATE].compare_exchange(sending, running, SeqCst, SeqCst) {
            Ok(_) => Ok(()),
            // The server has changed it, so this returns what it wants.
            Err(_) => self.enter(Phase::SendingItem),
        }
    }

    /// Whether the client has closed the connection. A worker asks after it has entered a phase. The
    /// order of the writes makes sure that the server sees the phase or the worker sees this.
    pub(crate) fn is_client_gone(&self) -> bool {
        self.words[CLIENT_GONE].load(SeqCst) != 0
    }

    /// Whether the server has told the worker to leave. A worker asks after it has become idle, for the
    /// same reason.
    pub(crate) fn should_retire(&self) -> bool {
        self.words[RETIRE].load(SeqCst) != 0
    }
}

/// Stores as much of a text as the words can hold. A zero follows it if there is room.
#[taskfork_macros::startup_code]
fn store_text(words: &[AtomicU64], text: &str) {
    let bytes = text.as_bytes();
    for (place, word) in words.iter().enumerate() {
        let rest = bytes.get(place * 8..).unwrap_or_default();
        let mut eight = [0; 8];
        let length = rest.len().min(8);
        eight[..length].copy_from_slice(&rest[..length]);
        word.store(u64::from_ne_bytes(eight), SeqCst);
        if length < 8 {
            break;
        }
    }
}
