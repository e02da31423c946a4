//! The server's side of a slot.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::layout::{
    CALLS, CHECKOUTS, CLIENT, CLIENT_GONE, DEADLINE, DEATH_UNREPORTABLE, HARD_DEADLINE, MAX_COUNT,
    MAX_WAITING, METHOD, METHOD_WORDS, PROGRAM, PROGRAM_STAGE, PROGRESS, PROGRESS_DONE,
    PROGRESS_TEXT, PROGRESS_TEXT_WORDS, PROGRESS_TOTAL, RETIRE, SAMPLE, SAMPLE_READY, SINCE,
    SKIPPED, STACK, STACK_READY, STATE, TABLE_WORDS, VIOLATION, WAITING, WAITING_AT, pack,
};
use super::method_table::{self, CountedCalls};
use super::program_stage::ProgramStage;
use super::stop::{Retirement, StopRequest};
use crate::clock::now;
use crate::progress::Progress;
use crate::sys::{AtomicWords, MAX_STACK_FRAMES};
use crate::time_limit::nanoseconds;
use crate::worker::phase::Phase;

/// How far a worker's reading of the clock may be ahead of a later one of the server.
pub(super) const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// How often a state that changes meanwhile is read again. An honest worker changes it far less often.
const ATTEMPTS: u32 = 8;

#[derive(Debug)]
pub(crate) struct ServerSlot {
    words: AtomicWords,
    index: usize,
    /// The last valid state.
    last_read: SlotView,
    /// The server's order.
    requested: Option<StopRequest>,
    /// The slot as a file, until the worker has been forked.
    file: Option<OwnedFd>,
}

/// A worker's state at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotView {
    pub(crate) phase: Phase,
    /// How many calls have begun.
    pub(crate) calls: u64,
    /// When the worker entered the phase, or began the call that it answers or has answered.
    pub(crate) since: Duration,
}

impl SlotView {
    /// Whether a worker that shows this has gone on since it showed `before`. One that only sends items of a call has not.
    pub(crate) fn has_gone_on_since(self, before: Self) -> bool {
        let is_same_call = self.calls == before.calls
            && self.since == before.since
            && self.phase.is_running()
            && before.phase.is_running();
        self != before && !is_same_call
    }
}

/// A value in a slot that an intact worker cannot have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Corruption {
    /// The phase has an unknown number.
    Phase(u8),
    /// Only the server sets this phase, and it has not.
    UnorderedKill(Phase),
    /// The count of calls has decreased.
    Calls { before: u64, now: u64 },
    /// The phase began in the future.
    Future,
    /// The stack has more addresses than fit.
    Stack(u64),
    /// The reason to leave has an unknown number.
    Retirement(u64),
    /// A count is larger than is possible.
    Counter(u64),
}

impl fmt::Display for Corruption {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("its slot in shared memory is corrupt: ")?;
        match self {
            Self::Phase(number) => write!(out, "there is no phase {number}"),
            Self::UnorderedKill(phase) => write!(out, "the server did not set the phase {phase:?}"),
            Self::Calls { before, now } => write!(out, "{now} calls have begun after {before}"),
            Self::Future => out.write_str("it has begun something in the future"),
            Self::Stack(length) => write!(out, "its stack has {length} addresses"),
            Self::Retirement(number) => write!(out, "there is no reason {number} to leave"),
            Self::Counter(count) => write!(out, "it cannot have counted to {count}"),
        }
    }
}

impl ServerSlot {
    /// A slot whose worker is in its handshake since `since`.
    pub(super) fn new(
        words: AtomicWords,
        index: usize,
        since: Duration,
        file: Option<OwnedFd>,
    ) -> Self {
        let last_read = SlotView { phase: Phase::Handshake, calls: 0, since };
        Self { words, index, last_read, requested: None, file }
    }

