//! What each worker is doing, in a page that it shares with the server alone. A worker moves its slot from
//! phase to phase. The server reads it, and kills a worker only in exactly the phase and call that it has
//! judged, so that a late kill cannot hit the next call.
//!
//! A worker can write anything into its slot at any time. The server therefore reads a slot in one place
//! ([`ServerSlot::read`]), takes nothing for true that cannot be, and never acts on a number from there that
//! names something else than this worker.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub(crate) use super::phase::Phase;
use crate::sys::{self, AtomicWords, MAX_STACK_FRAMES, Pages, PublishedPage, StackSink};
use crate::time_limit::nanoseconds;

/// A worker's state at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotView {
    pub(crate) phase: Phase,
    /// How many calls it has begun.
    pub(crate) calls: u64,
    /// When it entered the phase, or began the call that it answers or has answered, on the clock of
    /// [`now`].
    pub(crate) since: Duration,
}

/// Something in a slot that a worker of this program cannot have written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Corruption {
    /// No phase has this number.
    Phase(u8),
    /// Only the server sets this phase, and it has not.
    UnorderedKill(Phase),
    /// Fewer calls have begun than before.
    Calls { before: u64, now: u64 },
    /// The phase began in the future.
    Future,
    /// The stack has more addresses than there is room for.
    Stack(u64),
    /// No reason to leave has this number.
    Retirement(u64),
    /// More calls or checkouts than a worker can have served.
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

/// The time on the clock that server and workers share.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// All slots of one server.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    pages: Pages,
    published: PublishedPage,
    /// Slots that were used and are free again.
    free: Vec<usize>,
    /// Slots of dead workers whose descendants may live for a moment longer.
    quarantined: Vec<usize>,
    /// How many slots have ever been used. The rest is not listed, as every page that a server has
    /// written to makes its forks slower.
    used: usize,
}

/// `calls << 8 | phase`.
const STATE: usize = 0;
const SINCE: usize = 1;
const CLIENT_GONE: usize = 2;
const RETIRE: usize = 3;
/// When the call that runs is to be ended, in nanoseconds on the clock of [`now`]; 0 for never.
const HARD_DEADLINE: usize = 4;
/// One more than how many addresses of the stack there are, once they are there.
const STACK_READY: usize = 5;
const CHECKOUTS: usize = 6;
/// How many calls it has not begun, as one before them failed or nobody wanted them any more.
const SKIPPED: usize = 7;
/// The bytes of the method that is running or has run last, as many as fit.
const METHOD: usize = 8;
const METHOD_WORDS: usize = 8;
/// When the time of the call that runs is over, as above.
const DEADLINE: usize = 16;
/// Its client cannot be told of its death.
const DEATH_UNREPORTABLE: usize = 17;
/// A number of its client's own, 0 if none was said.
const CLIENT: usize = 18;
/// How many checkouts of its client waited, and when that was, in nanoseconds on the clock of [`now`].
const WAITING: usize = 19;
const WAITING_AT: usize = 20;
/// The addresses of its stack.
const STACK: usize = 64;

/// In the published words: when the server looks at the slots next, in nanoseconds on the clock of [`now`].
const WAKEUP: usize = 0;
/// In the published words: how many workers there are.
const WORKERS: usize = 1;

/// No more checkouts of a client are taken to wait.
const MOST_WAITING: u64 = 1 << 32;

/// A worker that counts a call each nanosecond gets there in a day.
pub(crate) const MOST_COUNTED: u64 = 1 << 47;

/// By so much clocks may differ that were read one after the other.
const CLOCK_ERROR: Duration = Duration::from_secs(1);

/// How often a state is read again that changes meanwhile. A worker of this program changes it far less often.
const ATTEMPTS: u32 = 8;

impl Scoreboard {
    /// As many slots as a server can have workers at one time.
    pub(crate) const CAPACITY: usize = 16_384;

    pub(crate) fn new() -> io::Result<Self> {
        let (pages, published) = (Pages::default(), PublishedPage::new()?);
        Ok(Self { pages, published, free: Vec::new(), quarantined: Vec::new(), used: 0 })
    }

