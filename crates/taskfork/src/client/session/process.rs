//! What a worker's messages mean for the calls. Each message is decoded here, once.

use bytes::{Buf, Bytes};

use super::calls::{Operation, Outcome, Progress};
use super::items::Item;
use super::{Assignment, Event, Handle, Session, Usage};
use crate::client::now::Now;
use crate::client::observe::log;
use crate::client::proto::connection::Connection;
use crate::client::proto::disconnect::Disconnect;
use crate::client::proto::io_types;
use crate::wire::call_error::AnswerError;
use crate::wire::native::{FromWorker, Telemetry};
use crate::wire::values::ValueFormat;

/// The result of [`Session::process`].
#[derive(Debug)]
pub(crate) enum Step {
    /// Something has changed.
    Changed,
    /// The worker has answered the first call. [`Session::handle_answer`] must follow.
    Answer(Outcome),
    /// What [`Connection::need`] says.
    Input,
    /// Nothing can happen before more has been sent, or the user wants something.
    Wait,
}

/// What the first unfinished call waits for.
enum Head {
    None,
    Worker,
    /// Nothing: it cannot be sent.
    Unsendable,
    /// It has not been sent.
    Unsent,
    Answer,
}

/// The parts of an answer that borrow nothing from its message.
enum Answer {
    Result { offset: usize, format: ValueFormat },
    Error { error: Box<AnswerError>, keeps_worker: bool },
}

impl Session {
    /// Begins a turn of reading.
    #[inline]
    pub(crate) fn begin_turn(&mut self) {
        if let Some(connection) = self.connection_mut() {
            connection.begin_turn();
        }
    }

    /// A turn of reading was too short for what the worker has sent. Returns whether that ends the connection,
    /// because no call runs.
    pub(crate) fn handle_turn_over(&mut self) -> bool {
        let is_unsolicited = self.calls.head().is_none()
            && self.handle == Handle::Held
            && self.connection().is_some_and(Connection::sends_unsolicited);
        if is_unsolicited {
            self.handle_disconnect(Disconnect::unsolicited());
        }
        is_unsolicited
    }

    /// Handles the next event of the connection, as far as it has been received.
    #[inline]
    pub(crate) fn process(&mut self, now: &Now) -> Step {
        let Some(connection) = self.assignment.connection() else { return Step::Wait };
        let (waits_for_arrived, is_established) =
            (connection.waits_for_arrived(), connection.is_established());
        match self.look_at_head() {
            _ if waits_for_arrived => {}
            Head::None if self.handle == Handle::Dropped => return Step::Wait,
            Head::Worker if is_established => {
                self.finish_head(Outcome::Ready);
                return Step::Changed;
            }
            Head::Unsendable => {
                self.fail_unsendable();
                return Step::Changed;
            }
            // A long call may be sent in part. The worker may read no more of it before its answers of skipped calls
            // are read, and its end may show only here.
            Head::Unsent => {
                if self.find_last_message() {
                    return Step::Changed;
                }
            }
            Head::Answer => self.begin_run(now),
            Head::None | Head::Worker => {}
        }
        let event = self.connection_mut().and_then(|connection| connection.poll_event(now));
        match event {
            None => Step::Input,
            Some(io_types::Event::Message(body)) => self.handle_message(body),
            Some(event) => {
                self.handle_connection_event(event, now);
                Step::Changed
            }
        }
    }

    /// What the first unfinished call waits for. Begins to measure the time of its answer.
    #[inline]
    fn look_at_head(&mut self) -> Head {
        let Some((_, entry)) = self.calls.head() else { return Head::None };
        match (&entry.operation, &entry.progress) {
            (Operation::WaitForWorker, _) => Head::Worker,
            (Operation::Unsendable(_), _) => Head::Unsendable,
            (Operation::Call(..), Progress::Sent(_)) => {
                entry.timing.begin();
                entry.sent.start();
                Head::Answer
            }
            (Operation::Call(..), _) => Head::Unsent,
        }
    }

    fn handle_connection_event(&mut self, event: io_types::Event, now: &Now) {
        match event {
            io_types::Event::Established(limits, took) => {
                self.emit(Event::Established(limits, took));
            }
            io_types::Event::HandshakeAborted { has_hello } => {
                self.handle_handshake_aborted(has_hello)
            }
            io_types::Event::SetupAborted { begun } => self.handle_setup_aborted(begun),
            io_types::Event::Ended(disconnect) if self.is_late_end(&disconnect, now) => {
                self.handle_disconnect(Disconnect::Late);
            }
            io_types::Event::Ended(disconnect) => self.handle_disconnect(disconnect),
            io_types::Event::Handled | io_types::Event::Message(_) => {}
        }
    }

