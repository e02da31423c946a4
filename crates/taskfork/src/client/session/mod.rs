//! A checkout as a state machine: its place in the queue or its worker, and its calls. [`Session`] decides which call
//! is sent when, how it ends, when another worker takes over, and when the worker is returned.
//!
//! It does no I/O, takes no lock and knows no runtime. It decides nothing by a clock but the time that it is given.
//! Handles for telemetry (logs, replays, stopwatches) are passed on, and have clocks and locks of their own.
//!
//! A session has four kinds of methods:
//!
//! | kind | methods |
//! |---|---|
//! | what has happened | `assign`, `begin_run`, `enter_queue`, `handle_sent`, `handle_blocked`, `handle_write_error`, `note_server_end`, `handle_answer`, `handle_timeout`, `handle_turn_over`; and those of its connection for input |
//! | what to do | `start_first_call`, `put_queue_length`, `poll_transmit`, `put_in_ring`, `process`, `poll_timeout` |
//! | what others must learn | `poll_event` |
//! | what the user wants | `submit`, `take`, `put_input`, `end_input`, `abandon`, `close`, `end` |
//!
//! After any of the others, call them in this order:
//!
//! 1. `poll_event` until it returns `None`. `assign` or `enter_queue` answers [`Event::NeedsWorker`].
//! 2. Without a connection, stop here. Otherwise `poll_transmit` until it returns `None`, as for a connection
//!    of [`proto`](crate::client::proto).
//! 3. `process`, and what its [`Step`] says. Then begin again.
//! 4. At the end `finish_if_done`, `poll_event` once more, and a timer for the time of `poll_timeout`.

pub(crate) mod calls;
mod failure;
mod inputs;
pub(crate) mod items;
mod pipeline;
mod process;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use log_defer::Log;
use smallvec::SmallVec;

use self::calls::{Calls, Entry, MethodName, Operation, Outcome, Progress, Seq};
use self::pipeline::Pipeline;
pub(crate) use self::process::Step;
use crate::client::now::Now;
use crate::client::observe::log::Timing;
use crate::client::observe::metrics::Stopwatch;
use crate::client::observe::progress::ProgressCell;
use crate::client::observe::replay::Replay;
use crate::client::pool::Loss;
use crate::client::proto::connection::Connection;
use crate::client::proto::disconnect::NOTICE_WAIT;
use crate::client::proto::handshake::PeerLimits;
use crate::client::proto::io_types::Transmit;
use crate::error::{ConnectionError, FatalError};
use crate::shm_pool::ShmBufferMut;
use crate::time_limit::TimeLimit;

#[derive(Debug)]
pub(crate) struct Session {
    options: SessionOptions,
    assignment: Assignment,
    calls: Calls,
    pipeline: Pipeline,
    handle: Handle,
    usage: Usage,
    /// How many workers have died in `setup` before they could serve this checkout.
    setup_deaths: u32,
    /// How many workers have died with the first call unstarted, with no idle worker to take their
    /// place.
    unstarted_deaths: u32,
    /// A failed call whose outcome its caller has not taken, and its description.
    unobserved_failure: Option<(Seq, String)>,
    /// The user makes one call and drops the checkout.
    is_single: bool,
    /// How many times the first call may be made again after it may have run.
    retries: u32,
    /// It has been made again, so it may have run whatever happens to it now.
    is_repeated: bool,
    /// The time limits of further calls.
    timeout: TimeLimit,
    run_timeout: TimeLimit,
    /// When to look at the deadline of the first call. It may be earlier than that deadline.
    check_at: Option<Instant>,
    log: Option<Log>,
    /// How the server has ended, if that is known when a connection ends.
    server_end: Option<String>,
    events: SmallVec<[Option<Event>; 2]>,
    /// How many of `events` have been taken.
    events_taken: usize,
}

/// What the sessions of a client have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionOptions {
    pub(crate) reuse_after_error: bool,
    /// The time limit of calls, from when they are made.
    pub(crate) timeout: TimeLimit,
    /// The time limit of calls, from when they begin to run.
    pub(crate) run_timeout: TimeLimit,
    /// How long a worker may go on after the deadline of its call.
    pub(crate) grace: TimeLimit,
    pub(crate) connect_timeout: TimeLimit,
    pub(crate) time_keeper: TimeKeeper,
}

