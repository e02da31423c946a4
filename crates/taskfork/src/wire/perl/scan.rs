//! Where one JSON array ends and the next begins. Nothing is decoded here.

use std::ops::Range;

use super::{FIRST, is_blank};
use crate::wire::WireError;

/// Looks at each byte of a stream once, however it is cut.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// How many bytes have been looked at since the last message.
    seen: usize,
    /// Where the message begins, once it has.
    start: Option<usize>,
    depth: usize,
    place: Place,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Outside,
    Text,
    /// Behind a backslash in a text.
    Escaped,
}

impl Scanner {
    /// Where the first message in `received` lies, once it is there in full. `received` is what came
    /// since the message before, as it was at the last call and maybe more.
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

    /// Passes blanks in front of the next message: gives how many there were, if it has not begun.
    pub(crate) fn pass_blanks(&mut self) -> usize {
        match self.start {
            Some(_) => 0,
            None => std::mem::take(&mut self.seen),
        }
    }

    fn step(&mut self, byte: u8) {
        self.place = match (self.place, byte) {
            (Place::Outside, b'"') => Place::Text,
            (Place::Outside, b'[' | b'{') => {
                self.depth += 1;
                Place::Outside
            }
            (Place::Outside, b']' | b'}') => {
                self.depth -= 1;
                Place::Outside
            }
            (Place::Text, b'"') => Place::Outside,
            (Place::Text, b'\\') => Place::Escaped,
            (Place::Escaped, _) => Place::Text,
            (place, _) => place,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_come_out_whole_however_the_stream_is_cut(
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
            prop_assert_eq!(scanner.pass_blanks(), 0);
            prop_assert!(inbox.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Scanner::default().find(&bytes, 100);
        }
    }

    #[test]
    fn too_long_and_no_array_at_all() {
        let find = |text: &str| Scanner::default().find(text.as_bytes(), 2000);
        assert_eq!(find("  [1]["), Ok(Some(2..5)));
        let mut scanner = Scanner::default();
        assert_eq!((scanner.find(b" \n", 9), scanner.pass_blanks()), (Ok(None), 2));
        assert_eq!((scanner.find(b"[", 9), scanner.pass_blanks()), (Ok(None), 0));
        assert!(matches!(find("{}"), Err(WireError::Preamble { .. })));
        assert!(matches!(
            find(&format!("[\"{}", "x".repeat(3000))),
            Err(WireError::TooLarge { .. })
        ));
        // How deep it is nested is looked at once it is there in full, so that it can be answered.
        assert_eq!(find(&"[".repeat(1500)), Ok(None));
    }
}
