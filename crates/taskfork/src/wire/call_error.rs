//! From the error in a message to the error type of the caller.

use serde::de::DeserializeOwned;

use super::error_body::{ErrorBody, kind};
use super::values::{self, ValueFormat};
use crate::error::{CallError, Error, Failure, FatalError, Location, Panic};
use crate::report::CallSite;

/// The caller's type for errors that an interface returns: [`Failure`] for any interface, or the method's own error
/// type for a typed one.
///
/// It is implemented for every error type that implements `serde::Deserialize`.
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

impl ErrorBody<'_> {
    /// The error of the call at `site`.
    pub(crate) fn into_error<E: InterfaceError>(self, site: CallSite) -> Error<E> {
        self.without_final_newlines().into_error_of_kind(site)
    }

    /// Removes newlines at the ends of messages, which programs in Perl add.
    fn without_final_newlines(mut self) -> Self {
        self.message = self.message.trim_end_matches(['\r', '\n']);
        for cause in &mut self.causes {
            *cause = cause.trim_end_matches(['\r', '\n']);
        }
        self
    }

    fn into_error_of_kind<E: InterfaceError>(self, site: CallSite) -> Error<E> {
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
                location: self.panic_location(),
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

    pub(crate) fn panic_location(&self) -> Option<Location> {
        let (file, line, column) = self.location?;
        Some(Location { file: file.to_owned(), line, column })
    }

    /// The messages of the error and of its causes.
    pub(crate) fn failure(&self) -> Failure {
        Failure::with_causes(self.message, self.causes.iter().copied(), self.more_causes)
    }
}