/// Who ends a call whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeKeeper {
    /// The server kills the worker after the grace, and sends a notice.
    Server,
    /// The client, after the grace: the worker knows the time, and nobody can kill it.
    ClientAfterGrace,
    /// The client, at once: the server's protocol has no time limits.
    Client,
}

/// Who serves the session.
#[derive(Debug)]
enum Assignment {
    /// The session is new or over. It has no worker and asks for none.
    None,
    Waiting,
    Worker(Box<Connection>),
    /// The session ends once it is known whether the worker, whose hello or the end of whose `setup` is due, has begun a
    /// call.
    Ending(Box<Ending>),
    /// Its worker was lost, and [`Event::NeedsWorker`] asks for another.
    Replacing {
        /// The first call on that worker's connection had not begun.
        is_unstarted: bool,
    },
    Failed(Box<FatalError>),
}

/// A session that ends, and why.
#[derive(Debug)]
struct Ending {
    connection: Box<Connection>,
    cause: FatalError,
    loss: Loss,
}

/// Whether the user has the checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handle {
    Held,
    Dropped,
}

/// What the checkout has done with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usage {
    /// No call has been answered, so another worker may take over.
    Unused,
    Used,
    /// A call has failed, and its error may have left the worker's state half changed.
    Spoiled,
}

/// What others must learn of a change.
#[derive(Debug)]
pub(crate) enum Event {
    /// This call of this task has ended.
    Wake(Seq, Waker),
    /// A replay has pending records, or is finished.
    Replay(Arc<Replay>),
    /// The progress of a call has changed, or the call is over.
    Progress(Arc<ProgressCell>),
    /// A log to drop. Dropping the last handle of a log calls the user's callback.
    DropLog(Log),
    /// A worker's hello has come, this long after the connection was made.
    Established(PeerLimits, Duration),
    /// A worker has been lost, for this cause.
    WorkerLost(&'static str),
    /// The connection is returned.
    Returned(Box<Connection>, Return),
    /// Another worker must take the place of the one that was returned.
    NeedsWorker,
    /// The checkout no longer waits for a worker.
    LeavesQueue,
    /// The time of the first call is over before a worker had it. The session must be ended.
    WaitTimedOut { after: Duration },
}

/// What becomes of a returned connection.
#[derive(Debug)]
pub(crate) enum Return {
    /// The checkout has ended, and its worker can be used again.
    Release,
    /// The worker is dead or must not be used again.
    Lose(Loss),
    /// The worker must not be used again. What the outbox has is sent first.
    Close,
    /// The worker never sent its hello, for this reason.
    FailHandshake(ConnectionError),
}

impl Session {
    /// `is_single` says that the user makes one call and drops the checkout.
    pub(crate) fn new(options: SessionOptions, is_single: bool) -> Self {
        Self {
            options,
            assignment: Assignment::None,
            calls: Calls::default(),
            pipeline: Pipeline::default(),
            handle: Handle::Held,
            usage: Usage::Unused,
            setup_deaths: 0,
            unstarted_deaths: 0,
            unobserved_failure: None,
            is_single,
            retries: 0,
            is_repeated: false,
            timeout: options.timeout,
            run_timeout: options.run_timeout,
            check_at: None,
            log: None,
            server_end: None,
            events: SmallVec::new(),
            events_taken: 0,
        }
    }

    // What has happened.

    /// The session has a worker. It had none before.
    pub(crate) fn assign(&mut self, connection: Box<Connection>) {
        self.pipeline = Pipeline::default();
        self.server_end = None;
        self.assignment = Assignment::Worker(connection);
    }

    /// The session has a place in the queue.
    pub(crate) fn enter_queue(&mut self) {
        if let Assignment::Replacing { is_unstarted: true } = self.assignment {
            // Deaths are not counted while idle workers replace the dead ones.
            self.unstarted_deaths += 1;
        }
        self.assignment = Assignment::Waiting;
    }

