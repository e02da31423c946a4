//! Why a connection to a worker could not be made, or has failed.

use std::error::Error;
use std::fmt;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::display::debug_as_text;

/// Why a connection to a worker could not be made, or has failed. It is part of
/// [`FatalError::CannotConnect`](crate::error::FatalError::CannotConnect) and
/// [`FatalError::Protocol`](crate::error::FatalError::Protocol).
///
/// `Display` writes the reason. [`source`](Error::source) returns the error below it: a [`std::io::Error`]
/// if the system refused, and `None` if the text says all, as when a server refuses. If a client has
/// several addresses, the text has the reason at each, and the source is that of the last address with
/// one. Two of these errors are equal if their texts are.
///
/// ```
/// use std::error::Error as _;
/// use std::io;
///
/// use taskfork::Error;
/// use taskfork::error::FatalError;
///
/// /// Whether the server's socket does not exist, so that the server has not been started yet.
/// fn is_not_started(error: &Error) -> bool {
///     let Error::Fatal { cause: FatalError::CannotConnect { reason, .. }, .. } = error else {
///         return false;
///     };
///     let source = reason.source().and_then(|source| source.downcast_ref::<io::Error>());
///     source.is_some_and(|source| source.kind() == io::ErrorKind::NotFound)
/// }
/// # let _ = is_not_started;
/// ```
#[derive(Clone)]
pub struct ConnectionError {
    text: String,
    /// Shared, because all calls of a checkout fail with the same error.
    source: Option<Arc<dyn Error + Send + Sync>>,
    /// The server does not serve an interface that the client requires.
    is_wrong_interface: bool,
}

debug_as_text!(ConnectionError);

// Nothing can be changed through a `ConnectionError`, so that a panic cannot leave it half changed.
// Without these lines the system's error would make the errors of calls lose the two traits.
impl UnwindSafe for ConnectionError {}
impl RefUnwindSafe for ConnectionError {}

impl ConnectionError {
    /// An error whose text says all.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), source: None, is_wrong_interface: false }
    }

    /// The server does not serve an interface that the client requires.
    pub(crate) fn wrong_interface(difference: String) -> Self {
        Self { is_wrong_interface: true, ..Self::new(difference) }
    }

    /// The system's error.
    pub(crate) fn system(error: io::Error) -> Self {
        let text = error.to_string();
        Self { source: Some(Arc::new(error)), ..Self::new(text) }
    }

    /// The reasons at several addresses as one error.
    pub(crate) fn of_addresses(reasons: Vec<(String, Self)>) -> Self {
        let is_wrong_interface = reasons.iter().all(|(_, reason)| reason.is_wrong_interface);
        let texts: Vec<_> =
            reasons.iter().map(|(address, reason)| format!("{address}: {reason}")).collect();
        let source = reasons.into_iter().rev().find_map(|(_, reason)| reason.source);
        Self { text: texts.join("; "), source, is_wrong_interface }
    }

    /// Whether no attempt can succeed before the server or the client is replaced: the server does not serve an
    /// interface that the client requires.
    pub(crate) fn is_wrong_interface(&self) -> bool {
        self.is_wrong_interface
    }

    /// Whether nobody answered at all, as far as the system knows. Otherwise somebody did, who refused or could not be used.
    pub(crate) fn is_silence(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied, TimedOut};

        let source = self.source.as_ref().and_then(|source| source.downcast_ref::<io::Error>());
        source.is_some_and(|error| match error.kind() {
            ConnectionRefused | NotFound | PermissionDenied | TimedOut => true,
            ConnectionReset | ConnectionAborted | BrokenPipe => false,
            _ => error.raw_os_error().is_some(),
        })
    }

    /// Appends what else is known, unless the text says it already.
    pub(crate) fn with_detail(mut self, detail: &str) -> Self {
        if !self.text.contains(detail) {
            self.text = format!("{}: {detail}", self.text);
        }
        self
    }
}

impl PartialEq for ConnectionError {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for ConnectionError {}

impl fmt::Display for ConnectionError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl Error for ConnectionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> ConnectionError {
        ConnectionError::system(io::ErrorKind::ConnectionRefused.into())
    }

    #[test]
    fn the_reasons_at_several_addresses_are_one_error_with_the_last_source() {
        let closed = ConnectionError::new("the server closed the connection");
        let reasons = vec![("unix:/a".to_owned(), refused()), ("unix:/b".to_owned(), closed)];
        let error = ConnectionError::of_addresses(reasons);
        let expected = "unix:/a: connection refused; unix:/b: the server closed the connection";
        assert_eq!(error.to_string(), expected);
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::ConnectionRefused));
    }

    #[test]
    fn whoever_refuses_has_answered() {
        assert!(refused().is_silence());
        assert!(ConnectionError::system(io::Error::from_raw_os_error(113)).is_silence());
        for answered in [
            ConnectionError::system(io::ErrorKind::ConnectionReset.into()),
            ConnectionError::system(io::Error::new(io::ErrorKind::InvalidData, "TLS failed")),
            ConnectionError::new("the server refused: it is full"),
        ] {
            assert!(!answered.is_silence(), "{answered}");
        }
    }

    #[test]
    fn a_detail_is_appended_once() {
        let error = refused().with_detail("the server has ended");
        assert_eq!(error.to_string(), "connection refused: the server has ended");
        assert_eq!(error.clone().with_detail("the server has ended"), error);
    }
}
