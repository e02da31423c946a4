//! The errors of calls.
//!
//! An [`Error`] is one of two kinds. [`Error::Call`] leaves the checkout usable; [`Error::Fatal`] ends
//! it. The fields of [`CallError`] and [`FatalError`] say what went wrong, and their texts are made
//! from the fields.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;

pub use crate::connection_error::ConnectionError;
pub use crate::death::{Activity, Death, End, Hung};
use crate::display::{debug_as_text, seconds};
use crate::report;
pub use crate::report::{CallSite, Report};
pub use crate::wire::call_error::InterfaceError;

/// The error that functions of an untyped interface return. `?` converts any error to it, and `into`
/// converts a text.
///
/// Its message and those of its causes reach the caller as a [`Failure`].
///
/// ```
/// use taskfork::BoxError;
///
/// fn port(text: &str) -> Result<u16, BoxError> {
///     if text.is_empty() {
///         return Err("there is no port".into());
///     }
///     Ok(text.parse()?)
/// }
/// # assert!(port("").is_err() && port("80").is_ok());
/// ```
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The error of a call.
///
/// `E` is the error that the interface itself returns: the method's error type for a typed interface,
/// [`Failure`] for an untyped one.
///
/// ```
/// use taskfork::error::CallError;
/// use taskfork::Error;
///
/// fn advice(error: &Error) -> &'static str {
///     match error {
///         Error::Call { error: CallError::Interface(_), .. } => "the method said no",
///         Error::Call { .. } => "the call went wrong, the checkout is still good",
///         Error::Fatal { may_have_run: false, .. } => "safe to try again on a new checkout",
///         _ => "the checkout is over, and the call may have run",
///     }
/// }
/// ```
///
/// `Display` writes one line. `{:#}` and [`report`](Self::report) add the causes in the worker, the
/// stack, the call, and the line of the program that made it. `Debug` writes the same report, because
/// a `main` that returns an error prints it by `Debug`.
#[non_exhaustive]
pub enum Error<E = Failure> {
    /// The call failed. The checkout stays usable, and further calls reach the same worker.
    #[non_exhaustive]
    Call {
        /// What went wrong.
        error: CallError<E>,
        /// The call that failed.
        site: CallSite,
    },
    /// The checkout has ended. Every later call on it fails at once with the same cause.
    #[non_exhaustive]
    Fatal {
        /// What ended the checkout.
        cause: FatalError,
        /// Whether a worker may have begun this call. If `false`, a retry cannot run it twice.
        may_have_run: bool,
        /// The call that failed.
        site: CallSite,
    },
}

/// An error that ends a call and leaves its checkout usable.
///
/// ```
/// use taskfork::error::CallError;
///
/// fn is_fault_of_the_caller(error: &CallError) -> bool {
///     matches!(error, CallError::UnknownMethod { .. } | CallError::Arguments { .. })
/// }
/// # let _ = is_fault_of_the_caller;
/// ```
#[non_exhaustive]
pub enum CallError<E = Failure> {
    /// The interface's own error.
    Interface(E),
    /// The worker's code panicked.
    Panic(Panic),
    /// The server's interface has no such method.
    UnknownMethod {
        /// The requested method, or `None` if the call named none.
        method: Option<String>,
        /// The interface's methods, if it can list them.
        known: Vec<String>,
    },
    /// The arguments cannot be encoded, or they do not fit the method's parameters. The method did not run.
    Arguments {
        /// What does not fit, and where.
        message: String,
    },
    /// The method ran, and its result cannot be encoded.
    Result {
        /// What cannot be encoded.
        message: String,
    },
    /// The method ran, and its result does not fit the type that the caller asked for.
    Decode {
        /// What does not fit, and where.
        message: String,
    },
    /// The stream that was passed as the input of the call has failed, or one of its items cannot be sent. The method has
    /// had the items before it, and learnt that the input has failed.
    Input(Failure),
    /// The worker's `setup` failed or panicked, so that the call did not run. The next call runs `setup`
    /// again.
    Setup {
        /// The error of `setup`, with its causes.
        failure: Failure,
    },
    /// An earlier call on the same checkout failed, so that this one did not run.
    Dropped {
        /// A description of the call that failed.
        behind: String,
    },
}

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
        /// Where the worker was when the server killed it.
        hung: Option<Box<Hung>>,
    },
    /// The worker ended, or closed its connection.
    WorkerDied(Death),
    /// [`abort`](crate::Checkout::abort) was called, or the client's runtime was shut down.
    Aborted {
        /// The message passed to `abort`.
        message: String,
    },
    /// No server answered before the deadline.
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

