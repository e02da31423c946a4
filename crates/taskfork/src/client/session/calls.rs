//! The calls of one checkout in the order in which they were made. Pure: it sends nothing and wakes no task.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;

use super::items::{CallInput, ItemQueue};
use crate::client::observe::log::Timing;
use crate::client::observe::metrics::Stopwatch;
use crate::client::observe::progress::ProgressCell;
use crate::client::observe::replay::Replay;
use crate::client::proto::AnswerAttachments;
use crate::error::FatalError;
use crate::time_limit::TimeLimit;
use crate::wire::call_error::AnswerError;
use crate::wire::gather_frame::GatherFrame;
use crate::wire::values::ValueFormat;

/// A call's number within its checkout.
pub(crate) type Seq = u64;

/// A method's name, or none.
pub(crate) type MethodName = Option<Cow<'static, str>>;

/// A file counts as this many bytes, because a process can have few of them open.
const BYTES_OF_A_FILE: usize = 4096;

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) method: MethodName,
    pub(crate) operation: Operation,
    pub(crate) progress: Progress,
    /// The time limit with which it was made, and when that is over.
    pub(crate) timeout: TimeLimit,
    pub(crate) deadline: Option<Instant>,
    /// The time limit from when it begins to run, and when that is over. `None` until it is known to run.
    pub(crate) run_timeout: TimeLimit,
    pub(crate) run_deadline: Option<Instant>,
    pub(crate) waker: Option<Waker>,
    /// Its future has been dropped.
    pub(crate) abandoned: bool,
    pub(crate) timing: Timing,
    pub(crate) sent: Stopwatch,
    /// Where the worker's spans and events go, until the outcome is taken.
    pub(crate) replay: Option<Arc<Replay>>,
    /// How far it has got, if the worker has said that or somebody wants to know it.
    pub(crate) progress_cell: Option<Arc<ProgressCell>>,
    /// The items that it has streamed, if it does.
    pub(crate) items: Option<Box<ItemQueue>>,
    /// The input that its caller streams, if it does.
    pub(crate) input: Option<Box<CallInput>>,
}

/// The replay of a finished call. It must be dropped while no lock is held, because that may run users' code.
pub(crate) type FinishedReplay = Option<Arc<Replay>>;

/// What an entry asks for.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Send this frame and wait for the answer. The second frame is the one for the current worker, if it
    /// must differ from the first.
    Call(GatherFrame, Option<Box<GatherFrame>>),
    /// Only wait for a worker.
    WaitForWorker,
    /// Fail: the arguments could not be encoded.
    Unsendable(String),
}

#[derive(Debug)]
pub(crate) enum Progress {
    Queued,
    /// Its connection sends it without the outbox, and knows how much has been sent.
    Sending,
    /// Sent, or in the outbox, as the call of this number on its connection.
    Sent(u64),
    Done(Outcome),
    /// Its outcome was taken, or it was removed.
    Removed,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The worker returned a result.
    Result {
        /// The encoded result.
        value: Bytes,
        /// What it was encoded in first.
        format: ValueFormat,
        attachments: AnswerAttachments,
    },
    /// The worker returned an error.
    Error {
        error: Box<AnswerError>,
        /// The worker may be used again after its checkout.
        keeps_worker: bool,
    },
    /// The worker is ready, and nothing else was asked for.
    Ready,
    Unsendable(String),
    Dropped {
        behind: String,
    },
    Fatal {
        cause: FatalError,
        may_have_run: bool,
    },
}

impl Entry {
    /// When the first of its time limits is over.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        match (self.deadline, self.run_deadline) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Whether it streams in any direction. Nothing but what belongs to the stream may follow it.
    #[inline]
    pub(crate) fn streams(&self) -> bool {
        self.items.is_some() || self.input.is_some()
    }

    #[inline]
    fn is_finished(&self) -> bool {
        matches!(self.progress, Progress::Done(_) | Progress::Removed)
    }

    /// The call's frame, for the current worker.
    #[inline]
    pub(crate) fn frame(&self) -> Option<&GatherFrame> {
        match &self.operation {
            Operation::Call(frame, fitted) => Some(fitted.as_deref().unwrap_or(frame)),
            Operation::WaitForWorker | Operation::Unsendable(_) => None,
        }
    }

    /// Its number on its connection, once it is sent.
    #[inline]
    pub(crate) fn number(&self) -> Option<u64> {
        match self.progress {
            Progress::Sent(number) => Some(number),
            _ => None,
        }
    }

    /// How much of the worker's window for unanswered calls it takes.
    fn bytes(&self) -> usize {
        self.frame().map_or(0, |frame| frame.len() + frame.files.len() * BYTES_OF_A_FILE)
    }

