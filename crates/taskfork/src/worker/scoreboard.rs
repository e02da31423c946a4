//! What each worker is doing, in memory shared with the server. A worker moves its slot from phase
//! to phase; the server reads it, and condemns a worker only in exactly the phase and call that it
//! has judged, so that a late kill cannot hit the next call.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};

pub(crate) use super::phase::Phase;
use crate::sys::{self, STACK_WORDS, Witness};

/// A worker's state at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) phase: Phase,
    /// How many calls it has begun.
    pub(crate) calls: u64,
    /// When it entered the phase, or began the call that it answers or has answered, on the clock of
    /// [`now`].
    pub(crate) since: Duration,
}

/// The time on the clock that server and workers share.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// All slots of one server.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    slots: &'static [AtomicU64],
    stacks: &'static [[AtomicU64; STACK_WORDS]],
    /// A bit a slot: whether its worker keeps a core busy. The last words are those of all: how many
    /// slots have ever been used, and when the server wakes.
    active: &'static [AtomicU64],
    /// Slots that were used and are free again.
    free: Vec<usize>,
    /// How many slots have ever been used. The rest is not listed, as every page that a server has
    /// written to makes its forks slower.
    used: usize,
}

/// Words of a slot; a multiple of eight, so that two workers never write to one cache line.
const WORDS: usize = 24;
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
/// The worker's process id, until it has been reaped.
const PID: usize = 7;
/// The bytes of the method that is running or has run last, as many as fit.
const METHOD: usize = 8;
const METHOD_WORDS: usize = 8;
/// When the time of the call that runs is over, as above.
const DEADLINE: usize = 16;
/// How many calls it has not begun, as one before them failed or nobody wanted them any more.
const SKIPPED: usize = 17;

/// Its client cannot be told of its death.
const UNTOLD: usize = 18;

/// A number of its client's own, 0 if none was said.
const CLIENT: usize = 19;
/// How many checkouts of its client waited, and when that was, in nanoseconds on the clock of [`now`].
const WAITING: usize = 20;
const WAITING_AT: usize = 21;

/// Words behind the bits of all slots: how many have ever been used, and when the server looks at the
/// slots next, in nanoseconds on the clock of [`now`].
const SHARED: usize = 2;
const USED: usize = SLOTS_IN_BITS;
const WAKES_AT: usize = SLOTS_IN_BITS + 1;
const SLOTS_IN_BITS: usize = Scoreboard::CAPACITY / 64;
/// All of these, in whole cache lines.
const OF_ALL: usize = (SLOTS_IN_BITS + SHARED).next_multiple_of(8);

impl Scoreboard {
    /// As many slots as a server can have workers at one time.
    pub(crate) const CAPACITY: usize = 16_384;

    pub(crate) fn new() -> io::Result<Self> {
        // Together, as each worker has to have a page mapped of what it uses.
        let (active, slots) = sys::shared_words(OF_ALL + Self::CAPACITY * WORDS)?.split_at(OF_ALL);
        // Of no size until a worker writes there.
        let (stacks, _) = sys::shared_words(Self::CAPACITY * STACK_WORDS)?.as_chunks();
        Ok(Self { slots, stacks, active, free: Vec::new(), used: 0 })
    }

