//! Formats durations for messages, and errors for `Debug`.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Implements `Debug` of errors as their text and causes, because a `main` that returns an error prints it
/// by `Debug`.
macro_rules! debug_as_text {
    ($($error:ty),*) => {$(
        impl std::fmt::Debug for $error {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::display::text_with_causes(self, out)
            }
        }
    )*};
}
pub(crate) use debug_as_text;

/// A chain of sources can be endless. No more than this many are shown.
const MAX_CAUSES: usize = 64;

/// Writes the error's text, and a line for each cause whose text the line before does not contain.
pub(crate) fn text_with_causes(
    error: &(dyn Error + 'static),
    out: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let mut shown = error.to_string();
    out.write_str(&shown)?;
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    for text in causes.take(MAX_CAUSES).map(ToString::to_string) {
        if !shown.contains(&text) {
            write!(out, "\ncaused by: {}", text.replace('\n', "\n  "))?;
            shown = text;
        }
    }
    Ok(())
}

/// Formats a duration with at most three decimals: `30 seconds`, `1 second`, `0.25 seconds`.
pub(crate) fn seconds(time: Duration) -> String {
    let rounded = format!("{:.3}", time.as_secs_f64());
    let number = rounded.trim_end_matches('0').trim_end_matches('.');
    let unit = if number == "1" { "second" } else { "seconds" };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;

    #[test]
    fn a_cause_is_shown_once() {
        #[derive(thiserror::Error)]
        #[error("cannot open: {0}")]
        struct Outer(#[source] Failure);
        debug_as_text!(Outer);

        let error = Outer(Failure::new("no access").caused_by("no such\nuser"));
        assert_eq!(format!("{error:?}"), "cannot open: no access\ncaused by: no such\n  user");
    }

    #[test]
    fn decimals_have_no_trailing_zeros() {
        assert_eq!(seconds(Duration::from_secs(30)), "30 seconds");
        assert_eq!(seconds(Duration::from_secs(1)), "1 second");
        assert_eq!(seconds(Duration::from_millis(250)), "0.25 seconds");
        assert_eq!(seconds(Duration::ZERO), "0 seconds");
    }
}
