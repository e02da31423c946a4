//! How much memory the parts of a message occupy, so that a message stays within a bound.

use std::mem::size_of;

use serde_json::Value;

use crate::message::{Entry, TimerRecord};

/// Values nested deeper than this are left out.
pub(crate) const MAX_DEPTH: usize = 64;

/// What an allocator takes for its own records, and its smallest piece.
const ALLOCATION: usize = 16;
const MIN_ALLOCATION: usize = 32;

/// A node of a `BTreeMap` has places for 11 entries, also where it holds one. Besides it has a link
/// and two short numbers.
const PLACES: usize = 11;
const NODE: usize = allocated(PLACES * (size_of::<String>() + size_of::<Value>()) + 16);

/// Nodes other than the first hold at least so many entries.
const MIN_ENTRIES: usize = 5;

/// Inner nodes are at most one to five leaves, and have links to their leaves.
const NODE_AND_SHARE: usize = NODE + NODE / 4;

/// A list that grows by doubling has up to twice the room that it needs.
const GROWTH: usize = 2;

/// What an allocation of so many bytes occupies.
const fn allocated(bytes: usize) -> usize {
    match bytes + ALLOCATION {
        ALLOCATION => 0,
        few if few < MIN_ALLOCATION => MIN_ALLOCATION,
        many => many,
    }
}

/// How many bytes a line occupies; nothing if a value in it is nested too deeply.
pub(crate) fn size_of_entry(items: &Vec<Value>) -> Option<usize> {
    let list = GROWTH * size_of::<Entry>() + allocated(items.capacity() * size_of::<Value>());
    items.iter().try_fold(list, |sum, item| Some(sum + heap(item, MAX_DEPTH)?))
}

/// How many bytes a timer occupies: while it runs in a map, then in a list.
pub(crate) fn size_of_timer(name: &String) -> usize {
    let running = GROWTH * (size_of::<u64>() + size_of::<TimerRecord>());
    running.max(GROWTH * size_of::<TimerRecord>()) + allocated(name.capacity())
}

/// How many bytes a named value occupies; nothing if it is nested too deeply.
pub(crate) fn size_of_data(name: &String, value: &Value) -> Option<usize> {
    Some(NODE_AND_SHARE / MIN_ENTRIES + allocated(name.capacity()) + heap(value, MAX_DEPTH)?)
}

/// What a value occupies beside its own place. The depth bounds the recursion.
fn heap(value: &Value, depth: usize) -> Option<usize> {
    let depth = depth.checked_sub(1)?;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(0),
        Value::String(text) => Some(allocated(text.capacity())),
        Value::Array(values) => {
            let list = allocated(values.capacity() * size_of::<Value>());
            values.iter().try_fold(list, |sum, value| Some(sum + heap(value, depth)?))
        }
        Value::Object(values) => {
            let nodes = match values.len() {
                0 => 0,
                1..=PLACES => NODE,
                many => many.div_ceil(MIN_ENTRIES) * NODE_AND_SHARE,
            };
            values.iter().try_fold(nodes, |sum, (key, value)| {
                Some(sum + allocated(key.capacity()) + heap(value, depth)?)
            })
        }
    }
}
