//! Reading JSON values as JSON::XS reads them: integers of 64 bits are exact, longer ones become strings, and a number
//! beyond `f64` becomes infinity. An error contains an excerpt of the malformed message.

use std::fmt;

use rmpv::Value;

/// How many bytes of a message an error shows before and after the malformed place.
const SHOWN: usize = 60;

/// Why a message is not valid JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    /// The offset of the malformed place, in bytes.
    at: usize,
    what: String,
    /// The message around that place.
    excerpt: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, what, excerpt } = self;
        write!(out, "it is not valid JSON at byte {at}, where {what}: {excerpt}")
    }
}

/// Reads a message from its beginning. The message's depth must have been checked.
pub(super) struct Parser<'a> {
    json: &'a [u8],
    at: usize,
    /// Whether numbers that JSON cannot express become strings, and not errors.
    tolerant: bool,
}

impl<'a> Parser<'a> {
    pub(super) fn new(json: &'a [u8]) -> Self {
        Self { json, at: 0, tolerant: false }
    }

    /// Reads a value. Infinities and NaN, as Perl prints them, and numbers beyond `f64` become strings.
    pub(super) fn tolerant_value(&mut self) -> Result<Value, Invalid> {
        let before = std::mem::replace(&mut self.tolerant, true);
        let value = self.value();
        self.tolerant = before;
        value
    }

    pub(super) fn value(&mut self) -> Result<Value, Invalid> {
        match self.peek() {
            Some(b'[') => {
                let mut values = Vec::new();
                self.items(b'[', b']', |parser| {
                    values.push(parser.value()?);
                    Ok(())
                })?;
                Ok(Value::Array(values))
            }
            Some(b'{') => {
                let mut entries = Vec::new();
                self.items(b'{', b'}', |parser| {
                    if parser.peek() != Some(b'"') {
                        return Err(parser.invalid("a key, which is a string, was expected"));
                    }
                    let key = parser.text()?;
                    parser.expect(b':')?;
                    entries.push((key.into(), parser.value()?));
                    Ok(())
                })?;
                Ok(Value::Map(entries))
            }
            Some(b'"') => self.text().map(Value::from),
            _ => self.word(),
        }
    }

    /// Skips blanks; returns the next byte.
    pub(super) fn peek(&mut self) -> Option<u8> {
        let rest = self.json.get(self.at..).unwrap_or_default();
        self.at += rest.iter().take_while(|&&byte| super::is_blank(byte)).count();
        self.json.get(self.at).copied()
    }

    /// Skips blanks and `byte`. Another byte is an error.
    pub(super) fn expect(&mut self, byte: u8) -> Result<(), Invalid> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(self.invalid(format!("`{}` was expected", char::from(byte))))
    }

    pub(super) fn end(&mut self) -> Result<(), Invalid> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.invalid("nothing more was expected")),
        }
    }

    /// Reads items between brackets, separated by commas.
    fn items(
        &mut self,
        open: u8,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        self.expect(open)?;
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(());
        }
        loop {
            item(self)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(byte) if byte == close => {
                    self.at += 1;
                    return Ok(());
                }
                _ => {
                    let expected = format!("`,` or `{}` was expected", char::from(close));
                    return Err(self.invalid(expected));
                }
            }
        }
    }

    /// Reads a string. The next byte is its first quote.
    fn text(&mut self) -> Result<String, Invalid> {
        let start = self.at;
        let rest = self.json.get(start + 1..).unwrap_or_default();
        let mut is_escaped = false;
        let length = rest.iter().position(|&byte| {
            let is_end = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            is_end
        });
        let Some(length) = length else {
            return Err(self.invalid("a string has no end"));
        };
        let inside = &rest[..length];
        self.at = start + 1 + length + 1;
        let text = std::str::from_utf8(inside).map_err(|error| {
            self.invalid_at(start + 1 + error.valid_up_to(), "a string is not UTF-8")
        })?;
        if let Some(place) = inside.iter().position(|&byte| byte < b' ') {
            return Err(self.invalid_at(start + 1 + place, "a control character is not escaped"));
        }
        if !text.contains('\\') {
            return Ok(text.to_owned());
        }
        serde_json::from_slice(&self.json[start..self.at]).map_err(|_| {
            self.invalid_at(start, "a string has an unknown escape or half of a surrogate pair")
        })
    }

    /// Reads a number, `null`, `true` or `false`.
    fn word(&mut self) -> Result<Value, Invalid> {
        let rest = self.json.get(self.at..).unwrap_or_default();
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._#".contains(byte);
        let length = rest.iter().take_while(|byte| is_part(byte)).count();
        // The bytes are ASCII.
        let word = std::str::from_utf8(&rest[..length]).unwrap_or_default();
        let value = match word {
            "null" => Value::Nil,
            "true" => true.into(),
            "false" => false.into(),
            "" => return Err(self.invalid("a value was expected")),
            word if is_number(word) => number(word, self.tolerant),
            word if is_not_finite(word) && self.tolerant => word.into(),
            word if is_not_finite(word) => {
                let shown: String = word.chars().take(SHOWN).collect();
                return Err(self.invalid(format!("`{shown}` is no number of JSON")));
            }
            word => {
                let shown: String = word.chars().take(SHOWN).collect();
                return Err(self.invalid(format!("`{shown}` is no value of JSON")));
            }
        };
        self.at += length;
        Ok(value)
    }

    fn invalid(&self, what: impl Into<String>) -> Invalid {
        self.invalid_at(self.at, what)
    }

    fn invalid_at(&self, at: usize, what: impl Into<String>) -> Invalid {
        let (first, end) = (at.saturating_sub(SHOWN), self.json.len().min(at + SHOWN));
        let shown = log_defer::printable_bytes(self.json.get(first..end).unwrap_or_default());
        let before = if first > 0 { "…" } else { "" };
        let after = if end < self.json.len() { "…" } else { "" };
        Invalid { at, what: what.into(), excerpt: format!("{before}{shown}{after}") }
    }
}