/// A panic in a worker.
///
/// ```
/// use taskfork::Error;
/// use taskfork::error::CallError;
///
/// fn panic_message(error: &Error) -> Option<&str> {
///     match error {
///         Error::Call { error: CallError::Panic(panic), .. } => Some(&panic.message),
///         _ => None,
///     }
/// }
/// # let _ = panic_message;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Panic {
    /// The panic's message.
    pub message: String,
    /// Where it was raised.
    pub location: Option<Location>,
    /// The worker's stack at the panic, if `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` is set in the
    /// worker's environment.
    pub stack: Option<String>,
}

/// A line in a source file.
///
/// ```
/// use taskfork::error::Panic;
///
/// fn line(panic: &Panic) -> Option<u32> {
///     panic.location.as_ref().map(|location| location.line)
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Location {
    /// The source file as the compiler saw it.
    pub file: String,
    /// The line, counted from 1.
    pub line: u32,
    /// The column, counted from 1.
    pub column: u32,
}

/// An error of an untyped interface: its message and those of its causes, as texts from the worker.
/// [`source`](std::error::Error::source) returns the next cause.
///
/// A failure keeps the nearest 64 causes. After a longer chain, one more cause states the number of
/// causes left out.
///
/// ```
/// let failure = taskfork::error::Failure::new("cannot open the account").caused_by("disk full");
/// assert_eq!(failure.to_string(), "cannot open the account");
/// assert_eq!(std::error::Error::source(&failure).unwrap().to_string(), "disk full");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    message: String,
    /// The chain is short, so that recursion over it is harmless.
    source: Option<Box<Failure>>,
    /// How many causes this last link of a chain stands for; 0 for a cause with its own message.
    left_out: u64,
}

/// The number of causes that an error keeps. Dropping, comparing and formatting an error recurse once
/// for each cause.
pub(crate) const MAX_CAUSES: usize = 64;

/// A chain of sources can be endless. Counting stops here.
const MOST_COUNTED: usize = 100_000;

/// The text that stands for causes left out.
pub(crate) fn left_out(causes: u64) -> String {
    let plural = if causes == 1 { " is" } else { "s are" };
    format!("{causes} more cause{plural} left out")
}

impl<E> Error<E> {
    /// Whether the error ends the checkout.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// let checkout = client.checkout();
    /// if let Err(error) = checkout.call::<()>("work", ()).await {
    ///     println!("the checkout {}", if error.is_fatal() { "is over" } else { "is still good" });
    /// }
    /// # }
    /// ```
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Fatal { .. })
    }

    /// Whether a worker may have run the call, completely or in part. If `false`, a retry cannot run it
    /// twice.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// let mut result = client.call::<()>("charge", (100,)).await;
    /// if result.as_ref().is_err_and(|error| !error.may_have_run()) {
    ///     result = client.call("charge", (100,)).await;
    /// }
    /// # }
    /// ```
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::Call { error, .. } => error.may_have_run(),
            Self::Fatal { may_have_run, .. } => *may_have_run,
        }
    }

    /// The call that the error belongs to.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// if let Err(error) = client.call::<()>("work", ()).await {
    ///     println!("{} failed: {error}", error.site());
    /// }
    /// # }
    /// ```
    pub fn site(&self) -> &CallSite {
        match self {
            Self::Call { site, .. } | Self::Fatal { site, .. } => site,
        }
    }

    /// Replaces the interface's own error. All else stays as it is.
    ///
    /// Use it where a function calls methods with different error types and returns one of its own. A function that
    /// returns [`Error`] without a type needs no conversion: `?` makes a [`Failure`] of any error.
    ///
    /// ```
    /// use serde::{Deserialize, Serialize};
    /// use taskfork::Error;
    ///
    /// #[derive(Debug, thiserror::Error, Serialize, Deserialize)]
    /// #[error("the disk is full")]
    /// struct Full;
    ///
    /// #[derive(Debug, thiserror::Error, Serialize, Deserialize)]
    /// #[error("there is no such page")]
    /// struct Missing;
    ///
    /// #[derive(Debug, thiserror::Error)]
    /// enum AppError {
    ///     #[error(transparent)]
    ///     Full(#[from] Full),
    ///     #[error(transparent)]
    ///     Missing(#[from] Missing),
    /// }
    ///
    /// #[taskfork::interface]
    /// trait Pages {
    ///     fn read(&mut self, page: u32) -> Result<String, Missing>;
    ///     fn write(&mut self, page: u32, text: &str) -> Result<(), Full>;
    /// }
    ///
    /// async fn copy(pages: &PagesClient) -> Result<(), Error<AppError>> {
    ///     let text = pages.read(1).await.map_err(|error| error.map(AppError::from))?;
    ///     pages.write(2, &text).await.map_err(|error| error.map(AppError::from))
    /// }
    ///
    /// async fn copy_or_say_why(pages: &PagesClient) -> Result<(), Error> {
    ///     let text = pages.read(1).await?;
    ///     pages.write(2, &text).await?;
    ///     Ok(())
    /// }
    /// # let _ = (copy, copy_or_say_why);
    /// ```
    pub fn map<F>(self, change: impl FnOnce(E) -> F) -> Error<F> {
        match self {
            Self::Call { error, site } => Error::Call { error: error.map(change), site },
            Self::Fatal { cause, may_have_run, site } => Error::Fatal { cause, may_have_run, site },
        }
    }

    /// Returns a detailed report in several lines, the same as `{:#}`.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// if let Err(error) = client.call::<i64>("add", (2, 3)).await {
    ///     eprintln!("{}", error.report());
    /// }
    /// # }
    /// ```
    pub fn report(&self) -> Report<'_, E> {
        Report(self)
    }
}

