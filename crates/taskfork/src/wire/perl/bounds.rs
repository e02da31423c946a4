//! Limits of received messages: how deep they nest, and how many values they have.

use crate::wire::bounds::{CONTAINER_COST, MAX_DEPTH, max_elements, too_deep, too_many};

/// The array of the message itself does not count.
const LEVELS: usize = 1 + MAX_DEPTH;

/// Checks a message against the limits for `max_frame`. Malformed JSON passes: the parser refuses it.
pub(super) fn check(json: &[u8], max_frame: usize) -> Result<(), String> {
    let limit = max_elements(max_frame);
    let (mut depth, mut elements) = (0usize, 0);
    let (mut is_string, mut is_escaped) = (false, false);
    for &byte in json {
        if is_string {
            is_string = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => is_string = true,
            b'[' | b'{' => {
                depth += 1;
                elements += CONTAINER_COST;
                if depth > LEVELS {
                    return Err(too_deep());
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' => elements += 1,
            _ => {}
        }
        if elements > limit {
            return Err(too_many(max_frame));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_values_are_counted_outside_strings() {
        let nested = |levels: usize, open: &str, close: &str| {
            format!("[{}1{}]", open.repeat(levels), close.repeat(levels))
        };
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            assert_eq!(check(nested(128, open, close).as_bytes(), 1 << 20), Ok(()));
            let error = check(nested(129, open, close).as_bytes(), 1 << 20).unwrap_err();
            assert_eq!(error, "it is nested deeper than 128 levels");
        }
        let text = format!("[\"{}\\\"[[\\\\\",1]", "[,:{".repeat(100_000));
        assert_eq!(check(text.as_bytes(), 1 << 20), Ok(()));
        let list = |count: usize| format!("[{}1]", "1,".repeat(count - 1));
        assert_eq!(check(list(131_069).as_bytes(), 1 << 20), Ok(()));
        assert!(check(list(131_070).as_bytes(), 1 << 20).unwrap_err().contains("131072 elements"));
    }
}
