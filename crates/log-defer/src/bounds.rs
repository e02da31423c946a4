//! How much memory values take, so that a message stays within a bound.

use serde_json::Value;

/// Values nested deeper than this are left out.
pub(crate) const MAX_DEPTH: usize = 64;

/// About how many bytes a value takes in a message, or nothing if it is nested too deeply.
pub(crate) fn size(value: &Value) -> Option<usize> {
    size_below(value, MAX_DEPTH)
}

fn size_below(value: &Value, depth: usize) -> Option<usize> {
    let depth = depth.checked_sub(1)?;
    Some(match value {
        Value::Null | Value::Bool(_) => 8,
        Value::Number(_) => 16,
        Value::String(text) => 16 + text.len(),
        Value::Array(values) => {
            values.iter().try_fold(16, |sum: usize, value| Some(sum + size_below(value, depth)?))?
        }
        Value::Object(values) => values.iter().try_fold(16, |sum: usize, (key, value)| {
            Some(sum + 16 + key.len() + size_below(value, depth)?)
        })?,
    })
}

/// Of all items of a line.
pub(crate) fn size_of_all<'a>(values: impl IntoIterator<Item = &'a Value>) -> Option<usize> {
    values.into_iter().try_fold(32, |sum: usize, value| Some(sum + size(value)?))
}
