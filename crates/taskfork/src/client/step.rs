//! One step of one call on its connection, and what the end of a connection means for the calls on it.

use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;

use super::connection::{Connection, Lost};
use super::entries::{Entry, Operation, Outcome, Progress, SharedAttachments};
use crate::error::{Activity, Death, End, FatalError, Hung};
use crate::wire::death_notice::DeathNotice;
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
                Poll::Ready(Err(lost)) => Step::Disconnected(Disconnect::of(Err(lost))),
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
        Poll::Ready(Err(lost)) => return Step::Disconnected(Disconnect::of(Err(lost))),
    };
    let (call, kind) = match FromWorker::decode(&body) {
        Ok(FromWorker::Ok { call, .. }) if !connection.is_skipping() => (call, Some(false)),
        Ok(FromWorker::Error { call, .. }) if !connection.is_skipping() => (call, Some(true)),
        Ok(FromWorker::Skipped { call }) if entry.abandoned => (call, None),
        Ok(FromWorker::Telemetry(_)) => return Step::Telemetry(body),
        _ => return Step::Disconnected(Disconnect::of(Ok(body))),
    };
    if let Err(detail) = connection.accept_answer_number(call) {
        return Step::Disconnected(Disconnect::Protocol(detail));
    }
    let Some(failed) = kind else { return Step::Finish(Outcome::Ready) };
    match connection.take_attachments() {
        Ok(attachments) => Step::Answer { body, attachments, failed },
        Err(lost) => Step::Disconnected(Disconnect::of(Err(lost))),
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum Disconnect {
    /// The server told of the worker's death.
    Notified(DeathNotice),
    Closed,
    /// Closed with what was sent last still unread.
    Unread,
    /// The peer broke the protocol.
    Protocol(String),
    /// Before the worker had greeted, so that nothing has begun.
    NoHandshake(String),
}

impl Disconnect {
    /// Of a message that is no answer, or of the connection's end.
    pub(crate) fn of(what: Result<Bytes, Lost>) -> Self {
        match what {
            Ok(body) => match FromWorker::decode(&body) {
                Ok(FromWorker::Death(notice)) => Self::Notified(notice),
                Ok(_) => {
                    Self::Protocol("the worker sent an answer that nobody asked for".to_owned())
                }
                Err(error) => Self::Protocol(error.to_string()),
            },
            Err(Lost::Closed) => Self::Closed,
            Err(Lost::Unread) => Self::Unread,
            Err(Lost::Io(error)) => Self::Protocol(error.to_string()),
            Err(Lost::Wire(error)) => Self::Protocol(error.to_string()),
            Err(Lost::NoHandshake(reason)) => Self::NoHandshake(reason),
        }
    }

    /// Of a worker that sends a lot though no call runs.
    pub(crate) fn unsolicited() -> Self {
        Self::Protocol("the worker sends messages without end though no call runs".to_owned())
    }

    /// The number of the last call that the worker can have begun, if `first` is the first of
    /// `unanswered` that it has not answered.
    pub(crate) fn last_started(
        &self,
        connection: &Connection,
        first: u64,
        unanswered: usize,
    ) -> u64 {
        let begun = match self {
            Self::Notified(notice) => notice.calls,
            Self::NoHandshake(_) => 0,
            Self::Unread if unanswered <= 1 => first.saturating_sub(1),
            // What a peer has begun that does not keep to the protocol is not known.
            Self::Protocol(_) => u64::MAX,
            // What was sent to us may have been lost.
            _ if connection.is_tcp() => u64::MAX,
            _ => first,
        };
        begun.min(connection.calls_sent())
    }

    /// Whether the server killed the worker as the call's time was over.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::Notified(DeathNotice { timed_out: true, .. }))
    }

    /// Whether the connection ended without a word about the worker.
    pub(crate) fn is_without_notice(&self) -> bool {
        matches!(self, Self::Closed | Self::Unread)
    }

    pub(crate) fn is_in_setup(&self) -> bool {
        matches!(self, Self::Notified(DeathNotice { during: Some(Activity::Setup), .. }))
    }

    /// Whether the server killed the worker for what its `setup` does.
    pub(crate) fn is_killed_in_setup(&self) -> bool {
        let Self::Notified(notice) = self else { return false };
        self.is_in_setup() && notice.reason.is_some()
    }

    pub(crate) fn cause(self, pid: u32) -> FatalError {
        match self {
            Self::Notified(notice) => {
                let hung = notice.ran.and_then(|ran| Duration::try_from_secs_f64(ran).ok());
                let (stack, no_stack) = (notice.stack, notice.no_stack);
                FatalError::WorkerDied(Death {
                    pid: notice.pid,
                    end: notice.end,
                    reason: notice.reason,
                    during: notice.during,
                    stderr: notice.stderr,
                    hung: hung
                        .map(|ran_for| Box::new(Hung { ran_for, stack, no_stack, stderr: None })),
                })
            }
            Self::Closed | Self::Unread => FatalError::WorkerDied(Death {
                pid,
                end: End::Unknown,
                reason: None,
                during: None,
                stderr: None,
                hung: None,
            }),
            Self::Protocol(detail) | Self::NoHandshake(detail) => FatalError::Protocol { detail },
        }
    }
}