    /// A slot for a new worker, which has to be forked next. An error while all slots are taken.
    pub(crate) fn allocate(&mut self) -> io::Result<ServerSlot> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.used < Self::CAPACITY => {
                self.pages.add()?;
                self.used += 1;
                self.used - 1
            }
            None => return Err(io::ErrorKind::StorageFull.into()),
        };
        if let Err(error) = self.pages.share_with_children(index) {
            self.free.push(index);
            return Err(error);
        }
        let words = self.pages.page(index);
        let counters = [CLIENT_GONE, RETIRE, HARD_DEADLINE, STACK_READY, CHECKOUTS, SKIPPED];
        let rest = [METHOD, DEADLINE, DEATH_UNREPORTABLE, CLIENT, WAITING, WAITING_AT];
        for word in counters.into_iter().chain(rest) {
            words[word].store(0, SeqCst);
        }
        let since = now();
        words[SINCE].store(nanoseconds(since), SeqCst);
        words[STATE].store(pack(Phase::Handshake, 0), SeqCst);
        let last_read = SlotView { phase: Phase::Handshake, calls: 0, since };
        Ok(ServerSlot { words, index, last_read, requested: None })
    }

    /// The worker of this slot has been forked, or could not be: nothing that is forked from here on has the slot.
    pub(crate) fn hide_from_children(&self, slot: &ServerSlot) -> io::Result<()> {
        self.pages.hide_from_children(slot.index)
    }

    /// Gives the slot of a worker back that has been reaped, or was never forked. It is used again once
    /// [(Self::release_quarantined) says that nothing can write to it any more.
    pub(crate) fn quarantine(&mut self, slot: ServerSlot) {
        self.quarantined.push(slot.index);
    }

    /// No process is left that a dead worker has forked, and that would still have its slot mapped.
    pub(crate) fn release_quarantined(&mut self) {
        self.free.append(&mut self.quarantined);
    }

    /// In a new worker: its own slot, which nothing else has mapped but the server.
    pub(crate) fn worker_slot(&self, slot: &ServerSlot) -> WorkerSlot {
        WorkerSlot { words: slot.words, published: self.published.readable() }
    }

    /// Server: it looks at the slots again then, or at a word from a worker; gives what was said
    /// before. Whoever begins a call from here on whose time is over sooner gives that word; the
    /// call of whoever has not last_read this is last_read by the next look.
    pub(crate) fn set_wakeup(&self, at: Option<Duration>) -> Option<Duration> {
        let before =
            self.published.writable()[WAKEUP].swap(at.map_or(u64::MAX, nanoseconds), SeqCst);
        (before != u64::MAX).then(|| Duration::from_nanos(before))
    }

    /// Server: when it looks at the slots next, by what it has said.
    pub(crate) fn wakeup(&self) -> Option<Duration> {
        let at = self.published.writable()[WAKEUP].load(SeqCst);
        (at != u64::MAX).then(|| Duration::from_nanos(at))
    }

    /// Server: how many workers there are.
    pub(crate) fn publish_workers(&self, workers: usize) {
        self.published.writable()[WORKERS].store(workers as u64, Relaxed);
    }

    /// Where memory lies that this process shares with all that is forked from it, and with nothing else.
    pub(crate) fn published_address(&self) -> usize {
        self.published.readable().as_ptr().addr()
    }
}

/// A worker's slot as its server has it.
#[derive(Debug)]
pub(crate) struct ServerSlot {
    words: AtomicWords,
    index: usize,
    /// What was there when it was last looked at.
    last_read: SlotView,
    /// What the server has decided.
    requested: Option<StopRequest>,
}

/// A worker's slot as the worker has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerSlot {
    words: AtomicWords,
    published: AtomicWords,
}

/// Why a worker leaves that has done nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Retirement {
    /// The server shuts down.
    Shutdown = 1,
    Age = 2,
    Idleness = 3,
    Calls = 4,
    Memory = 5,
    /// Somebody wanted that.
    Requested = 6,
    /// Another client has none, or fewer.
    Fairness = 7,
}

impl Retirement {
    const ALL: [Self; 7] = [
        Self::Shutdown,
        Self::Age,
        Self::Idleness,
        Self::Calls,
        Self::Memory,
        Self::Requested,
        Self::Fairness,
    ];
}

/// The server wants the worker to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopRequest {
    /// A kill is on its way: wait for it.
    Kill,
    /// ExitReason.
    Retire,
}

impl StopRequest {
    fn phase(self) -> Phase {
        match self {
            Self::Kill => Phase::KillPending,
            Self::Retire => Phase::Retired,
        }
    }
}

impl ServerSlot {
    /// What the worker does now, if that can be.
    pub(crate) fn read(&mut self) -> Result<SlotView, Corruption> {
        let (state, since) = self.state();
        let view = self.validate(state, since, now())?;
        self.last_read = view;
        Ok(view)
    }

    /// What the worker did when it was last looked at and made sense.
    pub(crate) fn last_read(&self) -> SlotView {
        self.last_read
    }

