//! An error as text, with those of its causes.

use std::fmt;

use crate::display::debug_as_text;

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
fn left_out(causes: u64) -> String {
    let plural = if causes == 1 { " is" } else { "s are" };
    format!("{causes} more cause{plural} left out")
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

debug_as_text!(Failure);

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
    use crate::error::CallError;

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