    /// A slot for a new worker, or nothing while all are taken.
    pub(crate) fn take(&mut self) -> Option<Slot> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.used < Self::CAPACITY => {
                self.used += 1;
                self.used - 1
            }
            None => return None,
        };
        let words = &self.slots[index * WORDS..(index + 1) * WORDS];
        words[CLIENT_GONE].store(0, SeqCst);
        words[RETIRE].store(0, SeqCst);
        words[SINCE].store(now().as_nanos() as u64, SeqCst);
        let counters = [CHECKOUTS, SKIPPED, UNTOLD, CLIENT, WAITING, WAITING_AT];
        for word in [DEADLINE, HARD_DEADLINE, STACK_READY, METHOD].into_iter().chain(counters) {
            words[word].store(0, SeqCst);
        }
        words[STATE].store(Phase::Greeting as u64, SeqCst);
        let slot = Slot { words, stack: &self.stacks[index], active: self.active, index };
        slot.rests();
        slot.used().store(self.used as u64, SeqCst);
        Some(slot)
    }

    /// Gives the slot of a worker back that has been reaped.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        slot.words[PID].store(0, SeqCst);
        slot.rests();
        self.free.push(slot.index);
    }

    /// In any process that shares the scoreboard: the workers that have not been reaped.
    pub(crate) fn pids(&self) -> impl Iterator<Item = Pid> {
        let pid = |words: &[AtomicU64]| i32::try_from(words[PID].load(SeqCst)).ok();
        self.slots.chunks_exact(WORDS).filter_map(move |words| Pid::from_raw(pid(words)?))
    }

    /// Server: it looks at the slots again then, or at a word from a worker; gives what was said
    /// before. Whoever begins a call from here on whose time is over sooner gives that word; the
    /// call of whoever has not seen this is seen by the next look.
    pub(crate) fn wakes_at(&self, at: Option<Duration>) -> Option<Duration> {
        let at = at.map_or(u64::MAX, |at| at.as_nanos() as u64);
        let before = self.active[WAKES_AT].swap(at, SeqCst);
        (before != u64::MAX).then(|| Duration::from_nanos(before))
    }

    /// Server: when it looks at the slots next, by what it has said.
    pub(crate) fn promised(&self) -> Option<Duration> {
        let at = self.active[WAKES_AT].load(SeqCst);
        (at != u64::MAX).then(|| Duration::from_nanos(at))
    }

    /// Where it lies, in this process and in all that were forked from it.
    pub(crate) fn address(&self) -> usize {
        self.active.as_ptr().addr()
    }
}

/// One worker's part of the scoreboard. The server has one handle, the worker the other.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    words: &'static [AtomicU64],
    stack: &'static [AtomicU64; STACK_WORDS],
    active: &'static [AtomicU64],
    index: usize,
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
    Wish = 6,
}

impl Retirement {
    const ALL: [Self; 6] =
        [Self::Shutdown, Self::Age, Self::Idleness, Self::Calls, Self::Memory, Self::Wish];
}

/// The server wants the worker to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// A kill is on its way: wait for it.
    Condemned,
    /// Leave.
    Retired,
}

impl Slot {
    pub(crate) fn view(&self) -> View {
        loop {
            let state = self.words[STATE].load(SeqCst);
            let since = self.words[SINCE].load(SeqCst);
            // The time belongs to the state only if that has not changed in between.
            if self.words[STATE].load(SeqCst) == state {
                let (phase, calls) = unpack(state);
                return View { phase, calls, since: Duration::from_nanos(since) };
            }
        }
    }

    /// Server: forbids the worker to begin anything, if it is still where `view` saw it.
    pub(crate) fn order(&self, view: View, order: Order) -> bool {
        let phase = match order {
            Order::Condemned => Phase::Condemned,
            Order::Retired => Phase::Retired,
        };
        let expected = pack(view.phase, view.calls);
        let wanted = pack(phase, view.calls);
        self.words[STATE].compare_exchange(expected, wanted, SeqCst, SeqCst).is_ok()
    }

    /// Server: which process the worker is.
    pub(crate) fn belongs_to(&self, pid: Pid) {
        self.words[PID].store(u64::from(pid.as_raw_nonzero().get().unsigned_abs()), SeqCst);
    }

    /// Server: the client will read no answer any more.
    pub(crate) fn client_is_gone(&self) {
        self.words[CLIENT_GONE].store(1, SeqCst);
    }

    /// Server: the worker is to leave when its checkout is done. Worker: it does, for this reason.
    pub(crate) fn retire_when_idle(&self, why: Retirement) {
        self.words[RETIRE].store(why as u64, SeqCst);
    }

    /// Server: why the worker leaves or has left, if it was for one of these.
    pub(crate) fn retirement(&self) -> Option<Retirement> {
        let code = self.words[RETIRE].load(SeqCst);
        Retirement::ALL.into_iter().find(|&why| why as u64 == code)
    }