/// Whether a word is a number of JSON's grammar.
fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let word = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = match word.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (word, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let exponent = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(digits)
}

/// Whether a word is an infinity or NaN, as Perl or another language prints it.
fn is_not_finite(word: &str) -> bool {
    let word = word.trim_start_matches(['+', '-']).to_ascii_lowercase();
    ["inf", "infinity", "nan", "nanq", "1.#inf", "1.#ind", "1.#qnan"].contains(&word.as_str())
}

/// The value of a number of JSON's grammar.
fn number(word: &str, tolerant: bool) -> Value {
    if !word.contains(['.', 'e', 'E']) {
        return match (word, word.parse::<u64>(), word.parse::<i64>()) {
            // An integer would lose the sign.
            ("-0", ..) => Value::F64(-0.0),
            (_, Ok(number), _) => number.into(),
            (_, _, Ok(number)) => number.into(),
            _ => word.into(),
        };
    }
    match word.parse::<f64>() {
        Ok(number) if number.is_finite() || !tolerant => number.into(),
        _ => word.into(),
    }
}

/// Reads one value and nothing more.
#[cfg(test)]
pub(super) fn read(json: &[u8]) -> Result<Value, Invalid> {
    let mut parser = Parser::new(json);
    let value = parser.value()?;
    parser.end()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            any::<f64>().prop_filter("finite", |float| float.is_finite()).prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 60, 6, |inside| {
            prop_oneof![
                prop::collection::vec(inside.clone(), 0..6).prop_map(Into::into),
                prop::collection::hash_map(any::<String>(), inside, 0..6)
                    .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_read_as_another_parser_reads_it(value in json(), pretty in any::<bool>()) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => value.to_string(),
            };
            let read = rmpv::ext::from_value::<serde_json::Value>(read(text.as_bytes()).unwrap());
            prop_assert_eq!(read.unwrap(), value);
        }

        #[test]
        fn the_same_texts_are_refused_as_by_another_parser(
            text in "[\\[\\]{},:\"\\\\0-9eE.+\\-a-fltrunsi é\u{1}]{0,20}",
        ) {
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            let is_too_large = theirs
                .as_ref()
                .is_err_and(|error| error.to_string().starts_with("number out of range"));
            if !is_too_large {
                prop_assert_eq!(read(text.as_bytes()).is_ok(), theirs.is_ok(), "{}", text);
            }
        }

        #[test]
        fn an_error_shows_a_bounded_excerpt(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            if let Err(error) = read(&bytes) {
                prop_assert!(error.at <= bytes.len());
                // A byte takes at most four columns.
                prop_assert!(error.to_string().chars().count() < 9 * SHOWN + 200);
            }
        }
    }

    #[test]
    fn numbers_beyond_a_float_are_infinity() {
        for (text, number) in [
            ("1.79769313486232e+308", f64::INFINITY),
            ("-1e999", f64::NEG_INFINITY),
            ("1.7976931348623157e308", f64::MAX),
            ("5e-400", 0.0),
            ("-0", -0.0),
        ] {
            let Value::F64(read) = read(text.as_bytes()).unwrap() else { panic!("{text}") };
            assert_eq!(read.to_bits(), number.to_bits(), "{text}");
        }
        let tolerant = |text: &str| Parser::new(text.as_bytes()).tolerant_value().unwrap();
        let expected = ["1e999", "nan", "-inf", "NaN", "Infinity"].map(Value::from);
        assert_eq!(
            tolerant("[1e999,nan,-inf,NaN,Infinity,1.5]"),
            Value::Array([&expected[..], &[1.5.into()]].concat())
        );
    }

    #[test]
    fn an_error_names_the_fault_and_its_place() {
        let said = |text: &[u8]| read(text).unwrap_err().to_string();
        assert_eq!(
            said(b"[1,nan]"),
            "it is not valid JSON at byte 3, where `nan` is no number of JSON: [1,nan]"
        );
        for (text, what) in [
            (&b"[-inf]"[..], "byte 1, where `-inf` is no number"),
            (b"[Inf]", "`Inf` is no number"),
            (b"[undef]", "`undef` is no value"),
            (b"[01]", "`01` is no value"),
            (b"[1.]", "`1.` is no value"),
            (b"[,1]", "byte 1, where a value was expected"),
            (b"[1 2]", "`,` or `]` was expected"),
            (b"[1,]", "a value was expected"),
            (b"{1:2}", "a key, which is a string, was expected"),
            (b"{\"a\" 2}", "`:` was expected"),
            (b"[\"\xe9\"]", "byte 2, where a string is not UTF-8: [\"\\xe9\"]"),
            (b"[\"\x7f\tb\"]", "byte 3, where a control character is not escaped"),
            (br#"["\ud83d"]"#, "half of a surrogate pair"),
            (b"[1] 2", "nothing more was expected"),
        ] {
            assert!(said(text).contains(what), "{}", said(text));
        }
        let long = format!("[\"{}\",nan,\"{}\"]", "x".repeat(1000), "\u{1b}[31m".repeat(1000));
        let said = said(long.as_bytes());
        assert!(said.len() < 400 && said.contains("…xxx") && said.contains("`nan`"), "{said}");
        assert!(!said.contains('\u{1b}'));
    }
}