    /// Begins the time of the first call's `run_timeout`, if it is known to run now: its worker has all of it, and has
    /// answered the calls before it.
    ///
    /// The worker itself knows better, and its server ends the call. This is for servers that do not, and for peers
    /// that are lost. Before the first call of a checkout the worker may run `checkout_done` of the checkout before. It
    /// does not say when that ends, so the time of such a call is known to the server only.
    #[inline]
    pub(crate) fn begin_run(&mut self, now: &Now) {
        let Assignment::Worker(connection) = &self.assignment else { return };
        let Some((_, head)) = self.calls.head() else { return };
        if head.run_timeout == TimeLimit::NEVER || head.run_deadline.is_some() {
            return;
        }
        let is_known =
            self.options.time_keeper != TimeKeeper::Server || self.usage != Usage::Unused;
        let sent = connection.calls_sent();
        if is_known && connection.is_started() && head.number().is_some_and(|number| number <= sent)
        {
            head.run_deadline = head.run_timeout.after(now.get());
            self.watch_deadline();
        }
    }

    /// Records that this number of bytes of what [`poll_transmit`](Self::poll_transmit) returned was sent. Returns
    /// whether they complete a call.
    #[inline]
    pub(crate) fn handle_sent(&mut self, bytes: usize) -> bool {
        let Some(connection) = self.assignment.connection_mut() else { return false };
        let sent = connection.calls_sent();
        let excess = connection.handle_sent(bytes);
        if excess > 0 {
            pipeline::handle_call_sent(&mut self.calls, connection, excess);
        }
        connection.calls_sent() > sent
    }

    /// Nothing can be sent now.
    pub(crate) fn handle_blocked(&mut self) {
        if let Some(connection) = self.assignment.connection_mut() {
            connection.handle_blocked();
        }
    }

    /// The worker is awake: moves what [`poll_transmit`](Self::poll_transmit) returned into its ring. Returns whether
    /// that completes a call.
    pub(crate) fn put_in_ring(&mut self) -> bool {
        let Some(connection) = self.assignment.connection_mut() else { return false };
        let sent = connection.calls_sent();
        connection.put_in_ring();
        connection.calls_sent() > sent
    }

    /// Sending has failed.
    pub(crate) fn handle_write_error(&mut self, error: io::Error) {
        let Some(connection) = self.assignment.connection_mut() else { return };
        let lost = connection.handle_write_error(error);
        let sent = connection.calls_sent();
        self.pipeline.stop(lost);
        // Answers of calls that were sent before can still be read.
        let first = self.calls.head().and_then(|(_, head)| head.number());
        if first.is_none_or(|first| first > sent) {
            self.find_last_message();
        }
    }

    /// Reads what the worker sent before a write failed, if one has: the server's notice of the worker's death may be
    /// unread. Returns whether that is so.
    fn find_last_message(&mut self) -> bool {
        let (Some(connection), Some(lost)) =
            (self.assignment.connection_mut(), self.pipeline.take_lost())
        else {
            return false;
        };
        connection.find_last_message(lost);
        true
    }

    /// The server has ended, as this text says. Called before the end of a connection is processed.
    pub(crate) fn note_server_end(&mut self, how: Option<String>) {
        self.server_end = how;
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) may have come. What arrived before must have been processed.
    pub(crate) fn handle_timeout(&mut self, now: &Now) {
        if let Some(connection) = self.assignment.connection_mut() {
            connection.handle_timeout(now);
            if connection.waits_for_arrived() {
                // What has arrived by now counts, also as the end of a call whose time is over too.
                if let Assignment::Ending(..) = self.assignment {
                    self.check_at = None;
                }
                return;
            }
        }
        if self.check_at.is_none_or(|at| at > now.get()) {
            return;
        }
        self.check_at = None;
        let Some((_, head)) = self.calls.head() else { return };
        let Some(deadline) = head.ends_at() else { return };
        let has_number = head.number().is_some();
        // About as long as the call has run.
        let limits = [head.timeout, head.run_timeout].map(|limit| limit.get());
        let time = limits.into_iter().flatten().max().unwrap_or_default();
        let can_hang = self
            .connection()
            .is_some_and(|connection| connection.is_started() && !connection.is_flooding(time));
        // A worker that has begun the call may go on for the grace period. Then its server kills it, and the notice says
        // where it was. A worker that floods this side with messages does not hang.
        let is_running = can_hang && has_number;
        let wait = match self.options.time_keeper {
            TimeKeeper::Server if is_running => self.options.grace.plus(NOTICE_WAIT),
            TimeKeeper::ClientAfterGrace if is_running => self.options.grace,
            _ => TimeLimit::new(Duration::ZERO),
        };
        let Some(end) = wait.after(deadline) else { return };
        if end > now.get() {
            self.check_at = Some(end);
            return;
        }
        self.time_out();
    }

