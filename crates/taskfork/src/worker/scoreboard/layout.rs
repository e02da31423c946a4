//! What the words of a slot and of the published page mean. Times are in nanoseconds on the clock of
//! [`now`](super::now).

use crate::histogram::Histogram;
use crate::sys::MAX_STACK_FRAMES;
use crate::worker::phase::Phase;

/// See [`pack`].
pub(super) const STATE: usize = 0;
/// When the worker entered its phase, or began the call that it answers or has answered.
pub(super) const SINCE: usize = 1;
/// 1 if the client has closed the connection. Written by the server.
pub(super) const CLIENT_GONE: usize = 2;
/// The number of a [`Retirement`](super::Retirement), or 0. Written by both sides.
pub(super) const RETIRE: usize = 3;
/// When the server kills the current call, or 0 for never.
pub(super) const HARD_DEADLINE: usize = 4;
/// The number of addresses at [`STACK`] plus 1, or 0 if the stack has not been reported.
pub(super) const STACK_READY: usize = 5;
/// How many checkouts have ended.
pub(super) const CHECKOUTS: usize = 6;
/// How many calls were skipped, because they were cancelled or a call before them had failed.
pub(super) const SKIPPED: usize = 7;
/// The first 64 bytes of the method that runs or has run last.
pub(super) const METHOD: usize = 8;
pub(super) const METHOD_WORDS: usize = 8;
/// The same in bytes.
pub(crate) const METHOD_BYTES: usize = METHOD_WORDS * 8;
/// When the timeout of the current call is over, or 0 for never.
pub(super) const DEADLINE: usize = 16;
/// 1 if the client's protocol has no message that reports a worker's death.
pub(super) const DEATH_UNREPORTABLE: usize = 17;
/// The number that the client has chosen for itself, or 0.
pub(super) const CLIENT: usize = 18;
/// How many checkouts of the client wait for a worker.
pub(super) const WAITING: usize = 19;
/// When the client reported [`WAITING`].
pub(super) const WAITING_AT: usize = 20;
/// The number plus 1 of the system call for which the sandbox kills the worker, or 0.
pub(super) const VIOLATION: usize = 21;
/// 0 without a report of the call's progress, odd while the worker changes the report, otherwise even.
pub(super) const PROGRESS: usize = 22;
/// How much is done.
pub(super) const PROGRESS_DONE: usize = 23;
/// How much there is in all, or `u64::MAX` if that is not known.
pub(super) const PROGRESS_TOTAL: usize = 24;
/// What is done: text of 64 bytes, filled up with zeros.
pub(super) const PROGRESS_TEXT: usize = 25;
pub(super) const PROGRESS_TEXT_WORDS: usize = 8;
/// The number of addresses at [`SAMPLE`] plus 1, or 0 if there is no sample of the stack.
pub(super) const SAMPLE_READY: usize = 34;
/// The process id of the program that the worker runs, or 0.
pub(super) const PROGRAM: usize = 35;
/// The number of a [`ProgramStage`](super::ProgramStage), or 0.
pub(super) const PROGRAM_STAGE: usize = 36;
/// The addresses of the worker's stack.
pub(super) const STACK: usize = 64;
/// The addresses of the worker's stack when the server asked for a sample.
pub(super) const SAMPLE: usize = STACK + MAX_STACK_FRAMES;
/// The calls by method, see [`method_table`](super::method_table).
pub(super) const CALLS: usize = SAMPLE + MAX_STACK_FRAMES;
/// The most methods that have an entry of their own in that table. The last entry is for all others.
pub(super) const COUNTED_METHODS: usize = 8;
/// How many words an entry has before the method's name, and in all: one for each range of time stands behind the name.
pub(super) const ENTRY_NAME: usize = 3;
pub(super) const ENTRY: usize = ENTRY_NAME + METHOD_WORDS + Histogram::RANGES;
/// How many words the table has.
pub(super) const TABLE_WORDS: usize = (COUNTED_METHODS + 1) * ENTRY;
/// How many words of the slot are used.
const END: usize = CALLS + TABLE_WORDS;
// The smallest page of any kernel.
const _: () = assert!(END * size_of::<u64>() <= 4096);

/// In the published page: when the server scans the slots next.
pub(super) const WAKEUP: usize = 0;
/// In the published page: the number of workers.
pub(super) const WORKERS: usize = 1;
/// In the published page: 1 if the server's programs serve their connections themselves.
pub(super) const TAKES_OVER: usize = 2;

/// The largest value that is accepted at [`WAITING`]. Larger ones count as this.
pub(super) const MAX_WAITING: u64 = 1 << 32;

/// The largest count of calls or checkouts that is possible. A worker that counts one in each nanosecond
/// reaches it after a day.
pub(crate) const MAX_COUNT: u64 = 1 << 47;

/// The value of [`STATE`]: a compare-and-swap on it covers both the phase and the call.
pub(super) fn pack(phase: Phase, calls: u64) -> u64 {
    calls << 8 | phase as u64
}
