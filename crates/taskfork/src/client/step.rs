//! One step of one call on its connection, and what the end of a connection means for the calls on it.

use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::connection::{Connection, Lost};
use super::entries::{Entry, Outcome, Progress, Work};
use crate::error::{Activity, Death, End, FatalError, Hung};
use crate::wire::frame::HEADER;
use crate::wire::native::{self, FromWorker};
use crate::wire::notice::DeathNotice;

/// What came of trying to move a call on.
pub(crate) enum Step {
    Wait,
    Next,
    Finish(Outcome),
    Answer {
        body: Bytes,
        failed: bool,
    },
    /// The worker recorded something, and goes on.
    Notes(Bytes),
    Lost(Ending),
}

/// Moves a call on as far as can be without waiting, or says what is in the way.
pub(crate) fn step(connection: &mut Connection, entry: &mut Entry) -> Step {
    let frame = match &entry.work {
        Work::Ready if matches!(entry.progress, Progress::Queued) => {
            return Step::Finish(Outcome::Ready);
        }
        Work::Unsendable(reason) => return Step::Finish(Outcome::Unsendable(reason.clone())),
        Work::Ready => &[][..],
        Work::Call(frame) => frame,
    };
    match &mut entry.progress {
        Progress::Queued if frame.len() > HEADER + connection.max_send => {
            let (length, limit) = (frame.len() - HEADER, connection.max_send);
            let reason = format!("they take {length} bytes, and the limit of a message is {limit}");
            Step::Finish(Outcome::Unsendable(reason))
        }
        progress @ Progress::Queued => {
            *progress = Progress::Sending(0);
            entry.timing.begin();
            entry.sent.start();
            if let (Some(deadline), Work::Call(frame)) = (entry.deadline, &mut entry.work) {
                let left = deadline.saturating_duration_since(Instant::now()).as_micros();
                let left = u64::try_from(left).unwrap_or(u64::MAX).min(i64::MAX as u64);
                native::set_timeout(&mut frame[HEADER..], left);
            }
            Step::Next
        }
        Progress::Sending(sent) => match connection.poll_send(frame, sent) {
            Poll::Pending => Step::Wait,
            Poll::Ready(Ok(())) => {
                connection.calls += 1;
                entry.progress = Progress::Sent;
                Step::Next
            }
            // What the server said about the worker may be waiting to be read.
            Poll::Ready(Err(lost)) => Step::Lost(Ending::of(connection.last_words().ok_or(lost))),
        },
        Progress::Sent => match connection.poll_message() {
            Poll::Pending => Step::Wait,
            Poll::Ready(Ok(body)) => match FromWorker::decode(&body) {
                Ok(FromWorker::Ok(_)) => Step::Answer { body, failed: false },
                Ok(FromWorker::Error(_)) => Step::Answer { body, failed: true },
                Ok(FromWorker::Notes(_)) => Step::Notes(body),
                _ => Step::Lost(Ending::of(Ok(body))),
            },
            Poll::Ready(Err(lost)) => Step::Lost(Ending::of(Err(lost))),
        },
        Progress::Done(_) | Progress::Gone => Step::Next,
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The server told of the worker's death.
    Told(DeathNotice),
    Closed,
    /// Closed with what was sent last still unread.
    Unread,
    /// The peer broke the protocol.
    Broken(String),
}

impl Ending {
    /// Of a message that is no answer, or of the connection's end.
    pub(crate) fn of(what: Result<Bytes, Lost>) -> Self {
        match what {
            Ok(body) => match FromWorker::decode(&body) {
                Ok(FromWorker::Death(notice)) => Self::Told(notice),
                Ok(_) => Self::Broken("the worker sent an answer that nobody asked for".to_owned()),
                Err(error) => Self::Broken(error.to_string()),
            },
            Err(Lost::Closed) => Self::Closed,
            Err(Lost::Unread) => Self::Unread,
            Err(Lost::Io(error)) => Self::Broken(error.to_string()),
            Err(Lost::Wire(error)) => Self::Broken(error.to_string()),
        }
    }

    /// Whether the worker can have begun the last of `calls` calls that were sent in full.
    pub(crate) fn had_begun(&self, calls: u64) -> bool {
        match self {
            Self::Told(notice) => notice.calls >= calls,
            Self::Unread => false,
            Self::Closed | Self::Broken(_) => true,
        }
    }

    /// Whether the server killed the worker as the call's time was over.
    pub(crate) fn is_time_out(&self) -> bool {
        matches!(self, Self::Told(DeathNotice { timed_out: true, .. }))
    }

    pub(crate) fn is_in_setup(&self) -> bool {
        matches!(self, Self::Told(DeathNotice { during: Some(Activity::Setup), .. }))
    }

    /// Whether the server killed the worker for what its `setup` does.
    pub(crate) fn is_judged_in_setup(&self) -> bool {
        let Self::Told(notice) = self else { return false };
        self.is_in_setup() && notice.reason.is_some()
    }

    pub(crate) fn cause(self, pid: u32) -> FatalError {
        match self {
            Self::Told(notice) => {
                let hung = notice.ran.and_then(|ran| Duration::try_from_secs_f64(ran).ok());
                let stack = notice.stack;
                FatalError::WorkerDied(Death {
                    pid: notice.pid,
                    end: notice.end,
                    reason: notice.reason,
                    during: notice.during,
                    stderr: notice.stderr,
                    hung: hung.map(|ran_for| Box::new(Hung { ran_for, stack })),
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
            Self::Broken(detail) => FatalError::Protocol { detail },
        }
    }
}
