//! After which errors a client must not use a worker again.

use super::error_reply::ErrorReply;
use crate::wire::error_body::kind;

/// After which errors of calls a worker is replaced, at the end of the checkout. See
/// [`ServerBuilder::replace_after`](crate::ServerBuilder::replace_after).
///
/// ```
/// use taskfork::worker::ReplaceAfter;
/// use taskfork::{Methods, Server};
///
/// // The methods of this server leave nothing half done when they fail.
/// let server = Server::builder()
///     .replace_after(ReplaceAfter::Panic)
///     .interface(Methods::new().function("parse", |text: String| Ok(text.parse::<f64>()?)));
/// # let _ = server;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplaceAfter {
    /// After a panic, and after a failed `setup`. The errors that methods return are values: the worker is kept.
    Panic,
    /// After any error, also one that the method has returned, and one of wrong arguments.
    AnyError,
    /// After no error. A worker that has died is replaced all the same.
    Never,
}

impl ReplaceAfter {
    /// Whether the worker is kept after this error.
    pub(super) fn keeps(self, error: &ErrorReply) -> bool {
        match self {
            Self::Panic => ![kind::PANIC, kind::SETUP].contains(&error.kind()),
            Self::AnyError => false,
            Self::Never => true,
        }
    }
}