    #[inline]
    fn handle_message(&mut self, body: Bytes) -> Step {
        let Assignment::Worker(connection) = &mut self.assignment else { return Step::Changed };
        let Some((_, entry)) = self.calls.head() else {
            let disconnect = Disconnect::of_message(FromWorker::decode(&body));
            self.handle_disconnect(disconnect);
            return Step::Changed;
        };
        let slice = |part: &[u8]| body.slice_ref(part);
        let is_skipped_due = connection.is_skipped_answer_due();
        let (call, answer) = match FromWorker::decode(&body) {
            Ok(FromWorker::Ok { call, format, value }) if !is_skipped_due => {
                (call, Some(Answer::Result { offset: body.len() - value.len(), format }))
            }
            Ok(FromWorker::Error { call, body: error }) if !is_skipped_due => {
                let keeps_worker = error.keeps_worker;
                let error = Box::new(error.into_owned(slice));
                (call, Some(Answer::Error { error, keeps_worker }))
            }
            Ok(FromWorker::Item(item)) if !is_skipped_due => {
                let (call, cost) = (item.call, item.cost);
                let offset = body.len() - item.value.len();
                if let Err(reason) = self.handle_item(call, cost, offset, body) {
                    self.handle_disconnect(reason);
                }
                return Step::Changed;
            }
            Ok(FromWorker::Credit { call, credit }) if !is_skipped_due => {
                if let Err(reason) = self.handle_credit(call, credit) {
                    self.handle_disconnect(reason);
                }
                return Step::Changed;
            }
            Ok(FromWorker::Ok { .. } | FromWorker::Error { .. }) => {
                self.handle_disconnect(Disconnect::violation(
                    "the worker answered a call that it had to skip",
                ));
                return Step::Changed;
            }
            Ok(FromWorker::Skipped { .. } | FromWorker::Telemetry(_))
                if connection.has_announced_files() =>
            {
                self.handle_disconnect(Disconnect::files_without_answer());
                return Step::Changed;
            }
            // The connection has handled the right answer of a skipped call.
            Ok(FromWorker::Skipped { call }) if entry.abandoned || is_skipped_due => {
                connection.record_answer();
                (call, None)
            }
            Ok(FromWorker::Telemetry(telemetry @ Telemetry { log, trace, .. }))
                if connection.is_next_call_sent() && !is_skipped_due =>
            {
                connection.read_budget().count_telemetry(body.len());
                if let (Some(into), Some(encoded)) = (&self.log, log) {
                    log::merge(into, encoded);
                }
                if !entry.abandoned
                    && let Some(progress) = telemetry.read_progress()
                {
                    let cell = entry.progress_cell.get_or_insert_default().clone();
                    cell.set(progress);
                    self.events.push(Some(Event::Progress(cell)));
                }
                if let (Some(replay), Some(encoded)) = (&entry.replay, trace) {
                    replay.push(connection.pid, slice(encoded));
                    let replay = replay.clone();
                    self.emit(Event::Replay(replay));
                }
                return Step::Changed;
            }
            decoded => {
                let disconnect = Disconnect::of_message(decoded);
                self.handle_disconnect(disconnect);
                return Step::Changed;
            }
        };
        if let Err(detail) = connection.accept_answer_number(call) {
            self.handle_disconnect(Disconnect::violation(detail));
            return Step::Changed;
        }
        let Some(answer) = answer else {
            self.finish_head(Outcome::Ready);
            return Step::Changed;
        };
        let attachments = match connection.take_attachments() {
            Ok(attachments) => attachments,
            Err(reason) => {
                self.handle_disconnect(reason);
                return Step::Changed;
            }
        };
        connection.record_answer();
        Step::Answer(match answer {
            Answer::Result { offset, format } => {
                // In place, because the first slice of a message allocates.
                let mut value = body;
                value.advance(offset);
                Outcome::Result { value, format, attachments }
            }
            Answer::Error { error, keeps_worker } => Outcome::Error { error, keeps_worker },
        })
    }

