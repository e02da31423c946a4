//! The errors that end a checkout.

use std::fmt;
use std::time::Duration;

use super::{ConnectionError, Death, End, Failure, Hung};
use crate::display::seconds;
use crate::report;

/// What ends a checkout.
///
/// ```
/// use taskfork::error::FatalError;
/// use taskfork::Error;
///
/// fn is_overload(error: &Error) -> bool {
///     matches!(error, Error::Fatal { cause: FatalError::Overloaded { .. }, .. })
/// }
/// # let _ = is_overload;
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FatalError {
    /// A time limit of the call is over.
    TimedOut {
        /// The time limit.
        after: Duration,
        /// The option that sets it.
        limit: TimeoutOption,
        /// What the call was doing at the deadline.
        stage: Stage,
        /// Where the worker was when the server killed it, or when its code was interrupted.
        hung: Option<Box<Hung>>,
    },
    /// The worker ended, or closed its connection.
    WorkerDied(Death),
    /// [`abort`](crate::Checkout::abort) was called, or the client's runtime was shut down.
    Aborted {
        /// The message passed to `abort`.
        message: String,
    },
    /// No connection to a worker could be made before the deadline: no server answered, or it refused, or it could not be
    /// used.
    CannotConnect {
        /// The addresses that the client tried.
        address: String,
        /// Why the last attempt failed.
        reason: ConnectionError,
        /// How long no attempt has succeeded.
        unreachable_for: Duration,
        /// The call's time limit.
        after: Duration,
    },
    /// There are no workers: the server, which this program started by [`Server::spawn`](crate::Server::spawn) or
    /// [`Server::fork`](crate::Server::fork), has ended and is not replaced.
    ServerEnded {
        /// The server's process id.
        pid: u32,
        /// How its process ended.
        end: End,
        /// The server's error with its causes, if it failed.
        reason: Option<Failure>,
    },
    /// There are no workers: this program itself has shut the server down, by its
    /// [`ServerHandle`](crate::server::ServerHandle).
    ServerShutDown {
        /// The server's process id.
        pid: u32,
        /// Whether the handle was dropped, and not `shutdown`, `close` or `kill` called.
        handle_dropped: bool,
    },
    /// The server does not serve an interface that the client requires, or serves it with other methods. See
    /// [`TypedClient`](crate::client::TypedClient).
    WrongInterface {
        /// The addresses that the client tried.
        address: String,
        /// The server's text: which method differs, and how.
        difference: String,
    },
    /// The queue had the length that [`max_queue`](crate::client::ClientBuilder::max_queue) allows.
    Overloaded {
        /// The number of waiting checkouts.
        queued: usize,
    },
    /// [`Client::close`](crate::Client::close) was called before the checkout had a worker.
    ClientClosed,
    /// A node of a service at NATS was silent for two intervals of heartbeats. Its machine, its process or the
    /// network between may have failed.
    NodeLost {
        /// The node's name.
        node: String,
        /// How long before the end its last message had come.
        last_contact: Duration,
    },
    /// The peer violated the protocol, messages were lost on their way through NATS, or the system can no longer read
    /// from the connection.
    Protocol {
        /// The violation, or the system's error.
        detail: ConnectionError,
    },
}

/// What a call was doing at its deadline. See [`FatalError::TimedOut`].
///
/// ```
/// use taskfork::Error;
/// use taskfork::error::{FatalError, Stage};
///
/// /// Whether a call has failed because no worker was free in time.
/// fn is_shortage(error: &Error) -> bool {
///     matches!(error, Error::Fatal { cause: FatalError::TimedOut { stage: Stage::Waiting, .. }, .. })
/// }
/// # let _ = is_shortage;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Waiting for a worker.
    Waiting,
    /// Waiting until its worker has run `setup`. The call has not begun.
    Setup,
    /// Running in a worker, or on its way there.
    Running,
}

/// The option whose time limit is over. See [`FatalError::TimedOut`].
///
/// ```
/// use taskfork::Error;
/// use taskfork::error::{FatalError, TimeoutOption};
///
/// /// Whether the method itself was too slow, however long the call had waited before.
/// fn is_slow_method(error: &Error) -> bool {
///     use TimeoutOption::RunTimeout;
///     matches!(error, Error::Fatal { cause: FatalError::TimedOut { limit: RunTimeout, .. }, .. })
/// }
/// # let _ = is_slow_method;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeoutOption {
    /// [`timeout`](crate::client::ClientBuilder::timeout), which counts from when the call was made.
    Timeout,
    /// [`run_timeout`](crate::client::ClientBuilder::run_timeout), which counts from when the call began to run.
    RunTimeout,
}

