//! Why a connection ended, and what that means for the calls on it.

use std::io;
use std::time::Duration;

use crate::error::{Activity, ConnectionError, Death, End, FatalError, Hung};
use crate::time_limit::TimeLimit;
use crate::wire::WireError;
use crate::wire::death_notice::DeathNotice;
use crate::wire::native::FromWorker;

/// How long the server's notice of a worker's death is waited for: behind the end of a call, or of this side.
pub(crate) const NOTICE_WAIT: TimeLimit = TimeLimit::new(Duration::from_secs(2));

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum Disconnect {
    /// The server sent a notice of the worker's death.
    Notified(Box<DeathNotice>),
    /// It was closed without a notice.
    Closed,
    /// It was closed without a notice, before the worker had read all of the last call that was sent.
    Unread,
    /// It was closed without a notice when the time of the running call was over, which reads items. The server sends no
    /// notice behind a part of an item.
    Late,
    /// The peer broke the protocol, or the system can no longer read from the connection.
    Protocol(ConnectionError),
    /// It ended before the worker sent its hello, so no call has begun.
    NoHandshake(ConnectionError),
    /// The runtime in which the connection was made has been shut down.
    RuntimeShutDown,
    /// The way to the worker has ended, and its transport says why.
    #[cfg(feature = "nats")]
    Path(PathEnd),
}

/// The runtime has been shut down in which a connection was made. It is the source of the error of a read or a write.
#[derive(Debug, thiserror::Error)]
#[error("the runtime has been shut down")]
pub(crate) struct RuntimeShutDown;

/// Why the way to a worker has ended. A transport puts it into the error of a read or a write.
#[cfg(feature = "nats")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathEnd {
    /// A node was silent for too long.
    #[error("the node {node} is lost")]
    NodeLost { node: String, last_contact: Duration },
    /// It was closed for this reason.
    #[error("{0}")]
    Closed(String),
}

impl Disconnect {
    /// Classifies a message that is no answer.
    pub(crate) fn of_message(decoded: Result<FromWorker<'_>, WireError>) -> Self {
        Self::violation(match decoded {
            Ok(FromWorker::Death(notice)) => return Self::Notified(Box::new(notice)),
            Err(error) => return error.into(),
            Ok(FromWorker::Hello(_)) => "the worker sent a second hello",
            Ok(FromWorker::Queued(_)) => {
                "the server said that no worker is free, after one has greeted"
            }
            Ok(FromWorker::Telemetry(_)) => "the worker sent telemetry though no call runs",
            Ok(FromWorker::Skipped { .. }) => "the worker skipped a call that was not cancelled",
            Ok(_) => "the worker sent an answer that nobody asked for",
        })
    }

    /// Classifies an error of a read from the socket.
    pub(crate) fn of_read(error: io::Error) -> Self {
        match WireError::of_read(&error) {
            Some(error) => error.into(),
            None => Self::of_system(error),
        }
    }

    /// Classifies an error of the transport.
    pub(crate) fn of_system(error: io::Error) -> Self {
        #[cfg(feature = "nats")]
        if let Some(end) = error.get_ref().and_then(|source| source.downcast_ref::<PathEnd>()) {
            return Self::Path(end.clone());
        }
        if error.get_ref().is_some_and(|source| source.is::<RuntimeShutDown>()) {
            return Self::RuntimeShutDown;
        }
        Self::Protocol(ConnectionError::system(error))
    }

    /// The end of a connection whose peer broke the protocol in this way.
    pub(crate) fn violation(detail: impl Into<String>) -> Self {
        Self::Protocol(ConnectionError::new(detail))
    }

    /// The end of a connection whose worker announced files for a message that is no answer.
    pub(crate) fn files_without_answer() -> Self {
        Self::violation("the worker announced files, but no answer followed")
    }

    /// The end of a connection whose worker floods it while no call runs.
    pub(crate) fn unsolicited() -> Self {
        Self::violation("the worker sends messages without end though no call runs")
    }

