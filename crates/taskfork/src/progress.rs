//! How far a call has got.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a call has got, as the worker's code has reported it with
/// [`Context::progress`](crate::worker::Context::progress).
///
/// ```
/// use taskfork::Progress;
///
/// let progress = Progress::new(3, 12, "pages");
/// assert_eq!(progress.fraction(), Some(0.25));
/// assert_eq!(progress.to_string(), "3 of 12 pages");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// How much has been done, in a unit that the worker chooses.
    pub done: u64,
    /// How much there is to do in all, in the same unit. `None` if that is not known.
    pub total: Option<u64>,
    /// What is counted, or what the worker does now. Has at most [`MAX_TEXT`](Self::MAX_TEXT) bytes.
    pub what: String,
}

impl Progress {
    /// The most bytes of [`what`](Self::what). Longer texts are cut.
    ///
    /// ```
    /// let progress = taskfork::Progress::new(1, None, "x".repeat(1000));
    /// assert_eq!(progress.what.len(), taskfork::Progress::MAX_TEXT);
    /// ```
    pub const MAX_TEXT: usize = 64;

    /// This much is done, of that much in all.
    ///
    /// ```
    /// let progress = taskfork::Progress::new(7, None, "rows");
    /// assert_eq!(progress.to_string(), "7 rows");
    /// ```
    pub fn new(done: u64, total: impl Into<Option<u64>>, what: impl Into<String>) -> Self {
        let mut what = what.into();
        what.truncate(what.floor_char_boundary(Self::MAX_TEXT));
        Self { done, total: total.into(), what }
    }

    /// The part that is done, from 0 to 1. `None` if the total is not known or 0.
    ///
    /// ```
    /// use taskfork::Progress;
    ///
    /// assert_eq!(Progress::new(1, 4, "").fraction(), Some(0.25));
    /// assert_eq!(Progress::new(5, 4, "").fraction(), Some(1.0));
    /// assert_eq!(Progress::new(5, None, "").fraction(), None);
    /// ```
    pub fn fraction(&self) -> Option<f64> {
        let total = self.total.filter(|&total| total > 0)?;
        Some((self.done as f64 / total as f64).min(1.0))
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.done)?;
        if let Some(total) = self.total {
            write!(out, " of {total}")?;
        }
        match self.what.as_str() {
            "" => Ok(()),
            what => write!(out, " {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let progress = Progress::new(1, 2, format!("a{}", "é".repeat(100)));
        assert_eq!(progress.what.len(), Progress::MAX_TEXT - 1);
        assert!(progress.what.ends_with('é'));
    }
}