impl<E> CallError<E> {
    /// Replaces the interface's own error. See [`Error::map`].
    ///
    /// ```
    /// use taskfork::error::{CallError, Failure};
    ///
    /// let error = CallError::Interface(404).map(|status| Failure::new(format!("status {status}")));
    /// assert_eq!(error.to_string(), "status 404");
    /// ```
    pub fn map<F>(self, change: impl FnOnce(E) -> F) -> CallError<F> {
        match self {
            Self::Interface(error) => CallError::Interface(change(error)),
            Self::Panic(panic) => CallError::Panic(panic),
            Self::UnknownMethod { method, known } => CallError::UnknownMethod { method, known },
            Self::Arguments { message } => CallError::Arguments { message },
            Self::Result { message } => CallError::Result { message },
            Self::Decode { message } => CallError::Decode { message },
            Self::Input(failure) => CallError::Input(failure),
            Self::Setup { failure } => CallError::Setup { failure },
            Self::Dropped { behind } => CallError::Dropped { behind },
        }
    }

    fn may_have_run(&self) -> bool {
        match self {
            Self::Interface(_)
            | Self::Panic(_)
            | Self::Result { .. }
            | Self::Decode { .. }
            | Self::Input(_) => true,
            Self::UnknownMethod { .. }
            | Self::Arguments { .. }
            | Self::Setup { .. }
            | Self::Dropped { .. } => false,
        }
    }
}

/// The interface's own error becomes a [`Failure`] with its text and causes. So a function that returns [`Error`]
/// without a type can call methods of all error types and use `?`.
impl<E: std::error::Error + DeserializeOwned + 'static> From<Error<E>> for Error<Failure> {
    fn from(error: Error<E>) -> Self {
        error.map(|own| Failure::of(&own))
    }
}

impl<E: std::error::Error + DeserializeOwned + 'static> From<CallError<E>> for CallError<Failure> {
    fn from(error: CallError<E>) -> Self {
        error.map(|own| Failure::of(&own))
    }
}

