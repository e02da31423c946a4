//! A call's error as a message and back: what the worker says becomes the caller's type.

use serde::de::DeserializeOwned;

use super::error_body::{ErrorBody, kind};
use super::values::{self, ValueFormat};
use crate::error::{CallError, Error, Failure, FatalError, Location, Panic};
use crate::report::CallSite;

/// The error that an interface itself returns, as it arrives: [`Failure`] from any interface, or
/// the method's own error type from a typed one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot arrive as an interface's own error",
    note = "implement `std::error::Error` for it and derive `serde::Serialize` and \
            `serde::Deserialize`"
)]
pub trait InterfaceError: Sized {
    /// Makes the error from its message with those of its causes and, from a typed interface, its
    /// encoded value.
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

impl ErrorBody<'_> {
    /// The error that the call at `site` ends with.
    pub(crate) fn into_error<E: InterfaceError>(self, site: CallSite) -> Error<E> {
        self.without_final_newlines().into_error_of_lines(site)
    }

    /// An error is one line each; programs in Perl end it with a newline.
    fn without_final_newlines(mut self) -> Self {
        self.message = self.message.trim_end_matches(['\r', '\n']);
        for cause in &mut self.causes {
            *cause = cause.trim_end_matches(['\r', '\n']);
        }
        self
    }

    fn into_error_of_lines<E: InterfaceError>(self, site: CallSite) -> Error<E> {
        let message = self.message.to_owned();
        let error = match self.kind {
            kind::INTERFACE => match E::from_wire(self.failure(), self.value) {
                Ok(error) => {
                    let site = site.with_causes(&self.failure()).with_stack(self.stack);
                    return Error::Call { error: CallError::Interface(error), site };
                }
                Err(message) => CallError::Decode { message },
            },
            kind::PANIC => CallError::Panic(Panic {
                message,
                location: self.place(),
                stack: self.stack.map(str::to_owned),
            }),
            kind::METHOD => CallError::UnknownMethod {
                method: site.method().map(str::to_owned),
                known: self.known.iter().map(|&name| name.to_owned()).collect(),
            },
            kind::ARGUMENTS => CallError::Arguments { message },
            kind::RESULT => CallError::Result { message },
            kind::SETUP => CallError::Setup { failure: self.failure() },
            other => {
                let detail = format!("an error of the unknown kind `{other}`: {message}");
                let cause = FatalError::Protocol { detail };
                return Error::Fatal { cause, may_have_run: true, site };
            }
        };
        Error::Call { error, site }
    }

    pub(crate) fn place(&self) -> Option<Location> {
        let (file, line, column) = self.location?;
        Some(Location { file: file.to_owned(), line, column })
    }

    /// The error with the messages of its causes.
    pub(crate) fn failure(&self) -> Failure {
        Failure::with_causes(self.message, self.causes.iter().copied(), self.more_causes)
    }
}