    pub(crate) fn label(&self) -> String {
        match (&self.method, &self.operation) {
            (Some(method), _) => format!("the call of `{method}`"),
            (None, Operation::WaitForWorker) => "the wait for a worker".to_owned(),
            (None, _) => "the call without a method".to_owned(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Calls {
    list: VecDeque<Entry>,
    /// The number of the first in `list`.
    base: Seq,
    /// How many at the front of `list` are finished.
    finished: usize,
    /// How many are unfinished and waited for.
    live: usize,
    /// The index of the first that may have to be sent.
    next: usize,
    /// How many bytes of the worker's window the sent calls without answers take.
    pub(super) unanswered_bytes: usize,
    /// How many sent calls without answers stream.
    unanswered_streams: usize,
}

impl Calls {
    pub(crate) fn unfinished(&self) -> usize {
        self.list.iter().filter(|entry| !entry.is_finished()).count()
    }

    pub(crate) fn push(&mut self, entry: Entry) -> Seq {
        let seq = self.base + self.list.len() as u64;
        self.live += usize::from(!entry.is_finished());
        if self.list.capacity() == 0 {
            // Most checkouts have one call, and many may wait.
            self.list.reserve_exact(1);
        }
        self.list.push_back(entry);
        self.compact();
        seq
    }

    /// The first entry that is not finished.
    pub(super) fn first(&self) -> Option<&Entry> {
        self.list.get(self.finished)
    }

    /// The first unfinished entry.
    #[inline]
    pub(crate) fn head(&mut self) -> Option<(Seq, &mut Entry)> {
        let seq = self.base + self.finished as u64;
        self.list.get_mut(self.finished).map(|entry| (seq, entry))
    }

    /// Whether [`next`](Self::next) may return an entry.
    #[inline]
    pub(crate) fn may_have_unsent(&self) -> bool {
        self.next < self.list.len()
    }

    /// The first unfinished call that is not yet sent.
    pub(crate) fn next(&mut self) -> Option<&mut Entry> {
        let passed = |entry: &Entry| {
            entry.is_finished() || matches!(entry.operation, Operation::WaitForWorker)
        };
        while self.list.get(self.next).is_some_and(passed) {
            self.next += 1;
        }
        self.list.get_mut(self.next)
    }

    /// The frame of the call that is being sent without the outbox.
    pub(crate) fn sending(&self) -> Option<&GatherFrame> {
        let entry = self.list.get(self.next)?;
        entry.frame().filter(|_| matches!(entry.progress, Progress::Sending))
    }

    /// Marks the entry that [`next`](Self::next) returned as sent. Returns whether it streams, and nobody wants that any
    /// more, because its future was dropped when a part of it had been sent.
    pub(crate) fn mark_sent(&mut self, number: u64) -> bool {
        let Some(entry) = self.list.get_mut(self.next) else { return false };
        entry.progress = Progress::Sent(number);
        self.unanswered_bytes += entry.bytes();
        self.unanswered_streams += usize::from(entry.streams());
        self.next += 1;
        entry.abandoned && entry.streams()
    }

    /// Marks all unanswered calls as unsent, because another worker will get them.
    pub(crate) fn requeue_sent(&mut self) {
        for entry in self.list.iter_mut().skip(self.finished) {
            if matches!(entry.progress, Progress::Sending | Progress::Sent(_)) {
                entry.run_deadline = None;
                // Nothing of it has been sent.
                entry.input.iter_mut().for_each(|input| **input = CallInput::default());
                entry.progress = if entry.abandoned { Progress::Removed } else { Progress::Queued };
            }
        }
        self.unanswered_bytes = 0;
        self.unanswered_streams = 0;
        self.next = self.finished;
        self.compact();
    }

    /// Whether a sent call without an answer streams. Nothing but what belongs to the stream may follow it.
    #[inline]
    pub(crate) fn is_streaming(&self) -> bool {
        self.unanswered_streams > 0
    }

    /// An entry whose outcome has not been taken.
    pub(crate) fn get_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        let index = self.index(seq)?;
        self.list.get_mut(index)
    }

    /// The number of a sent call, if it is not the head.
    pub(crate) fn number_behind_head(&self, seq: Seq) -> Option<u64> {
        let index = self.index(seq)?;
        self.list[index].number().filter(|_| index > self.finished)
    }

    /// Whether any entry is behind the head.
    #[inline]
    pub(crate) fn has_more_than_head(&self) -> bool {
        self.list.len() > self.finished + 1
    }

    /// The number on its connection of the first unfinished call, if that is `seq` and its caller streams an input.
    pub(crate) fn running_input(&mut self, seq: Seq) -> Option<(u64, &mut CallInput)> {
        let (_, entry) = self.head().filter(|(head, entry)| *head == seq && !entry.abandoned)?;
        let number = entry.number()?;
        Some((number, entry.input.as_deref_mut()?))
    }

    /// Whether the future of an unfinished entry exists.
    #[inline]
    pub(crate) fn is_awaited(&self) -> bool {
        self.live > 0
    }

    pub(crate) fn progress(&self, seq: Seq) -> Option<&Progress> {
        self.index(seq).map(|index| &self.list[index].progress)
    }

    /// Finishes an entry. Returns the waker of the task that waits for it, and its replay if it was abandoned.
    pub(crate) fn finish(&mut self, seq: Seq, outcome: Outcome) -> (Option<Waker>, FinishedReplay) {
        let Some(index) = self.index(seq) else { return (None, None) };
        let entry = &mut self.list[index];
        if entry.is_finished() {
            return (None, None);
        }
        let waker = entry.waker.take();
        let mut replay = None;
        if entry.number().is_some() {
            self.unanswered_bytes -= entry.bytes();
            self.unanswered_streams -= usize::from(entry.streams());
        }
        entry.timing.end();
        if entry.abandoned {
            entry.progress = Progress::Removed;
            replay = entry.replay.take();
        } else {
            self.live -= 1;
            entry.progress = Progress::Done(outcome);
        }
        // This frees the call's bytes, which are not needed while the outcome waits to be taken.
        entry.operation = Operation::WaitForWorker;
        self.compact();
        (waker, replay)
    }

    /// Takes the outcome, if there is one.
    pub(crate) fn take(&mut self, seq: Seq) -> Option<(MethodName, Outcome, FinishedReplay)> {
        let index = self.index(seq)?;
        let entry = &mut self.list[index];
        if !matches!(entry.progress, Progress::Done(_)) {
            return None;
        }
        let method = entry.method.take();
        let Progress::Done(outcome) = std::mem::replace(&mut entry.progress, Progress::Removed)
        else {
            return None;
        };
        let replay = entry.replay.take();
        self.compact();
        Some((method, outcome, replay))
    }

    /// Records that the future of an entry was dropped. Removes the entry if no byte of it was sent, or if it is
    /// done. Returns its replay then. `is_partly_sent` says whether that is so of the entry that is being sent.
    pub(crate) fn abandon(&mut self, seq: Seq, is_partly_sent: bool) -> FinishedReplay {
        let index = self.index(seq)?;
        let entry = &mut self.list[index];
        if entry.abandoned {
            return None;
        }
        self.live -= usize::from(!entry.is_finished());
        entry.abandoned = true;
        entry.waker = None;
        if let Some(items) = &mut entry.items {
            items.clear();
        }
        let mut replay = None;
        let is_unsent = match entry.progress {
            Progress::Queued => true,
            Progress::Sending => !is_partly_sent,
            _ => false,
        };
        if is_unsent || matches!(entry.progress, Progress::Done(_)) {
            entry.progress = Progress::Removed;
            entry.timing = Timing::Off;
            replay = entry.replay.take();
        }
        self.compact();
        replay
    }

    /// Where reports of the progress of an unfinished call go.
    pub(crate) fn progress_cell(&mut self, seq: Seq) -> Option<Arc<ProgressCell>> {
        let index = self.index(seq)?;
        let entry = &mut self.list[index];
        (!entry.is_finished()).then(|| entry.progress_cell.get_or_insert_default().clone())
    }

    /// Removes the place of reports of a call's progress.
    pub(crate) fn take_progress_cell(&mut self, seq: Seq) -> Option<Arc<ProgressCell>> {
        let index = self.index(seq)?;
        self.list[index].progress_cell.take()
    }

    pub(crate) fn set_waker(&mut self, seq: Seq, waker: &Waker) {
        let Some(index) = self.index(seq) else { return };
        match &mut self.list[index].waker {
            Some(old) => old.clone_from(waker),
            empty => *empty = Some(waker.clone()),
        }
    }

    fn index(&self, seq: Seq) -> Option<usize> {
        let index = usize::try_from(seq.checked_sub(self.base)?).ok()?;
        (index < self.list.len()).then_some(index)
    }

    /// Moves the head past finished entries, and frees removed ones at the front.
    fn compact(&mut self) {
        while self.list.get(self.finished).is_some_and(Entry::is_finished) {
            self.finished += 1;
        }
        self.next = self.next.max(self.finished);
        while matches!(self.list.front(), Some(Entry { progress: Progress::Removed, .. })) {
            self.list.pop_front();
            self.base += 1;
            self.finished -= 1;
            self.next -= 1;
        }
    }
}