    /// Ends the session if the time of its first call is over, so that a worker would come too late. Returns whether
    /// that is so.
    pub(crate) fn end_if_late(&mut self, now: &Now) -> bool {
        let deadline = self.calls.head().and_then(|(_, head)| head.deadline);
        let is_late = deadline.is_some_and(|deadline| deadline <= now.get());
        if is_late {
            self.time_out();
        }
        is_late
    }

    // What to do.

    /// Returns true once for a worker: when the first call is about to be sent to it.
    #[inline]
    pub(crate) fn start_first_call(&mut self) -> bool {
        matches!(self.assignment, Assignment::Worker(_)) && self.pipeline.start(&mut self.calls)
    }

    /// Tells the worker how many checkouts wait.
    pub(crate) fn put_queue_length(&mut self, waiting: u64) {
        if let Some(connection) = self.assignment.connection_mut() {
            // A number is short, so it can always be encoded.
            let _ = connection.put_queue_length(waiting);
        }
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) may return something.
    #[inline]
    pub(crate) fn has_to_send(&self) -> bool {
        self.calls.may_have_unsent() || self.connection().is_some_and(Connection::has_to_send)
    }

    /// What to send next.
    #[inline]
    pub(crate) fn poll_transmit(&mut self, now: &Now) -> Option<Transmit<'_>> {
        if !self.has_to_send() {
            return None;
        }
        let Assignment::Worker(connection) = &mut self.assignment else { return None };
        let only_first = self.usage == Usage::Unused && connection.may_be_answering();
        self.pipeline.poll_transmit(&mut self.calls, connection, only_first, self.is_single, now)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[inline]
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.connection().and_then(Connection::poll_timeout) {
            Some(handshake) => Some(self.check_at.map_or(handshake, |at| at.min(handshake))),
            None => self.check_at,
        }
    }

    // What others must learn.