impl Failure {
    /// Creates a failure without a cause.
    ///
    /// ```
    /// assert_eq!(taskfork::error::Failure::new("disk full").causes().count(), 0);
    /// ```
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None, left_out: 0 }
    }

    /// Appends a cause to the end of the chain. After 64 causes, further ones are only counted.
    ///
    /// ```
    /// use taskfork::error::Failure;
    ///
    /// let failure = Failure::new("cannot open the account").caused_by("no space").caused_by("disk full");
    /// assert_eq!(failure.causes().last(), Some("disk full"));
    /// ```
    #[must_use]
    pub fn caused_by(mut self, message: impl Into<String>) -> Self {
        let mut length = 0;
        let mut last = &mut self.source;
        while let Some(cause) = last {
            if cause.left_out > 0 {
                **cause = Self::more(cause.left_out.saturating_add(1));
                return self;
            }
            length += 1;
            last = &mut cause.source;
        }
        let cause = if length < MAX_CAUSES { Self::new(message) } else { Self::more(1) };
        *last = Some(Box::new(cause));
        self
    }

    /// Creates a failure with the first of these causes. `more` were left out before.
    pub(crate) fn with_causes<C: Into<String>>(
        message: impl Into<String>,
        causes: impl IntoIterator<Item = C>,
        more: u64,
    ) -> Self {
        let mut causes = causes.into_iter();
        let kept: Vec<Self> = causes.by_ref().take(MAX_CAUSES).map(Self::new).collect();
        let more = more.saturating_add(causes.take(MOST_COUNTED).count() as u64);
        let mut source = (more > 0).then(|| Box::new(Self::more(more)));
        for mut cause in kept.into_iter().rev() {
            cause.source = source;
            source = Some(Box::new(cause));
        }
        Self { source, ..Self::new(message) }
    }

    /// The last link of a chain, for causes that are left out.
    fn more(causes: u64) -> Self {
        Self { message: left_out(causes), source: None, left_out: causes }
    }

    /// The messages of `error` and its causes.
    pub(crate) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let sources = std::iter::successors(error.source(), |error| error.source());
        let mut sources = sources.take(MAX_CAUSES + MOST_COUNTED);
        let causes: Vec<_> = sources.by_ref().take(MAX_CAUSES).map(ToString::to_string).collect();
        Self::with_causes(error.to_string(), causes, sources.count() as u64)
    }

    /// The failure's own message.
    ///
    /// ```
    /// use taskfork::error::Failure;
    ///
    /// let failure = Failure::new("cannot open the account").caused_by("no space").caused_by("disk full");
    /// assert_eq!(failure.message(), "cannot open the account");
    /// ```
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The messages of the causes, nearest first. If some were left out, the last one states their number.
    ///
    /// ```
    /// use taskfork::error::Failure;
    ///
    /// let failure = Failure::new("cannot open the account").caused_by("no space").caused_by("disk full");
    /// assert_eq!(failure.causes().collect::<Vec<_>>(), ["no space", "disk full"]);
    /// ```
    pub fn causes(&self) -> impl Iterator<Item = &str> {
        self.links().map(|cause| cause.message.as_str())
    }

    fn links(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(self.source.as_deref(), |cause| cause.source.as_deref())
    }

    /// The messages of the causes that were kept, and how many were left out.
    pub(crate) fn kept_causes(&self) -> (Vec<&str>, u64) {
        let kept = self.links().filter(|cause| cause.left_out == 0);
        let kept = kept.map(|cause| cause.message.as_str()).collect();
        (kept, self.links().map(|cause| cause.left_out).sum())
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(error) => error.fmt(out),
            Self::Panic(panic) => panic.fmt(out),
            Self::UnknownMethod { method: Some(method), known } => {
                write!(out, "unknown method `{method}`")?;
                if known.is_empty() {
                    Ok(())
                } else {
                    write!(out, ": there is {}", known.join(", "))
                }
            }
            Self::UnknownMethod { method: None, known } => {
                out.write_str("a call must name a method")?;
                if known.is_empty() {
                    Ok(())
                } else {
                    write!(out, ": there is {}", known.join(", "))
                }
            }
            Self::Arguments { message } => write!(out, "bad arguments: {message}"),
            Self::Result { message } => write!(out, "the result cannot be sent: {message}"),
            Self::Decode { message } => {
                write!(out, "the answer is not of the type asked for: {message}")
            }
            Self::Input(failure) => write!(out, "the input of the call has failed: {failure}"),
            Self::Setup { failure } => write!(out, "setup exception: {failure}"),
            Self::Dropped { behind } => write!(out, "not run because {behind} failed before it"),
        }
    }
}

impl<E: fmt::Display> fmt::Debug for Error<E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.report())
    }
}

impl<E: fmt::Display> fmt::Debug for CallError<E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")?;
        report::details_of_call(self, out)
    }
}

impl fmt::Debug for FatalError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")?;
        report::details_of_end(self, out)
    }
}

debug_as_text!(Failure);

impl<E: std::error::Error + 'static> std::error::Error for CallError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Interface(error) => error.source(),
            Self::Setup { failure } | Self::Input(failure) => failure.source(),
            _ => None,
        }
    }
}

