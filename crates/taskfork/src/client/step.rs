//! One step of one call on its connection, and what the end of a connection means for the calls on it.

use std::task::Poll;

use bytes::Bytes;

use super::connection::Connection;
use super::disconnect::Disconnect;
use super::entries::{Entry, Operation, Outcome, Progress, SharedAttachments};
use crate::wire::native::FromWorker;

/// What came of trying to move a call on.
pub(crate) enum Step {
    Wait,
    Next,
    Finish(Outcome),
    Answer {
        body: Bytes,
        attachments: SharedAttachments,
        failed: bool,
    },
    /// The worker recorded something, and goes on.
    Telemetry(Bytes),
    Disconnected(Disconnect),
}

/// Moves the first unfinished call on as far as can be without waiting, or says what is in the way.
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
    let (call, kind) = match FromWorker::decode(&body) {
        Ok(FromWorker::Ok { call, .. }) if !connection.is_skipped_answer_due() => {
            (call, Some(false))
        }
        Ok(FromWorker::Error { call, .. }) if !connection.is_skipped_answer_due() => {
            (call, Some(true))
        }
        Ok(FromWorker::Skipped { call }) if entry.abandoned => (call, None),
        Ok(FromWorker::Telemetry(_)) => return Step::Telemetry(body),
        _ => return Step::Disconnected(Disconnect::from_message(&body)),
    };
    if let Err(detail) = connection.accept_answer_number(call) {
        return Step::Disconnected(Disconnect::Protocol(detail));
    }
    let Some(failed) = kind else { return Step::Finish(Outcome::Ready) };
    match connection.take_attachments() {
        Ok(attachments) => Step::Answer { body, attachments, failed },
        Err(reason) => Step::Disconnected(reason),
    }
}