impl fmt::Display for TimeoutOption {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Timeout => "timeout",
            Self::RunTimeout => "run_timeout",
        })
    }
}

impl fmt::Display for FatalError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { after, limit, stage, .. } => {
                let doing = match stage {
                    Stage::Waiting => "while waiting for a worker",
                    Stage::Setup => "while its worker ran `setup`",
                    Stage::Running => "while running",
                };
                write!(out, "timed out after {} {doing} ({limit})", seconds(*after))
            }
            Self::WorkerDied(death) => write!(out, "worker connection suddenly died: {death}"),
            Self::Aborted { message } => out.write_str(message),
            Self::ClientClosed => out.write_str("the client is closed: `close` was called on it"),
            Self::CannotConnect { address, reason, unreachable_for, after } => write!(
                out,
                "timed out after {}: {} {address} for the last {} ({reason})",
                seconds(*after),
                if reason.is_silence() { "no server answered at" } else { "no worker came from" },
                seconds(*unreachable_for),
            ),
            Self::ServerEnded { pid, end, reason } => {
                write!(out, "the server, process {pid}, ")?;
                match end {
                    End::Unknown => out.write_str("has ended")?,
                    end => end.fmt(out)?,
                }
                reason.as_ref().map_or(Ok(()), |reason| write!(out, ": {reason}"))
            }
            Self::ServerShutDown { pid, handle_dropped: false } => {
                write!(out, "this program has shut the server, process {pid}, down by its handle")
            }
            Self::ServerShutDown { pid, handle_dropped: true } => write!(
                out,
                "this program has shut the server, process {pid}, down: it has dropped the server's handle; keep \
                 the `ServerHandle` as long as there are calls"
            ),
            Self::WrongInterface { address, difference } => write!(
                out,
                "the server at {address} and this client do not fit: {difference}; build both from the same \
                 version of the interface"
            ),
            Self::Overloaded { queued } => {
                write!(out, "overloaded: {queued} checkouts wait already (max_queue)")
            }
            Self::NodeLost { node, last_contact } => write!(
                out,
                "the node {node} is lost: its last message came {} ago; make the call again, which goes to \
                 another node, if it may run twice",
                seconds(*last_contact)
            ),
            Self::Protocol { detail } => write!(out, "protocol broken: {detail}"),
        }
    }
}

impl fmt::Debug for FatalError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")?;
        report::details_of_end(self, out)
    }
}

impl std::error::Error for FatalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::ServerEnded { reason, .. } => reason.as_ref().map(|reason| reason as _),
            Self::CannotConnect { reason, .. } => reason.source(),
            Self::Protocol { detail } => detail.source(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Activity;

    #[test]
    fn a_fatal_error_says_what_happened_to_which_worker_and_why() {
        let death = Death {
            pid: 42,
            program: None,
            end: End::Signaled(9),
            reason: Some("hung for 5 minutes".into()),
            during: Some(Activity::Call),
            stderr: None,
            hung: None,
        };
        assert_eq!(
            FatalError::WorkerDied(death).to_string(),
            "worker connection suddenly died: worker 42 was killed by SIGKILL during a call: \
             hung for 5 minutes"
        );
    }

    #[test]
    fn time_out_and_cannot_connect_are_told_apart() {
        let after = Duration::from_millis(1500);
        let timed_out =
            |limit| FatalError::TimedOut { after, limit, stage: Stage::Running, hung: None };
        let slow = timed_out(TimeoutOption::Timeout);
        assert_eq!(slow.to_string(), "timed out after 1.5 seconds while running (timeout)");
        let slow = timed_out(TimeoutOption::RunTimeout);
        assert_eq!(slow.to_string(), "timed out after 1.5 seconds while running (run_timeout)");

        let gone = FatalError::CannotConnect {
            address: "unix:/a".into(),
            reason: ConnectionError::system(std::io::ErrorKind::ConnectionRefused.into()),
            unreachable_for: Duration::from_secs(1),
            after,
        };
        assert_eq!(
            gone.to_string(),
            "timed out after 1.5 seconds: no server answered at unix:/a for the last 1 second \
             (connection refused)"
        );
        let FatalError::CannotConnect { address, unreachable_for, after, .. } = gone else {
            unreachable!("it was made so");
        };
        let reason = ConnectionError::new("the server refused: it is full");
        let refused = FatalError::CannotConnect { address, reason, unreachable_for, after };
        assert_eq!(
            refused.to_string(),
            "timed out after 1.5 seconds: no worker came from unix:/a for the last 1 second \
             (the server refused: it is full)"
        );
    }
}