impl fmt::Display for FatalError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { after, limit, stage, .. } => {
                let doing = match stage {
                    Stage::Waiting => "while waiting for a worker",
                    Stage::Running => "while running",
                };
                write!(out, "timed out after {} {doing} ({limit})", seconds(*after))
            }
            Self::WorkerDied(death) => write!(out, "worker connection suddenly died: {death}"),
            Self::Aborted { message } => out.write_str(message),
            Self::ClientClosed => out.write_str("the client is closed: `close` was called on it"),
            Self::CannotConnect { address, reason, unreachable_for, after } => write!(
                out,
                "timed out after {}: no server answered at {address} for the last {} ({reason})",
                seconds(*after),
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

impl fmt::Display for Panic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "panicked: {}", self.message)?;
        match &self.location {
            Some(place) => write!(out, " ({}:{}:{})", place.file, place.line, place.column),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_fatal_error_says_what_happened_to_which_worker_and_why() {
        let death = Death {
            pid: 42,
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
            reason: ConnectionError::new("Connection refused"),
            unreachable_for: Duration::from_secs(1),
            after,
        };
        assert_eq!(
            gone.to_string(),
            "timed out after 1.5 seconds: no server answered at unix:/a for the last 1 second \
             (Connection refused)"
        );
    }

    #[test]
    fn the_chain_of_a_failure_is_walked_by_source() {
        let failure = Failure::new("a").caused_by("b").caused_by("c");
        assert_eq!(failure.causes().collect::<Vec<_>>(), ["b", "c"]);

        let error: CallError = CallError::Interface(failure);
        assert_eq!(error.to_string(), "a");
        let cause = error.source().unwrap();
        assert_eq!(cause.to_string(), "b");
        assert_eq!(cause.source().unwrap().to_string(), "c");
        assert!(error.may_have_run());
    }

    #[test]
    fn question_marks_make_failures_of_all_errors() {
        #[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
        #[error("the page is missing")]
        struct Missing;
        #[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
        #[error("cannot write")]
        struct Full(#[source] Missing);
        fn first(result: Result<(), Error<Missing>>) -> Result<(), Error> {
            Ok(result?)
        }
        fn second(result: Result<(), Error<Full>>) -> Result<(), Error> {
            result?;
            Ok(())
        }
        let site = || CallSite::new("a", None, std::panic::Location::caller());
        let call = Error::Call { error: CallError::Interface(Missing), site: site() };
        assert_eq!(first(Err(call)).unwrap_err().to_string(), "the page is missing");
        let call = Error::Call { error: CallError::Interface(Full(Missing)), site: site() };
        let error = second(Err(call)).unwrap_err();
        assert_eq!(error.source().unwrap().to_string(), "the page is missing");
        let cause = FatalError::ClientClosed;
        let fatal: Error<Missing> = Error::Fatal { cause, may_have_run: true, site: site() };
        assert!(fatal.map(|_| Failure::new("")).may_have_run());
    }

    #[test]
    fn a_long_chain_keeps_its_nearest_causes_and_counts_the_others() {
        let mut failure = Failure::new("top");
        for number in 0..1000 {
            failure = failure.caused_by(number.to_string());
        }
        let causes: Vec<_> = failure.causes().collect();
        assert_eq!((causes.len(), causes[0], causes[63]), (MAX_CAUSES + 1, "0", "63"));
        assert_eq!(causes[64], "936 more causes are left out");
        let at_once = Failure::with_causes("top", (0..1000).map(|number| number.to_string()), 0);
        assert_eq!(at_once, failure);
        let one_more = Failure::with_causes("top", (0..65).map(|number| number.to_string()), 0);
        assert_eq!(one_more.causes().last(), Some("1 more cause is left out"));
        assert_eq!(one_more.kept_causes().1, 1);
    }

    #[test]
    fn an_endless_chain_of_sources_is_cut() {
        #[derive(Debug)]
        struct Cycle;
        impl fmt::Display for Cycle {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("again")
            }
        }
        impl std::error::Error for Cycle {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&Cycle)
            }
        }
        let failure = Failure::of(&Cycle);
        assert_eq!(failure.causes().count(), MAX_CAUSES + 1);
        assert_eq!(failure.kept_causes().1, MOST_COUNTED as u64);
    }
}
