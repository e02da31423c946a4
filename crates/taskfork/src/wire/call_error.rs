//! From the error in a message to the error type of the caller.

use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::error_body::{ErrorBody, kind};
use super::values::{self, ValueFormat};
use crate::error::{
    CallError, ConnectionError, Error, Failure, FatalError, Location, Needs, Panic,
};
use crate::report::CallSite;

/// The caller's type for errors that an interface returns: [`Failure`] for any interface, or the method's own error
/// type for a typed one.
///
/// It is implemented for every error type that implements `serde::Deserialize`.
///
/// ```
/// use taskfork::Call;
/// use taskfork::error::InterfaceError;
///
/// /// The result of a call, or `None` after any error.
/// async fn optional<T: serde::de::DeserializeOwned, E: InterfaceError>(call: Call<T, E>) -> Option<T> {
///     call.await.ok()
/// }
/// # let _ = optional::<i64, taskfork::error::Failure>;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot arrive as an interface's own error",
    note = "implement `std::error::Error` for it and derive `serde::Serialize` and \
            `serde::Deserialize`"
)]
pub trait InterfaceError: Sized {
    /// Makes the error from its messages and, for a typed interface, its encoded value.
    ///
    /// # Errors
    /// A text that says why the value cannot be decoded.
    #[doc(hidden)]
    fn from_wire(failure: Failure, value: Option<&[u8]>) -> Result<Self, String>;
}

impl InterfaceError for Failure {
    fn from_wire(failure: Failure, _: Option<&[u8]>) -> Result<Self, String> {
        Ok(failure)
    }
}

impl<E: std::error::Error + DeserializeOwned> InterfaceError for E {
    fn from_wire(failure: Failure, value: Option<&[u8]>) -> Result<Self, String> {
        let message = failure.message();
        let value = value.ok_or_else(|| {
            format!("the worker sent an error without its typed value: {message}")
        })?;
        values::decode(value, ValueFormat::MessagePack)
            .map_err(|error| format!("the typed error `{message}`: {error}"))
    }
}

/// The error in an answer. It owns its texts, and the error type of the caller is not known yet.
#[derive(Debug)]
pub(crate) enum AnswerError {
    Interface {
        failure: Failure,
        value: Option<Bytes>,
        stack: Option<String>,
        type_name: Option<String>,
        notes: Vec<String>,
    },
    /// The interface's code was interrupted because the time of its call was over.
    TimedOut {
        failure: Failure,
        stack: Option<String>,
        ran_for: Duration,
    },
    Panic(Panic),
    UnknownMethod {
        known: Vec<String>,
    },
    Arguments {
        message: String,
        needs: Needs,
    },
    Result {
        message: String,
    },
    Setup {
        failure: Failure,
    },
    UnknownKind {
        kind: String,
        message: String,
    },
}

impl AnswerError {
    /// The encoded error of a typed interface.
    pub(crate) fn value(&self) -> Option<&[u8]> {
        match self {
            Self::Interface { value, .. } => value.as_deref(),
            _ => None,
        }
    }

    /// The error of the call at `site`.
    pub(crate) fn into_error<E: InterfaceError>(self, site: CallSite) -> Error<E> {
        let error = match self {
            Self::Interface { failure, value, stack, type_name, notes } => {
                let site = site.with_causes(&failure);
                return match E::from_wire(failure, value.as_deref()) {
                    Ok(error) => Error::Call {
                        error: CallError::Interface(error),
                        site: site.raised(stack, type_name, notes),
                    },
                    Err(message) => Error::Call { error: CallError::Decode { message }, site },
                };
            }
            // Of a call without a time limit: the worker has one of its own.
            Self::TimedOut { failure, stack, .. } => {
                let (type_name, notes) = (None, Vec::new());
                let error = Self::Interface { failure, value: None, stack, type_name, notes };
                return error.into_error(site);
            }
            Self::Panic(panic) => CallError::Panic(panic),
            Self::UnknownMethod { known } => {
                CallError::UnknownMethod { method: site.method().map(str::to_owned), known }
            }
            Self::Arguments { message, needs } => CallError::Arguments { message, needs },
            Self::Result { message } => CallError::Result { message },
            Self::Setup { failure } => CallError::Setup { failure },
            Self::UnknownKind { kind, message } => {
                let detail = format!("an error of the unknown kind `{kind}`: {message}");
                let cause = FatalError::Protocol { detail: ConnectionError::new(detail) };
                return Error::Fatal { cause, may_have_run: true, site };
            }
        };
        Error::Call { error, site }
    }
}

impl ErrorBody<'_> {
    /// The error of the call at `site`, with a copy of its value.
    pub(crate) fn into_error<E: InterfaceError>(self, site: CallSite) -> Error<E> {
        self.into_owned(Bytes::copy_from_slice).into_error(site)
    }

    /// Copies the texts, and makes the value owned by `own`.
    pub(crate) fn into_owned(self, own: impl FnOnce(&[u8]) -> Bytes) -> AnswerError {
        let body = self.without_final_newlines();
        let message = || body.message.to_owned();
        let stack = || body.stack.map(str::to_owned);
        match body.kind {
            kind::INTERFACE if body.timed_out.is_some() => AnswerError::TimedOut {
                failure: body.failure(),
                stack: stack(),
                ran_for: Duration::from_micros(body.timed_out.unwrap_or_default()),
            },
            kind::INTERFACE => AnswerError::Interface {
                failure: body.failure(),
                value: body.value.map(own),
                stack: stack(),
                type_name: body.type_name.map(str::to_owned),
                notes: body.notes.iter().map(|&note| note.to_owned()).collect(),
            },
            kind::PANIC => AnswerError::Panic(Panic {
                message: message(),
                location: body.panic_location(),
                stack: stack(),
            }),
            kind::METHOD => AnswerError::UnknownMethod {
                known: body.known.iter().map(|&name| name.to_owned()).collect(),
            },
            kind::ARGUMENTS => AnswerError::Arguments { message: message(), needs: body.needs },
            kind::RESULT => AnswerError::Result { message: message() },
            kind::SETUP => AnswerError::Setup { failure: body.failure() },
            other => AnswerError::UnknownKind { kind: other.to_owned(), message: message() },
        }
    }

    /// Removes newlines at the ends of messages, which programs in Perl add.
    fn without_final_newlines(mut self) -> Self {
        self.message = self.message.trim_end_matches(['\r', '\n']);
        for cause in &mut self.causes {
            *cause = cause.trim_end_matches(['\r', '\n']);
        }
        self
    }

    pub(crate) fn panic_location(&self) -> Option<Location> {
        let (file, line, column) = self.location?;
        Some(Location { file: file.to_owned(), line, column })
    }

    /// The messages of the error and of its causes.
    pub(crate) fn failure(&self) -> Failure {
        Failure::with_causes(self.message, self.causes.iter().copied(), self.more_causes)
    }
}
