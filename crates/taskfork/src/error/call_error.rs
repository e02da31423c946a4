//! The errors that end a call and leave its checkout usable.

use std::fmt;

use serde::de::DeserializeOwned;

use super::{Failure, Panic};
use crate::report;

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
        /// What the method streams and the call did not, if that is why.
        needs: Needs,
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

/// What a method streams and a call of it did not. Nothing by default.
///
/// A caller that learns the methods' names at run time can make the call again, as the method needs it: the method has not
/// run.
///
/// ```no_run
/// use taskfork::client::Value;
/// use taskfork::error::CallError;
/// use taskfork::{Client, Error};
///
/// # async fn example(client: Client) -> Result<(), Error> {
/// match client.call::<Value>("render", ()).await {
///     Err(Error::Call { error: CallError::Arguments { needs, .. }, .. }) if needs.items => {
///         let mut items = client.stream::<Value, Value>("render", ());
///         while let Some(item) = items.next().await? {
///             println!("{item}");
///         }
///     }
///     result => println!("{}", result?),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Needs {
    /// The caller must read items: [`Checkout::stream`](crate::Checkout::stream).
    pub items: bool,
    /// The caller must stream an input: [`Checkout::call_with_input`](crate::Checkout::call_with_input), or
    /// [`Checkout::stream_with_input`](crate::Checkout::stream_with_input) if it reads items too.
    pub input: bool,
}

impl<E> CallError<E> {
    /// Replaces the interface's own error. See [`Error::map`](super::Error::map).
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
            Self::Arguments { message, needs } => CallError::Arguments { message, needs },
            Self::Result { message } => CallError::Result { message },
            Self::Decode { message } => CallError::Decode { message },
            Self::Input(failure) => CallError::Input(failure),
            Self::Setup { failure } => CallError::Setup { failure },
            Self::Dropped { behind } => CallError::Dropped { behind },
        }
    }

    pub(super) fn may_have_run(&self) -> bool {
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

impl<E: std::error::Error + DeserializeOwned + 'static> From<CallError<E>> for CallError<Failure> {
    fn from(error: CallError<E>) -> Self {
        error.map(|own| Failure::of(&own))
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
            Self::Arguments { message, .. } => write!(out, "bad arguments: {message}"),
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

impl<E: fmt::Display> fmt::Debug for CallError<E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")?;
        report::details_of_call(self, out)
    }
}

impl<E: std::error::Error + 'static> std::error::Error for CallError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Interface(error) => error.source(),
            Self::Setup { failure } | Self::Input(failure) => failure.source(),
            _ => None,
        }
    }
}
