//! One step of one call on its connection. Each message of a worker is decoded here, once.

use std::task::Poll;

use bytes::{Buf, Bytes};

use super::connection::Connection;
use super::disconnect::Disconnect;
use super::entries::{Entry, Operation, Outcome, Progress};
use crate::wire::call_error::AnswerError;
use crate::wire::native::{FromWorker, Telemetry};
use crate::wire::values::ValueFormat;

/// The result of one step.
pub(crate) enum Step {
    /// The call waits for an event.
    Wait,
    /// The call is done, so the next one is the first unfinished call.
    Next,
    /// The call ends without an answer of the worker.
    Finish(Outcome),
    /// The worker answered: the outcome is a result or an error.
    Answer(Outcome),
    /// The worker sent what it recorded, and the call continues.
    Telemetry {
        /// The length of the message.
        length: usize,
        /// The encoded log.
        log: Option<Bytes>,
        /// The encoded spans and events.
        trace: Option<Bytes>,
    },
    Disconnected(Disconnect),
}

/// The parts of an answer that borrow nothing from its message.
enum Answer {
    Result { offset: usize, format: ValueFormat },
    Error(Box<AnswerError>),
}

/// Makes one step of the first unfinished call, as far as that is possible without waiting.
pub(crate) fn step(connection: &mut Connection, entry: &mut Entry) -> Step {
    match (&entry.operation, &entry.progress) {
        (Operation::WaitForWorker, Progress::Queued) => {
            return match connection.poll_handshake() {
                Poll::Pending => Step::Wait,
                Poll::Ready(Ok(())) => Step::Finish(Outcome::Ready),
                Poll::Ready(Err(reason)) => Step::Disconnected(reason),
            };
        }
        (Operation::Unsendable(reason), _) => {
            return Step::Finish(Outcome::Unsendable(reason.clone()));
        }
        (_, Progress::Sent(_)) => {}
        (_, Progress::Queued | Progress::Sending(_)) => return Step::Wait,
        (_, Progress::Done(_) | Progress::Removed) => return Step::Next,
    }
    entry.timing.begin();
    entry.sent.start();
    let body = match connection.poll_message() {
        Poll::Pending => return Step::Wait,
        Poll::Ready(Ok(body)) => body,
        Poll::Ready(Err(reason)) => return Step::Disconnected(reason),
    };
    let slice = |part: &[u8]| body.slice_ref(part);
    let (call, answer) = match FromWorker::decode(&body) {
        Ok(FromWorker::Ok { call, format, value }) if !connection.is_skipped_answer_due() => {
            (call, Some(Answer::Result { offset: body.len() - value.len(), format }))
        }
        Ok(FromWorker::Error { call, body: error }) if !connection.is_skipped_answer_due() => {
            (call, Some(Answer::Error(Box::new(error.into_owned(slice)))))
        }
        Ok(FromWorker::Skipped { call }) if entry.abandoned => (call, None),
        Ok(FromWorker::Telemetry(Telemetry { log, trace })) => {
            let length = body.len();
            return Step::Telemetry { length, log: log.map(slice), trace: trace.map(slice) };
        }
        decoded => return Step::Disconnected(Disconnect::of_message(decoded)),
    };
    if let Err(detail) = connection.accept_answer_number(call) {
        return Step::Disconnected(Disconnect::violation(detail));
    }
    let Some(answer) = answer else { return Step::Finish(Outcome::Ready) };
    let attachments = match connection.take_attachments() {
        Ok(attachments) => attachments,
        Err(reason) => return Step::Disconnected(reason),
    };
    Step::Answer(match answer {
        Answer::Result { offset, format } => {
            // In place, because the first slice of a message allocates.
            let mut value = body;
            value.advance(offset);
            Outcome::Result { value, format, attachments }
        }
        Answer::Error(error) => Outcome::Error(error),
    })
}
