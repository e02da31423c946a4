//! Escaping text from others for a terminal, so that it cannot move the cursor, change colours or the terminal's state,
//! or reorder text.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns `text` as one line that is safe to show in a terminal.
///
/// It escapes control characters, including those of C1, and characters that change the direction of text: `\n`, `\x1b`,
/// `\u{202e}`. Tabs are unchanged. Text without such characters is not copied.
///
/// ```
/// use log_defer::printable;
///
/// assert_eq!(printable("grün\tund gut"), "grün\tund gut");
/// assert_eq!(printable("\u{1b}[31mred\n"), r"\x1b[31mred\n");
/// ```
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |letter| is_harmful(letter) || letter == '\n')
}

/// As [`printable`], but keeps newlines.
///
/// ```
/// assert_eq!(log_defer::printable_lines("one\ntwo\r\n"), "one\ntwo\\r\n");
/// ```
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, is_harmful)
}

/// As [`printable`], for bytes. Bytes that are not UTF-8 are escaped one by one.
///
/// ```
/// assert_eq!(log_defer::printable_bytes(b"caf\xc3\xa9 \xff\x07"), r"café \xff\x07");
/// ```
pub fn printable_bytes(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return printable(text);
    }
    let mut out = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        out.push_str(&printable(chunk.valid()));
        chunk.invalid().iter().for_each(|byte| put_byte(&mut out, *byte));
    }
    out.into()
}

/// Returns `json` with JSON's escapes for the characters that [`printable`] escapes. JSON itself allows C1 and characters
/// that change the direction of text. The result represents the same value.
///
/// ```
/// assert_eq!(log_defer::printable_json("\"\u{202e}\u{9b}\""), r#""\u202e\u009b""#);
/// ```
pub fn printable_json(json: &str) -> Cow<'_, str> {
    // Outside of strings the only control characters are blanks.
    let is_harmful = |letter: char| is_harmful(letter) && letter != '\r';
    if !json.contains(is_harmful) {
        return json.into();
    }
    let mut out = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        if is_harmful(letter) {
            let _ = write!(out, "\\u{:04x}", u32::from(letter));
        } else {
            out.push(letter);
        }
    }
    out.into()
}

fn escaped(text: &str, wanted: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&wanted) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match letter {
            letter if !wanted(letter) => out.push(letter),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            letter if letter.is_ascii() => put_byte(&mut out, letter as u8),
            letter => out.extend(letter.escape_unicode()),
        }
    }
    out.into()
}

fn put_byte(out: &mut String, byte: u8) {
    // Writing into a `String` cannot fail.
    let _ = write!(out, "\\x{byte:02x}");
}

/// Whether a terminal may interpret the character. Newlines and tabs are text.
fn is_harmful(letter: char) -> bool {
    match letter {
        '\n' | '\t' => false,
        // C0, DEL and C1.
        letter if letter.is_control() => true,
        // Marks, embeddings, overrides and isolates of direction; separators of lines and paragraphs.
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_safe(text: &str) -> bool {
        !text.chars().any(is_harmful)
    }

    proptest! {
        #[test]
        fn only_harmful_characters_are_escaped(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            text in "[a-zé漢\u{0}-\u{1f}\u{7f}-\u{9f}\u{200e}\u{202a}-\u{202e}\u{2066}-\u{2069}]{0,40}",
        ) {
            let shown = printable(&text);
            prop_assert!(is_safe(&shown) && !shown.contains('\n'));
            prop_assert!(is_safe(&printable_bytes(&bytes)));
            let lines = printable_lines(&text);
            prop_assert!(is_safe(&lines));
            prop_assert_eq!(lines.matches('\n').count(), text.matches('\n').count());
            // Escaped text is not escaped again.
            prop_assert_eq!(printable(&shown), &*shown);
            let json = serde_json::to_string(&text).unwrap();
            let shown = printable_json(&json);
            prop_assert!(is_safe(&shown));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }

    #[test]
    fn control_and_direction_characters_are_escaped() {
        let text = "\u{1b}[2J\u{7}\u{8}\u{7f}\u{9b}31m\r\u{202e}\u{2066}\u{2028}\u{200f}";
        assert_eq!(
            printable(text),
            r"\x1b[2J\x07\x08\x7f\u{9b}31m\r\u{202e}\u{2066}\u{2028}\u{200f}"
        );
        assert!(matches!(printable("é漢😀\t✓"), Cow::Borrowed(_)));
    }
}