    /// Server: when the time of the call that runs, or has run last, is over.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.time(DEADLINE)
    }

    /// Server: when the call that runs is to be ended.
    pub(crate) fn hard_deadline(&self) -> Option<Duration> {
        self.time(HARD_DEADLINE)
    }

    fn time(&self, word: usize) -> Option<Duration> {
        let nanoseconds = self.words[word].load(SeqCst);
        (nanoseconds != 0).then(|| Duration::from_nanos(nanoseconds))
    }

    /// Server: forgets what the worker has told of its stack.
    pub(crate) fn forget_stack(&self) {
        self.words[STACK_READY].store(0, SeqCst);
    }

    /// Server: the stack of the worker, once it has told it.
    pub(crate) fn stack(&self) -> Option<Vec<u64>> {
        let length = self.words[STACK_READY].load(SeqCst).checked_sub(1)?;
        let words = self.stack.iter().take(usize::try_from(length).ok()?);
        Some(words.map(|word| word.load(SeqCst)).collect())
    }

    /// Worker: where it is to leave its stack.
    pub(crate) fn witness(&self) -> Witness {
        Witness { stack: self.stack, ready: &self.words[STACK_READY] }
    }

    /// Server: the method that runs or has run last, without what of its name does not fit.
    pub(crate) fn method(&self) -> String {
        let words = &self.words[METHOD..METHOD + METHOD_WORDS];
        let bytes: Vec<u8> =
            words.iter().flat_map(|word| word.load(SeqCst).to_ne_bytes()).collect();
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    /// Server: how many checkouts the worker has served.
    pub(crate) fn checkouts(&self) -> u64 {
        self.words[CHECKOUTS].load(SeqCst)
    }

    /// Server: how many calls the worker has passed without beginning them.
    pub(crate) fn skipped(&self) -> u64 {
        self.words[SKIPPED].load(SeqCst)
    }

    /// Worker: it passes a call.
    pub(crate) fn count_skipped(&self) {
        self.words[SKIPPED].store(self.skipped() + 1, SeqCst);
    }

    /// Worker: whether its client's protocol has a word for deaths.
    pub(crate) fn leaves_told(&self, told: bool) {
        self.words[UNTOLD].store(u64::from(!told), SeqCst);
    }

    /// Server: whether the client can be told of the worker's death.
    pub(crate) fn can_be_told(&self) -> bool {
        self.words[UNTOLD].load(SeqCst) == 0
    }

    /// Worker: the number of its client.
    pub(crate) fn serves(&self, client: u64) {
        self.words[CLIENT].store(client, Relaxed);
    }

    /// Worker: so many checkouts of its client wait now.
    pub(crate) fn hear_of_queue(&self, waiting: u64, now: Duration) {
        self.words[WAITING].store(waiting, Relaxed);
        self.words[WAITING_AT].store(now.as_nanos() as u64, Relaxed);
    }

    /// Server: which client has said last that so many of its checkouts wait, and when.
    pub(crate) fn queue(&self) -> Option<(u64, u64, u64)> {
        let [client, waiting, at] =
            [CLIENT, WAITING, WAITING_AT].map(|word| self.words[word].load(SeqCst));
        (client != 0).then_some((client, at, waiting))
    }

    /// Worker: it keeps a core busy from here on.
    pub(crate) fn works(&self) {
        let (word, bit) = (&self.active[self.index / 64], 1 << (self.index % 64));
        // In a new worker nothing of this memory is mapped: the kernel maps more for a read than for a write.
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Relaxed);
        }
    }

    /// Worker: it goes to sleep. Server: it is no more.
    pub(crate) fn rests(&self) {
        self.active[self.index / 64].fetch_and(!(1 << (self.index % 64)), Relaxed);
    }

    /// Worker: how many workers keep a core busy, this one included if it does.
    pub(crate) fn busy_cores(&self) -> usize {
        let words = self.used().load(Relaxed) as usize / 64 + 1;
        let busy = self.active.iter().take(words.min(SLOTS_IN_BITS));
        busy.map(|word| word.load(Relaxed).count_ones() as usize).sum()
    }

    fn used(&self) -> &AtomicU64 {
        &self.active[USED]
    }

    /// Worker: another checkout is done.
    pub(crate) fn count_checkout(&self) {
        let checkouts = self.words[CHECKOUTS].load(Relaxed);
        self.words[CHECKOUTS].store(checkouts + 1, Relaxed);
    }

    /// Worker: what the call that begins next is, when its time is over, and when it is to be ended.
    pub(crate) fn announce(&self, method: &str, times: Option<(Duration, Duration)>) {
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
        let (over, end) = times.unwrap_or_default();
        self.words[DEADLINE].store(over.as_nanos() as u64, Relaxed);
        self.words[HARD_DEADLINE].store(end.as_nanos() as u64, Relaxed);
    }

    /// Worker, having begun a call: whether its time is over before the server wakes by itself.
    pub(crate) fn is_over_before_server_wakes(&self, deadline: Duration) -> bool {
        (deadline.as_nanos() as u64) < self.active[WAKES_AT].load(SeqCst)
    }

    /// Worker: enters `phase`, unless the server has decided otherwise.
    pub(crate) fn enter(&self, phase: Phase) -> Result<(), Order> {
        self.enter_at(phase, phase.begins_something().then(now))
    }

    /// Worker: the same, with the time that is counted from if another is now.
    pub(crate) fn enter_at(&self, phase: Phase, since: Option<Duration>) -> Result<(), Order> {
        let state = self.words[STATE].load(SeqCst);
        let (current, calls) = unpack(state);
        match current {
            Phase::Condemned => return Err(Order::Condemned),
            Phase::Retired => return Err(Order::Retired),
            _ => {}
        }
        if let Some(since) = since {
            self.words[SINCE].store(since.as_nanos() as u64, SeqCst);
        }
        let calls = calls + u64::from(phase == Phase::Busy);
        match self.words[STATE].compare_exchange(state, pack(phase, calls), SeqCst, SeqCst) {
            Ok(_) => Ok(()),
            // Only an order of the server can have come in between.
            Err(_) => self.enter_at(phase, since),
        }
    }

    /// Worker, having entered a phase: whether it is for nobody. With the order of the writes, one
    /// of the two sides always sees the other: the server the phase, or the worker this.
    pub(crate) fn is_client_gone(&self) -> bool {
        self.words[CLIENT_GONE].load(SeqCst) != 0
    }

    /// Worker, having become idle: whether to leave. It or the server sees the other, as above.
    pub(crate) fn is_to_retire(&self) -> bool {
        self.words[RETIRE].load(SeqCst) != 0
    }
}

