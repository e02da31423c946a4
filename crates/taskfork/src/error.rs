//! The errors of calls.
//!
//! An [`Error`] is one of two kinds. [`Error::Call`] leaves the checkout usable; [`Error::Fatal`] ends
//! it. The fields of [`CallError`] and [`FatalError`] say what went wrong, and their texts are made
//! from the fields.

mod call_error;
mod failure;
mod fatal;
mod panic;

use std::fmt;

use serde::de::DeserializeOwned;

pub use self::call_error::{CallError, Needs};
pub use self::failure::Failure;
pub(crate) use self::failure::MAX_CAUSES;
pub use self::fatal::{FatalError, Stage, TimeoutOption};
pub use self::panic::{Location, Panic};
pub use crate::connection_error::ConnectionError;
pub use crate::death::{Activity, Death, End, Hung};
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

/// The interface's own error becomes a [`Failure`] with its text and causes. So a function that returns [`Error`]
/// without a type can call methods of all error types and use `?`.
impl<E: std::error::Error + DeserializeOwned + 'static> From<Error<E>> for Error<Failure> {
    fn from(error: Error<E>) -> Self {
        error.map(|own| Failure::of(&own))
    }
}

impl<E: fmt::Display> fmt::Debug for Error<E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.report())
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

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
}