    /// Whether the worker says that it is in this phase.
    pub(crate) fn is_in(&self, phase: Phase) -> bool {
        self.words[STATE].load(SeqCst) as u8 == phase as u8
    }

    /// The state and its time, which belong to each other unless the worker changes them all the time.
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

    /// All that is believed of a slot, and why not the rest.
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
        if since > now + CLOCK_ERROR {
            return Err(Corruption::Future);
        }
        let stack = self.words[STACK_READY].load(SeqCst);
        if stack > MAX_STACK_FRAMES as u64 + 1 {
            return Err(Corruption::Stack(stack - 1));
        }
        let retirement = self.words[RETIRE].load(SeqCst);
        if retirement != 0 && Retirement::ALL.into_iter().all(|it| it as u64 != retirement) {
            return Err(Corruption::Retirement(retirement));
        }
        for count in [calls, self.checkouts(), self.skipped()] {
            if count > MOST_COUNTED {
                return Err(Corruption::Counter(count));
            }
        }
        Ok(SlotView { phase, calls, since })
    }

    /// Forbids the worker to begin anything, if it is still where `view` saw it.
    pub(crate) fn try_stop(&mut self, view: SlotView, request: StopRequest) -> bool {
        let (expected, wanted) = (pack(view.phase, view.calls), pack(request.phase(), view.calls));
        let is_there = self.words[STATE].compare_exchange(expected, wanted, SeqCst, SeqCst).is_ok();
        if is_there {
            self.requested = Some(request);
        }
        is_there
    }

    /// The client will read no answer any more.
    pub(crate) fn mark_client_gone(&self) {
        self.words[CLIENT_GONE].store(1, SeqCst);
    }

    /// The worker is to leave when its checkout is done.
    pub(crate) fn request_retirement(&self, why: Retirement) {
        self.words[RETIRE].store(why as u64, SeqCst);
    }

    /// Why the worker leaves or has left, if it was for one of these.
    pub(crate) fn retirement(&self) -> Option<Retirement> {
        let code = self.words[RETIRE].load(SeqCst);
        Retirement::ALL.into_iter().find(|&why| why as u64 == code)
    }

    /// When the time of the call that runs, or has run last, is over.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.time(DEADLINE)
    }

    /// When the call that runs is to be ended.
    pub(crate) fn hard_deadline(&self) -> Option<Duration> {
        self.time(HARD_DEADLINE)
    }

    fn time(&self, word: usize) -> Option<Duration> {
        let nanoseconds = self.words[word].load(SeqCst);
        (nanoseconds != 0).then(|| Duration::from_nanos(nanoseconds))
    }

    /// Forgets what the worker has told of its stack.
    pub(crate) fn clear_stack(&self) {
        self.words[STACK_READY].store(0, SeqCst);
    }

    /// The stack of the worker, once it has told it.
    pub(crate) fn stack(&self) -> Option<Vec<u64>> {
        let length = self.words[STACK_READY].load(SeqCst).checked_sub(1)?;
        let length = usize::try_from(length).unwrap_or(MAX_STACK_FRAMES).min(MAX_STACK_FRAMES);
        Some(self.words[STACK..STACK + length].iter().map(|word| word.load(SeqCst)).collect())
    }

    /// The method that runs or has run last, without what of its name does not fit.
    pub(crate) fn method(&self) -> String {
        let words = &self.words[METHOD..METHOD + METHOD_WORDS];
        let bytes: Vec<u8> =
            words.iter().flat_map(|word| word.load(SeqCst).to_ne_bytes()).collect();
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    /// How many checkouts the worker has served.
    pub(crate) fn checkouts(&self) -> u64 {
        self.words[CHECKOUTS].load(SeqCst)
    }

    /// How many calls the worker has passed without beginning them.
    pub(crate) fn skipped(&self) -> u64 {
        self.words[SKIPPED].load(SeqCst)
    }

    /// Whether the client can be told of the worker's death.
    pub(crate) fn is_death_reportable(&self) -> bool {
        self.words[DEATH_UNREPORTABLE].load(SeqCst) == 0
    }

    /// Which client has said last that so many of its checkouts wait, and when.
    pub(crate) fn reported_queue(&self) -> Option<(u64, u64, u64)> {
        let [client, waiting, at] =
            [CLIENT, WAITING, WAITING_AT].map(|word| self.words[word].load(SeqCst));
        (client != 0).then(|| (client, at.min(nanoseconds(now())), waiting.min(MOST_WAITING)))
    }
}