    /// The number of the last call that the worker may have begun. `first` is the first of `unanswered` calls that were
    /// sent in full, and `sent` the last of them. `can_lose_answers` says whether received answers may be missing.
    pub(crate) fn last_started(
        &self,
        first: u64,
        unanswered: u64,
        sent: u64,
        can_lose_answers: bool,
    ) -> u64 {
        let begun = match self {
            Self::Notified(notice) => notice.calls,
            Self::NoHandshake(_) => 0,
            Self::Unread if unanswered <= 1 => first.saturating_sub(1),
            // A peer that violates the protocol may have begun any call, and the answers are not read any more.
            Self::Protocol(_) | Self::RuntimeShutDown => u64::MAX,
            // The calls whose answers are lost have begun.
            _ if can_lose_answers => u64::MAX,
            _ => first,
        };
        begun.min(sent)
    }

    /// Whether the worker ended because the call's time was over.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::Late) || self.notice().is_some_and(|notice| notice.timed_out)
    }

    /// Whether the worker died, or the way to it ended, before the call's time was over.
    pub(crate) fn is_death(&self) -> bool {
        match self {
            Self::Notified(notice) => !notice.timed_out,
            Self::Closed | Self::Unread => true,
            #[cfg(feature = "nats")]
            Self::Path(_) => true,
            Self::Late | Self::Protocol(_) | Self::NoHandshake(_) | Self::RuntimeShutDown => false,
        }
    }

    /// Whether the connection ended without a notice of the worker's death.
    pub(crate) fn is_without_notice(&self) -> bool {
        matches!(self, Self::Closed | Self::Unread)
    }

    pub(crate) fn is_in_setup(&self) -> bool {
        self.notice().is_some_and(|notice| notice.during == Some(Activity::Setup))
    }

    /// Whether the server killed the worker during its `setup`, for example at a time limit.
    pub(crate) fn is_killed_in_setup(&self) -> bool {
        self.is_in_setup() && self.notice().is_some_and(|notice| notice.reason.is_some())
    }

    fn notice(&self) -> Option<&DeathNotice> {
        match self {
            Self::Notified(notice) => Some(notice),
            _ => None,
        }
    }

    pub(crate) fn into_error(self, pid: u32) -> FatalError {
        match self {
            Self::Notified(notice) => {
                let hung = notice.ran.and_then(|ran| Duration::try_from_secs_f64(ran).ok());
                let (stack, no_stack) = (notice.stack, notice.no_stack);
                FatalError::WorkerDied(Death {
                    pid: notice.pid,
                    program: notice.program,
                    end: notice.end,
                    reason: notice.reason,
                    during: notice.during,
                    stderr: notice.stderr,
                    hung: hung
                        .map(|ran_for| Box::new(Hung { ran_for, stack, no_stack, stderr: None })),
                })
            }
            Self::Closed | Self::Unread | Self::Late => FatalError::WorkerDied(Death {
                pid,
                program: None,
                end: End::Unknown,
                reason: None,
                during: None,
                stderr: None,
                hung: None,
            }),
            #[cfg(feature = "nats")]
            Self::Path(PathEnd::NodeLost { node, last_contact }) => {
                FatalError::NodeLost { node, last_contact }
            }
            #[cfg(feature = "nats")]
            Self::Path(PathEnd::Closed(reason)) => FatalError::WorkerDied(Death {
                pid,
                program: None,
                end: End::Unknown,
                reason: Some(reason),
                during: None,
                stderr: None,
                hung: None,
            }),
            Self::RuntimeShutDown => runtime_shut_down(),
            Self::Protocol(detail) | Self::NoHandshake(detail) => FatalError::Protocol { detail },
        }
    }
}

/// The error of checkouts whose client's runtime has been shut down.
pub(crate) fn runtime_shut_down() -> FatalError {
    let message = "the tokio runtime in which the client was built has been shut down: build a client in each runtime, \
                   or build it in one that lives as long";
    FatalError::Aborted { message: message.to_owned() }
}

impl From<WireError> for Disconnect {
    fn from(error: WireError) -> Self {
        Self::violation(error.to_string())
    }
}