    /// The slot as a file, which a program can map again. `None` if workers never need it.
    pub(crate) fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    /// Takes that file out: it is the worker's, and nobody else keeps it.
    pub(crate) fn take_file(&mut self) -> Option<OwnedFd> {
        self.file.take()
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn words(&self) -> AtomicWords {
        self.words
    }

    /// Reads the worker's state, if its slot is intact.
    pub(crate) fn read(&mut self) -> Result<SlotView, Corruption> {
        let (state, since) = self.state();
        let view = self.validate(state, since, now())?;
        self.last_read = view;
        Ok(view)
    }

    /// The last valid result of [`read`](Self::read).
    pub(crate) fn last_read(&self) -> SlotView {
        self.last_read
    }

    /// Whether the worker reports this phase.
    pub(crate) fn is_in(&self, phase: Phase) -> bool {
        self.words[STATE].load(SeqCst) as u8 == phase as u8
    }

    /// A state and the time that belongs to it. For a worker that changes them all the time, they may
    /// not belong together.
    fn state(&self) -> (u64, u64) {
        let mut state = self.words[STATE].load(SeqCst);
        for _ in 0..ATTEMPTS {
            let since = self.words[SINCE].load(SeqCst);
            let again = self.words[STATE].load(SeqCst);
            if again == state {
                return (state, since);
            }
            state = again;
        }
        (state, self.words[SINCE].load(SeqCst))
    }

    fn validate(&self, state: u64, since: u64, now: Duration) -> Result<SlotView, Corruption> {
        let (number, calls) = (state as u8, state >> 8);
        let phase = Phase::of(number).ok_or(Corruption::Phase(number))?;
        if phase == Phase::KillPending && self.requested != Some(StopRequest::Kill) {
            return Err(Corruption::UnorderedKill(phase));
        }
        if calls < self.last_read.calls {
            return Err(Corruption::Calls { before: self.last_read.calls, now: calls });
        }
        let since = Duration::from_nanos(since);
        if since > now + CLOCK_TOLERANCE {
            return Err(Corruption::Future);
        }
        let stack = self.words[STACK_READY].load(SeqCst);
        if stack > MAX_STACK_FRAMES as u64 + 1 {
            return Err(Corruption::Stack(stack - 1));
        }
        let retirement = self.words[RETIRE].load(SeqCst);
        if retirement != 0 && Retirement::of(retirement).is_none() {
            return Err(Corruption::Retirement(retirement));
        }
        for count in [calls, self.checkouts(), self.skipped()] {
            if count > MAX_COUNT {
                return Err(Corruption::Counter(count));
            }
        }
        Ok(SlotView { phase, calls, since })
    }

    /// Stops the worker if its state is still `view`. After that it begins no call.
    pub(crate) fn try_stop(&mut self, view: SlotView, request: StopRequest) -> bool {
        let (expected, wanted) = (pack(view.phase, view.calls), pack(request.phase(), view.calls));
        let is_unchanged =
            self.words[STATE].compare_exchange(expected, wanted, SeqCst, SeqCst).is_ok();
        if is_unchanged {
            self.requested = Some(request);
        }
        is_unchanged
    }

    /// Informs the worker that its client has closed the connection.
    pub(crate) fn mark_client_gone(&self) {
        self.words[CLIENT_GONE].store(1, SeqCst);
    }

    /// Orders the worker to leave after the current checkout.
    pub(crate) fn request_retirement(&self, why: Retirement) {
        self.words[RETIRE].store(why as u64, SeqCst);
    }

    /// Why the worker leaves or has left in order, if it does.
    pub(crate) fn retirement(&self) -> Option<Retirement> {
        Retirement::of(self.words[RETIRE].load(SeqCst))
    }

    /// When the timeout of the current or last call is over. `None` without a timeout.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.time(DEADLINE)
    }

    /// When the current or last call is killed. `None` without a timeout.
    pub(crate) fn hard_deadline(&self) -> Option<Duration> {
        self.time(HARD_DEADLINE)
    }

    fn time(&self, word: usize) -> Option<Duration> {
        let nanoseconds = self.words[word].load(SeqCst);
        (nanoseconds != 0).then(|| Duration::from_nanos(nanoseconds))
    }

    /// Removes an earlier report of the worker's stack.
    pub(crate) fn clear_stack(&self) {
        self.words[STACK_READY].store(0, SeqCst);
    }

    /// Whether the worker has reported its stack.
    pub(crate) fn has_stack(&self) -> bool {
        self.words[STACK_READY].load(SeqCst) != 0
    }