    /// An item of the first call has come: `body` from `offset` on.
    fn handle_item(
        &mut self,
        call: Option<u64>,
        cost: u64,
        offset: usize,
        body: Bytes,
    ) -> Result<(), Disconnect> {
        let Assignment::Worker(connection) = &mut self.assignment else { return Ok(()) };
        let Some((seq, entry)) = self.calls.head() else { return Ok(()) };
        let (is_due, length) = (connection.is_next_call_sent(), body.len());
        let Some(items) = entry.items.as_mut().filter(|_| is_due) else {
            return Err(Disconnect::violation("the worker sent an item that no call asked for"));
        };
        if call != Some(connection.next_answer()) {
            return Err(Disconnect::violation("the worker sent an item of another call"));
        }
        let attachments = connection.take_attachments()?;
        connection.record_item();
        let mut value = body;
        value.advance(offset);
        items.receive(Item { value, attachments, cost }, length).map_err(Disconnect::violation)?;
        if entry.abandoned {
            items.clear();
        }
        if self.usage == Usage::Unused {
            // The call has begun, whatever the worker says.
            self.usage = Usage::Used;
        }
        if let Some(waker) = entry.waker.take() {
            self.emit(Event::Wake(seq, waker));
        }
        Ok(())
    }

    /// The worker gives credit for the input of the first call.
    fn handle_credit(&mut self, call: u64, credit: u64) -> Result<(), Disconnect> {
        let Assignment::Worker(connection) = &mut self.assignment else { return Ok(()) };
        let Some((seq, entry)) = self.calls.head() else { return Ok(()) };
        if connection.has_announced_files() {
            return Err(Disconnect::files_without_answer());
        }
        let is_due = connection.is_next_call_sent() && call == connection.next_answer();
        let Some(input) = entry.input.as_mut().filter(|_| is_due) else {
            return Err(Disconnect::violation(
                "the worker gave credit for an input that no call has",
            ));
        };
        connection.read_budget().count_other();
        // Or the memory of items would be free only behind the call.
        connection.apply_releases()?;
        input.grant(credit).map_err(Disconnect::violation)?;
        // It waits for the answer too.
        if let Some(waker) = entry.waker.clone() {
            self.emit(Event::Wake(seq, waker));
        }
        Ok(())
    }

    /// The first call has been answered.
    #[inline]
    pub(crate) fn handle_answer(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Error { error, .. } if self.is_timeout(&error) => {
                self.time_out_in_worker(*error)
            }
            Outcome::Error { keeps_worker, .. } => {
                match keeps_worker {
                    true => self.mark_used(),
                    false => self.usage = Usage::Spoiled,
                }
                self.fail_head(outcome);
            }
            _ => {
                self.mark_used();
                self.finish_head(outcome);
            }
        }
    }

    pub(super) fn mark_used(&mut self) {
        if self.usage == Usage::Unused {
            self.usage = Usage::Used;
        }
    }

    /// Ends the first unfinished call.
    #[inline]
    pub(super) fn finish_head(&mut self, outcome: Outcome) {
        let Some((seq, entry)) = self.calls.head() else { return };
        if entry.input.is_some()
            && let Assignment::Worker(connection) = &mut self.assignment
        {
            connection.end_items();
        }
        self.end_progress(seq);
        let (waker, replay) = self.calls.finish(seq, outcome);
        if let Some(waker) = waker {
            self.emit(Event::Wake(seq, waker));
        }
        self.emit_replay(replay);
        self.watch_deadline();
    }

    /// Fails the first unfinished call, which cannot be sent.
    fn fail_unsendable(&mut self) {
        let Some((_, entry)) = self.calls.head() else { return };
        if let Operation::Unsendable(reason) = &entry.operation {
            let reason = reason.clone();
            self.fail_head(Outcome::Unsendable(reason));
        }
    }

    /// Ends the first unfinished call with a failure, and drops all calls behind it. Those behind a call that streams and
    /// that nobody waits for stay: its failure may be that nobody waits, and they have not been sent.
    pub(super) fn fail_head(&mut self, outcome: Outcome) {
        let Some((seq, entry)) = self.calls.head() else { return };
        if entry.abandoned && entry.streams() {
            return self.finish_head(outcome);
        }
        let behind = entry.label();
        if !entry.abandoned {
            self.unobserved_failure = Some((seq, behind.clone()));
        }
        self.finish_head(outcome);
        if let Assignment::Worker(connection) = &mut self.assignment {
            if connection.is_call_partly_sent()
                && let Some(frame) = self.calls.sending()
            {
                connection.put_rest(frame);
            }
            connection.skip_unanswered();
        }
        while self.calls.head().is_some() {
            self.finish_head(Outcome::Dropped { behind: behind.clone() });
        }
    }
}