    /// Whether [`poll_event`](Self::poll_event) returns something.
    #[inline]
    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        match self.events.get_mut(self.events_taken) {
            Some(event) => {
                self.events_taken += 1;
                event.take()
            }
            None => {
                if self.events_taken > 0 {
                    self.events.clear();
                    self.events_taken = 0;
                }
                None
            }
        }
    }

    fn emit(&mut self, event: Event) {
        self.events.push(Some(event));
    }

    // What the user wants.

    /// Sets the time limit of later calls. Returns the one before.
    pub(crate) fn set_timeout(&mut self, timeout: TimeLimit) -> TimeLimit {
        std::mem::replace(&mut self.timeout, timeout)
    }

    pub(crate) fn set_run_timeout(&mut self, timeout: TimeLimit) {
        self.run_timeout = timeout;
    }

    /// Allows the first call to be made again this many times, though it may have run.
    pub(crate) fn set_retries(&mut self, retries: u32) {
        self.retries = retries;
    }

    /// Replaces the log. Returns the one before.
    pub(crate) fn set_log(&mut self, log: Log) -> Option<Log> {
        self.log.replace(log)
    }

    /// Appends a call.
    pub(crate) fn submit(
        &mut self,
        method: MethodName,
        operation: Operation,
        replay: Option<Arc<Replay>>,
        now: &Now,
    ) -> Seq {
        let deadline = self.timeout.get().and_then(|_| self.timeout.after(now.get()));
        let outcome = match (&self.assignment, &self.unobserved_failure) {
            (Assignment::Failed(cause), _) => {
                Some(Outcome::Fatal { cause: FatalError::clone(cause), may_have_run: false })
            }
            (Assignment::Ending(ending), _) => {
                Some(Outcome::Fatal { cause: ending.cause.clone(), may_have_run: false })
            }
            (_, Some((_, behind))) => Some(Outcome::Dropped { behind: behind.clone() }),
            _ => None,
        };
        let progress = outcome.map_or(Progress::Queued, Progress::Done);
        let is_queued = matches!(progress, Progress::Queued);
        let mut timing = match operation {
            Operation::WaitForWorker => Timing::Off,
            _ => Timing::new(self.log.as_ref(), method.as_deref()),
        };
        if !is_queued {
            timing.end();
        }
        let entry = Entry {
            method,
            operation,
            progress,
            timeout: self.timeout,
            deadline,
            run_timeout: self.run_timeout,
            run_deadline: None,
            waker: None,
            abandoned: false,
            timing,
            sent: Stopwatch::new(),
            replay,
            progress_cell: None,
            items: None,
            input: None,
        };
        let seq = self.calls.push(entry);
        self.watch_deadline();
        seq
    }

    /// Looks at the deadline of the first call in time.
    fn watch_deadline(&mut self) {
        if let Some(deadline) = self.calls.first().and_then(Entry::ends_at)
            && self.check_at.is_none_or(|at| deadline < at)
        {
            self.check_at = Some(deadline);
        }
    }

    /// Takes the outcome of a call, if it has ended.
    pub(crate) fn take(&mut self, seq: Seq) -> Option<(MethodName, Outcome)> {
        let (method, outcome, replay) = self.calls.take(seq)?;
        // The worker's records are replayed before the caller continues.
        self.emit_replay(replay);
        self.mark_observed(seq);
        Some((method, outcome))
    }

    /// Whether a call has ended.
    pub(crate) fn is_done(&self, seq: Seq) -> bool {
        !matches!(
            self.calls.progress(seq),
            Some(Progress::Queued | Progress::Sending | Progress::Sent(_))
        )
    }

    /// Sets the task to wake when this call ends.
    pub(crate) fn set_waker(&mut self, seq: Seq, waker: &Waker) {
        self.calls.set_waker(seq, waker);
    }

    /// Where reports of the progress of a call go. `None` if there will be none.
    pub(crate) fn progress_cell(&mut self, seq: Seq) -> Option<Arc<ProgressCell>> {
        self.calls.progress_cell(seq)
    }

    /// The caller has dropped the call.
    pub(crate) fn abandon(&mut self, seq: Seq) {
        self.mark_observed(seq);
        // Whoever awaits the next report must not wait for a call that nobody wants.
        self.end_progress(seq);
        // A call that streams looks for it while it runs, too.
        let streaming = self.calls.get_mut(seq).filter(|entry| entry.streams());
        let number = streaming.and_then(|entry| entry.number());
        if let (Assignment::Worker(connection), Some(_)) = (&mut self.assignment, number) {
            connection.end_items();
        }
        let number = number.or_else(|| self.calls.number_behind_head(seq));
        if let (Assignment::Worker(connection), Some(number)) = (&mut self.assignment, number) {
            connection.cancel_call(number);
        }
        let is_partly_sent = self.connection().is_some_and(Connection::is_call_partly_sent);
        let replay = self.calls.abandon(seq, is_partly_sent);
        self.emit_replay(replay);
        // Without a checkout its worker is lost, and must not answer the cancellation before that.
        let is_streaming = self.calls.head().is_some_and(|(_, head)| head.streams());
        if is_streaming && self.handle == Handle::Dropped {
            self.finish_if_done();
        }
    }

    /// The user has dropped the checkout.
    pub(crate) fn close(&mut self) {
        self.handle = Handle::Dropped;
    }

    /// Fails the checkout with all of its calls, also later ones.
    pub(crate) fn end(&mut self, cause: FatalError, loss: Loss) {
        match std::mem::replace(&mut self.assignment, Assignment::None) {
            Assignment::Worker(mut connection) if !connection.is_started() => {
                connection.abort_handshake();
                self.assignment = Assignment::Ending(Box::new(Ending { connection, cause, loss }));
            }
            assignment => {
                let sent = assignment.connection().map_or(0, Connection::calls_sent);
                self.assignment = assignment;
                self.end_with(cause, loss, sent);
            }
        }
    }

    /// Replaces the borrowed arguments of a call by copies, unless they are in memory that is shared with the worker.
    pub(crate) fn own_arguments(&mut self, seq: Seq, copy: &mut dyn FnMut(&[u8]) -> Bytes) {
        let Some(entry) = self.calls.get_mut(seq) else { return };
        if let Operation::Call(frame, fitted) = &mut entry.operation {
            let mut copies = Vec::new();
            frame.own_borrowed(&mut copies, copy);
            fitted.iter_mut().for_each(|fitted| fitted.own_borrowed(&mut copies, copy));
        }
    }

    /// Allocates memory that is shared with the worker, if there is any.
    pub(crate) fn alloc_shared(&mut self, length: usize) -> Option<ShmBufferMut> {
        self.assignment.connection_mut()?.alloc_shared(length)
    }

    // The state.

    /// The connection, if the session has a worker. It receives the input.
    #[inline]
    pub(crate) fn connection(&self) -> Option<&Connection> {
        self.assignment.connection()
    }

    #[inline]
    pub(crate) fn connection_mut(&mut self) -> Option<&mut Connection> {
        self.assignment.connection_mut()
    }

    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.assignment, Assignment::Waiting)
    }

    /// Whether a worker has this call, which is the first unfinished one.
    pub(crate) fn is_running(&mut self, seq: Seq) -> bool {
        let Assignment::Worker(connection) = &self.assignment else { return false };
        let sent = connection.calls_sent();
        self.calls.head().is_some_and(|(head, entry)| {
            head == seq && entry.number().is_some_and(|number| number <= sent)
        })
    }

    /// Whether the worker sends too many messages.
    #[inline]
    pub(crate) fn is_flooding(&self) -> bool {
        self.connection().is_some_and(|connection| connection.is_flooding(Duration::ZERO))
    }

    /// The waker of the task that waits for the first unfinished call, and whether there are calls behind it.
    #[inline]
    pub(crate) fn next_waker(&mut self) -> (Option<&Waker>, bool) {
        let has_more = self.calls.has_more_than_head();
        (self.calls.head().and_then(|(_, head)| head.waker.as_ref()), has_more)
    }

    pub(crate) fn has_more_than_head(&self) -> bool {
        self.calls.has_more_than_head()
    }

    /// The first unfinished call.
    #[inline]
    pub(crate) fn head(&mut self) -> Option<&Entry> {
        self.calls.head().map(|(_, entry)| &*entry)
    }

    /// A name of the state, and the number of unfinished calls, for `Debug`.
    pub(crate) fn summary(&self) -> (&'static str, usize) {
        let assignment = match &self.assignment {
            Assignment::Waiting | Assignment::Replacing { .. } => "waiting for a worker",
            Assignment::Worker(_) => "holding a worker",
            Assignment::Failed(_) | Assignment::Ending(..) => "failed",
            Assignment::None => "released",
        };
        (assignment, self.calls.unfinished())
    }

    /// A name of the state of a call, for `Debug`.
    pub(crate) fn call_state(&self, seq: Seq) -> &'static str {
        match self.calls.progress(seq) {
            Some(Progress::Queued) => "queued",
            Some(Progress::Sending) => "being sent",
            Some(Progress::Sent(_)) => "sent",
            Some(Progress::Done(_)) => "done",
            Some(Progress::Removed) | None => "returned",
        }
    }

    #[inline]
    fn emit_replay(&mut self, replay: Option<Arc<Replay>>) {
        if let Some(replay) = replay {
            self.emit(Event::Replay(replay));
        }
    }

    /// No more reports of the progress of this call follow.
    #[inline]
    fn end_progress(&mut self, seq: Seq) {
        if let Some(cell) = self.calls.take_progress_cell(seq) {
            cell.end();
            self.emit(Event::Progress(cell));
        }
    }

    #[inline]
    fn mark_observed(&mut self, seq: Seq) {
        self.unobserved_failure.take_if(|(failed, _)| *failed == seq);
    }
}

impl Assignment {
    #[inline]
    fn connection(&self) -> Option<&Connection> {
        match self {
            Self::Worker(connection) => Some(connection),
            Self::Ending(ending) => Some(&ending.connection),
            Self::None | Self::Waiting | Self::Replacing { .. } | Self::Failed(_) => None,
        }
    }

    #[inline]
    fn connection_mut(&mut self) -> Option<&mut Connection> {
        match self {
            Self::Worker(connection) => Some(connection),
            Self::Ending(ending) => Some(&mut ending.connection),
            Self::None | Self::Waiting | Self::Replacing { .. } | Self::Failed(_) => None,
        }
    }
}