impl WorkerSlot {
    /// How many calls it has begun.
    pub(crate) fn calls(&self) -> u64 {
        self.words[STATE].load(SeqCst) >> 8
    }

    /// It leaves for this reason.
    pub(crate) fn set_retirement(&self, why: Retirement) {
        self.words[RETIRE].store(why as u64, SeqCst);
    }

    /// Where it is to leave its stack.
    pub(crate) fn stack_sink(&self) -> Option<StackSink> {
        let stack = self.words[STACK..].first_chunk::<MAX_STACK_FRAMES>()?;
        Some(StackSink { stack, ready: &self.words[STACK_READY] })
    }

    /// It passes a call.
    pub(crate) fn count_skipped(&self) {
        let skipped = self.words[SKIPPED].load(Relaxed);
        self.words[SKIPPED].store(skipped + 1, SeqCst);
    }

    /// Whether its client's protocol has a word for deaths.
    pub(crate) fn set_death_reportable(&self, told: bool) {
        self.words[DEATH_UNREPORTABLE].store(u64::from(!told), SeqCst);
    }

    /// The number of its client.
    pub(crate) fn set_client(&self, client: u64) {
        self.words[CLIENT].store(client, Relaxed);
    }

    /// So many checkouts of its client wait now.
    pub(crate) fn set_waiting(&self, waiting: u64, now: Duration) {
        self.words[WAITING].store(waiting.min(MOST_WAITING), Relaxed);
        self.words[WAITING_AT].store(nanoseconds(now), Relaxed);
    }

    /// Another checkout is done.
    pub(crate) fn count_checkout(&self) {
        let checkouts = self.words[CHECKOUTS].load(Relaxed);
        self.words[CHECKOUTS].store(checkouts + 1, Relaxed);
    }

    /// What the call that begins next is, when its time is over, and when it is to be ended.
    pub(crate) fn set_call(&self, method: &str, over: Option<Duration>, end: Option<Duration>) {
        let words = &self.words[METHOD..METHOD + METHOD_WORDS];
        let bytes = method.as_bytes();
        for (place, word) in words.iter().enumerate() {
            let rest = bytes.get(place * 8..).unwrap_or_default();
            let mut eight = [0; 8];
            let length = rest.len().min(8);
            eight[..length].copy_from_slice(&rest[..length]);
            word.store(u64::from_ne_bytes(eight), Relaxed);
            if length < 8 {
                break;
            }
        }
        self.words[DEADLINE].store(over.map_or(0, nanoseconds), Relaxed);
        self.words[HARD_DEADLINE].store(end.map_or(0, nanoseconds), Relaxed);
    }

    /// How many workers there are, by the server's word.
    pub(crate) fn workers(&self) -> usize {
        usize::try_from(self.published[WORKERS].load(Relaxed)).unwrap_or(usize::MAX)
    }

    /// Having begun a call: whether its time is over before the server wakes by itself.
    pub(crate) fn is_before_wakeup(&self, deadline: Duration) -> bool {
        nanoseconds(deadline) < self.published[WAKEUP].load(SeqCst)
    }

    /// Enters `phase`, unless the server has decided otherwise.
    pub(crate) fn enter(&self, phase: Phase) -> Result<(), StopRequest> {
        self.enter_at(phase, phase.resets_clock().then(now))
    }

    /// The same, with the time that is counted from if another is now.
    pub(crate) fn enter_at(
        &self,
        phase: Phase,
        since: Option<Duration>,
    ) -> Result<(), StopRequest> {
        // A child shares the slot with its worker.
        sys::exit_if_forked();
        let state = self.words[STATE].load(SeqCst);
        // Stray writes of a worker's own bugs can leave anything here: nothing is begun then.
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
            // Only an order of the server can have come in between.
            Err(_) => self.enter_at(phase, since),
        }
    }

    /// Having entered a phase: whether it is for nobody. With the order of the writes, one
    /// of the two sides always sees the other: the server the phase, or the worker this.
    pub(crate) fn is_client_gone(&self) -> bool {
        self.words[CLIENT_GONE].load(SeqCst) != 0
    }

    /// Having become idle: whether to leave. It or the server sees the other, as above.
    pub(crate) fn should_retire(&self) -> bool {
        self.words[RETIRE].load(SeqCst) != 0
    }
}

