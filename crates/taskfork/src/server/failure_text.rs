//! A [`Failure`] as text, for the channels between processes: how many causes were left out, the
//! message, and its causes, with a NUL between them.
//!
//! A channel cuts a text that is too long, so the last cause can be incomplete.

use crate::error::Failure;

const SEPARATOR: char = '\0';

pub(super) fn encode(failure: &Failure) -> String {
    let (causes, left_out) = failure.kept_causes();
    let mut text = left_out.to_string();
    for message in [failure.message()].into_iter().chain(causes) {
        text.push(SEPARATOR);
        text.extend(message.chars().filter(|&char| char != SEPARATOR));
    }
    text
}

pub(super) fn decode(text: &str) -> Failure {
    let mut parts = text.split(SEPARATOR);
    let left_out = parts.next().and_then(|number| number.parse().ok()).unwrap_or_default();
    let message = parts.next().unwrap_or_default();
    Failure::with_causes(message, parts, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_with_all_its_causes() {
        for failure in [
            Failure::new(""),
            Failure::new("no model"),
            Failure::new("no\nmodel").caused_by("").caused_by("no such file"),
            Failure::with_causes("many", (0..100).map(|number| number.to_string()), 0),
        ] {
            assert_eq!(decode(&encode(&failure)), failure);
        }
        assert_eq!(decode(&encode(&Failure::new("a\0b"))), Failure::new("ab"));
        assert_eq!(decode("nonsense"), Failure::new(""));
    }
}
