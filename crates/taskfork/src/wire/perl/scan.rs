//! Finding the ends of JSON arrays in a stream, without decoding them.

use std::ops::Range;

use super::{FIRST, is_blank};
use crate::wire::WireError;

/// Examines each byte of a stream once, however the stream is fragmented.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// How many bytes since the last message have been examined.
    seen: usize,
    /// Where the message begins; `None` before it.
    start: Option<usize>,
    depth: usize,
    context: Context,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Context {
    #[default]
    Outside,
    String,
    /// After a backslash in a string.
    Escape,
}

impl Scanner {
    /// The place of the first message in `received`; `None` while it is incomplete. `received` contains the bytes of the
    /// previous call, unless that found a message, and later ones.
    pub(crate) fn find(
        &mut self,
        received: &[u8],
        limit: usize,
    ) -> Result<Option<Range<usize>>, WireError> {
        while let Some(&byte) = received.get(self.seen) {
            self.seen += 1;
            let start = match self.start {
                Some(start) => start,
                None if is_blank(byte) => continue,
                None if byte == FIRST => *self.start.insert(self.seen - 1),
                None => {
                    let began = &received[self.seen - 1..received.len().min(self.seen + 7)];
                    let began = String::from_utf8_lossy(began).into_owned();
                    return Err(WireError::Preamble { began });
                }
            };
            if self.seen - start > limit {
                return Err(WireError::TooLarge { length: self.seen - start, limit });
            }
            self.step(byte);
            if self.depth == 0 {
                let found = start..self.seen;
                *self = Self::default();
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Forgets blanks in front of the next message; returns how many the caller may remove.
    pub(crate) fn skip_blanks(&mut self) -> usize {
        match self.start {
            Some(_) => 0,
            None => std::mem::take(&mut self.seen),
        }
    }

    fn step(&mut self, byte: u8) {
        self.context = match (self.context, byte) {
            (Context::Outside, b'"') => Context::String,
            (Context::Outside, b'[' | b'{') => {
                self.depth += 1;
                Context::Outside
            }
            (Context::Outside, b']' | b'}') => {
                self.depth -= 1;
                Context::Outside
            }
            (Context::String, b'"') => Context::Outside,
            (Context::String, b'\\') => Context::Escape,
            (Context::Escape, _) => Context::String,
            (context, _) => context,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_are_reassembled_from_any_fragments(
            texts in prop::collection::vec(any::<String>(), 1..6),
            blanks in "[ \t\r\n]{0,3}",
            cuts in prop::collection::vec(1usize..9, 1..40),
        ) {
            let messages: Vec<String> = texts
                .iter()
                .map(|text| serde_json::json!(["do", {}, text, { text.as_str(): [text] }]).to_string())
                .collect();
            let stream: String = messages.iter().flat_map(|one| [blanks.as_str(), one]).collect();
            let (mut scanner, mut inbox, mut found) = (Scanner::default(), Vec::new(), Vec::new());
            let mut cuts = cuts.iter().cycle();
            let mut rest = stream.as_bytes();
            while !rest.is_empty() {
                let (piece, left) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                (rest, inbox) = (left, [&inbox[..], piece].concat());
                while let Some(place) = scanner.find(&inbox, 1 << 20).unwrap() {
                    found.push(String::from_utf8(inbox[place.clone()].to_vec()).unwrap());
                    inbox.drain(..place.end);
                }
            }
            prop_assert_eq!(found, messages);
            prop_assert_eq!(scanner.skip_blanks(), 0);
            prop_assert!(inbox.is_empty());
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Scanner::default().find(&bytes, 100);
        }
    }

    #[test]
    fn long_messages_and_other_values_are_refused() {
        let find = |text: &str| Scanner::default().find(text.as_bytes(), 2000);
        assert_eq!(find("  [1]["), Ok(Some(2..5)));
        let mut scanner = Scanner::default();
        assert_eq!((scanner.find(b" \n", 9), scanner.skip_blanks()), (Ok(None), 2));
        assert_eq!((scanner.find(b"[", 9), scanner.skip_blanks()), (Ok(None), 0));
        assert!(matches!(find("{}"), Err(WireError::Preamble { .. })));
        assert!(matches!(
            find(&format!("[\"{}", "x".repeat(3000))),
            Err(WireError::TooLarge { .. })
        ));
        // The depth is checked when the message is complete, so that it can be answered.
        assert_eq!(find(&"[".repeat(1500)), Ok(None));
    }
}
