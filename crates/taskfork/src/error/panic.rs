//! A panic in a worker.

use std::fmt;

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

impl fmt::Display for Panic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "panicked: {}", self.message)?;
        match &self.location {
            Some(place) => write!(out, " ({}:{}:{})", place.file, place.line, place.column),
            None => Ok(()),
        }
    }
}