fn pack(phase: Phase, calls: u64) -> u64 {
    calls << 8 | phase as u64
}

fn unpack(state: u64) -> (Phase, u64) {
    let phase = Phase::ALL.into_iter().find(|&phase| phase as u64 == state & 0xff);
    // Stray writes of a worker's own bugs can leave anything here; nothing is begun then.
    (phase.unwrap_or(Phase::Condemned), state >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_that_was_decided_for_one_call_cannot_hit_the_next() {
        let slot = Scoreboard::new().unwrap().take().unwrap();
        slot.enter(Phase::Busy).unwrap();
        let judged = slot.view();
        slot.enter(Phase::Answering).unwrap();
        slot.enter(Phase::Held).unwrap();
        slot.enter(Phase::Busy).unwrap();

        assert!(!slot.order(judged, Order::Condemned));
        assert_eq!(slot.enter(Phase::Answering), Ok(()));
    }

    #[test]
    fn a_condemned_worker_begins_nothing() {
        let slot = Scoreboard::new().unwrap().take().unwrap();
        slot.enter(Phase::Idle).unwrap();
        assert!(slot.order(slot.view(), Order::Condemned));
        assert_eq!(slot.enter(Phase::Busy), Err(Order::Condemned));
        assert_eq!(slot.view().calls, 0);
    }

    #[test]
    fn workers_that_keep_cores_busy_are_counted() {
        let mut board = Scoreboard::new().unwrap();
        let slots: Vec<_> = (0..130).map(|_| board.take().unwrap()).collect();
        slots.iter().step_by(2).for_each(Slot::works);
        slots[4].works();
        assert_eq!(slots[0].busy_cores(), 65);
        slots[128].rests();
        slots[1].rests();
        assert_eq!(slots[0].busy_cores(), 64);
        board.give_back(slots[2].clone());
        assert_eq!(slots[0].busy_cores(), 63);
    }

    #[test]
    fn slots_are_used_again() {
        let mut board = Scoreboard::new().unwrap();
        let slot = board.take().unwrap();
        slot.enter(Phase::Busy).unwrap();
        slot.client_is_gone();
        board.give_back(slot);

        let slot = board.take().unwrap();
        assert_eq!(slot.view().phase, Phase::Greeting);
        assert!(!slot.is_client_gone());
        assert_eq!((board.used, board.free.len()), (1, 0));
    }
}