fn pack(phase: Phase, calls: u64) -> u64 {
    calls << 8 | phase as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Both sides of a new slot.
    fn slot(board: &mut Scoreboard) -> (ServerSlot, WorkerSlot) {
        let server = board.allocate().unwrap();
        let worker = board.worker_slot(&server);
        (server, worker)
    }

    #[test]
    fn a_kill_that_was_decided_for_one_call_cannot_hit_the_next() {
        let (mut server, worker) = slot(&mut Scoreboard::new().unwrap());
        worker.enter(Phase::Busy).unwrap();
        let judged = server.read().unwrap();
        worker.enter(Phase::Answering).unwrap();
        worker.enter(Phase::Held).unwrap();
        worker.enter(Phase::Busy).unwrap();

        assert!(!server.try_stop(judged, StopRequest::Kill));
        assert_eq!(worker.enter(Phase::Answering), Ok(()));
    }

    #[test]
    fn a_condemned_worker_begins_nothing() {
        let (mut server, worker) = slot(&mut Scoreboard::new().unwrap());
        worker.enter(Phase::Idle).unwrap();
        let view = server.read().unwrap();
        assert!(server.try_stop(view, StopRequest::Kill));
        assert_eq!(worker.enter(Phase::Busy), Err(StopRequest::Kill));
        let view = server.read().unwrap();
        assert_eq!((view.phase, view.calls), (Phase::KillPending, 0));
    }

    #[test]
    fn slots_are_used_again() {
        let mut board = Scoreboard::new().unwrap();
        let (server, worker) = slot(&mut board);
        worker.enter(Phase::Busy).unwrap();
        server.mark_client_gone();
        board.quarantine(server);
        let (other, _) = slot(&mut board);
        assert_eq!(board.used, 2, "its descendants may live");
        board.quarantine(other);
        board.release_quarantined();

        let (mut server, worker) = slot(&mut board);
        assert_eq!(server.read().unwrap().phase, Phase::Handshake);
        assert!(!worker.is_client_gone());
        assert_eq!((board.used, board.free.len()), (2, 1));
    }

    #[test]
    fn no_two_workers_share_a_page() {
        let mut board = Scoreboard::new().unwrap();
        let [(mut first, _), (_, other)] = [(); 2].map(|()| slot(&mut board));
        other.words.iter().for_each(|word| word.store(u64::MAX, SeqCst));
        assert_eq!(first.read().unwrap().phase, Phase::Handshake);
        assert_eq!((first.method(), first.checkouts()), (String::new(), 0));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let mut board = Scoreboard::new().unwrap();
        let mut look = |word: usize, value: u64| {
            let (mut server, worker) = slot(&mut board);
            worker.enter(Phase::Busy).unwrap();
            server.read().unwrap();
            worker.words[word].store(value, SeqCst);
            server.read().unwrap_err()
        };
        assert_eq!(look(STATE, 1 << 8 | 77), Corruption::Phase(77));
        assert_eq!(
            look(STATE, pack(Phase::KillPending, 1)),
            Corruption::UnorderedKill(Phase::KillPending)
        );
        assert_eq!(look(STATE, pack(Phase::Busy, 0)), Corruption::Calls { before: 1, now: 0 });
        assert_eq!(look(SINCE, u64::MAX), Corruption::Future);
        assert_eq!(look(STACK_READY, 1000), Corruption::Stack(999));
        assert_eq!(look(RETIRE, 8), Corruption::Retirement(8));
        assert_eq!(look(SKIPPED, u64::MAX), Corruption::Counter(u64::MAX));
        let text = look(STATE, 1 << 8 | 77).to_string();
        assert_eq!(text, "its slot in shared memory is corrupt: there is no phase 77");
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_slot_can_be_read(
            words in prop::collection::vec(
                prop_oneof![any::<u64>(), 0..20_u64, Just(u64::MAX)], 32),
        ) {
            let mut board = Scoreboard::new().unwrap();
            let (mut server, worker) = slot(&mut board);
            for (word, &value) in worker.words.iter().zip(&words) {
                word.store(value, SeqCst);
            }
            if let Ok(view) = server.read() {
                prop_assert!(view.since <= now() + CLOCK_ERROR);
                prop_assert!(view.calls <= MOST_COUNTED && server.skipped() <= MOST_COUNTED);
                prop_assert_ne!(view.phase, Phase::KillPending);
            }
            prop_assert!(server.stack().is_none_or(|stack| stack.len() <= MAX_STACK_FRAMES));
            prop_assert!(server.method().len() <= METHOD_WORDS * 8 * 3);
            prop_assert!(server.reported_queue().is_none_or(|(_, _, waiting)| waiting <= MOST_WAITING));
            let _ = (server.deadline(), server.hard_deadline(), server.retirement());
            let _ = worker.enter(Phase::Busy);
        }
    }
}