    /// The addresses on the worker's stack, once the worker has reported them.
    pub(crate) fn stack(&self) -> Option<Vec<u64>> {
        self.addresses(STACK_READY, STACK)
    }

    /// Removes an earlier sample of the worker's stack.
    pub(crate) fn clear_sample(&self) {
        self.words[SAMPLE_READY].store(0, SeqCst);
    }

    /// The addresses on the worker's stack when it was asked for a sample, once the worker has reported them.
    pub(crate) fn sample(&self) -> Option<Vec<u64>> {
        self.addresses(SAMPLE_READY, SAMPLE)
    }

    fn addresses(&self, ready: usize, at: usize) -> Option<Vec<u64>> {
        let length = self.words[ready].load(SeqCst).checked_sub(1)?;
        let length = usize::try_from(length).unwrap_or(MAX_STACK_FRAMES).min(MAX_STACK_FRAMES);
        Some(self.words[at..at + length].iter().map(|word| word.load(SeqCst)).collect())
    }

    /// The calls that the worker has counted, by method.
    pub(crate) fn counted_calls(&self) -> Vec<CountedCalls> {
        method_table::read(&self.words[CALLS..CALLS + TABLE_WORDS], load_text)
    }

    /// The number of the system call for which the worker says that its sandbox killed it.
    pub(crate) fn violation(&self) -> Option<u64> {
        self.words[VIOLATION].load(SeqCst).checked_sub(1)
    }

    /// The process id of the program that the worker says it runs. It is for people only, because it may be any.
    pub(crate) fn program(&self) -> Option<u32> {
        let pid = u32::try_from(self.words[PROGRAM].load(SeqCst)).ok()?;
        (1..=i32::MAX as u32).contains(&pid).then_some(pid)
    }

    /// How far the worker says that the program is which takes it over.
    pub(crate) fn program_stage(&self) -> Option<ProgramStage> {
        ProgramStage::of(self.words[PROGRAM_STAGE].load(SeqCst))
    }

    /// The first 64 bytes of the method that runs or has run last.
    pub(crate) fn method(&self) -> String {
        load_text(&self.words[METHOD..METHOD + METHOD_WORDS])
    }

    /// How far the current call has got. `None` without a report, and if the worker changes it all the time.
    pub(crate) fn progress(&self) -> Option<Progress> {
        for _ in 0..ATTEMPTS {
            let version = self.words[PROGRESS].load(SeqCst);
            if version == 0 {
                return None;
            }
            let done = self.words[PROGRESS_DONE].load(SeqCst);
            let total = self.words[PROGRESS_TOTAL].load(SeqCst);
            let text = &self.words[PROGRESS_TEXT..PROGRESS_TEXT + PROGRESS_TEXT_WORDS];
            let text = load_text(text);
            if version.is_multiple_of(2) && self.words[PROGRESS].load(SeqCst) == version {
                return Some(Progress::new(done, Some(total).filter(|&it| it != u64::MAX), text));
            }
        }
        None
    }

    /// How many checkouts have ended.
    pub(crate) fn checkouts(&self) -> u64 {
        self.words[CHECKOUTS].load(SeqCst)
    }

    /// How many calls were skipped.
    pub(crate) fn skipped(&self) -> u64 {
        self.words[SKIPPED].load(SeqCst)
    }

    /// Whether the client's protocol has a message that reports the worker's death.
    pub(crate) fn is_death_reportable(&self) -> bool {
        self.words[DEATH_UNREPORTABLE].load(SeqCst) == 0
    }

    /// The client's number, when the client reported its waiting checkouts, and how many these were.
    pub(crate) fn reported_queue(&self) -> Option<(u64, u64, u64)> {
        let [client, waiting, at] =
            [CLIENT, WAITING, WAITING_AT].map(|word| self.words[word].load(SeqCst));
        (client != 0).then(|| (client, at.min(nanoseconds(now())), waiting.min(MAX_WAITING)))
    }
}

/// Reads a text up to its first zero.
fn load_text(words: &[AtomicU64]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.load(SeqCst).to_ne_bytes()).collect();
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
