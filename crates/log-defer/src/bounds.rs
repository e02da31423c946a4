//! Estimates of the memory that the parts of a message occupy.

use std::mem::size_of;

use serde_json::Value;

use crate::message::{Entry, TimerRecord};

/// The greatest depth of a value. Deeper values are omitted.
pub(crate) const MAX_DEPTH: usize = 64;

/// The bytes that an allocator adds to an allocation, and the size of its smallest block.
const ALLOCATION: usize = 16;
const MIN_ALLOCATION: usize = 32;

/// A node of a `BTreeMap` has room for 11 entries, even if it holds one. It also has a pointer and two short integers.
const PLACES: usize = 11;
const NODE: usize = allocated(PLACES * (size_of::<String>() + size_of::<Value>()) + 16);

/// The fewest entries of a node, if a map has several nodes.
const MIN_ENTRIES: usize = 5;

/// A node with its share of inner nodes, of which there is at most one for five leaves.
const NODE_AND_SHARE: usize = NODE + NODE / 4;

/// The capacity of a list that grows by doubling, relative to its length.
const GROWTH: usize = 2;

/// The memory that an allocation of this many bytes occupies.
const fn allocated(bytes: usize) -> usize {
    match bytes + ALLOCATION {
        ALLOCATION => 0,
        few if few < MIN_ALLOCATION => MIN_ALLOCATION,
        many => many,
    }
}

/// How many bytes a line occupies; `None` if a value in it is nested too deeply.
pub(crate) fn size_of_entry(items: &Vec<Value>) -> Option<usize> {
    let list = GROWTH * size_of::<Entry>() + allocated(items.capacity() * size_of::<Value>());
    items.iter().try_fold(list, |sum, item| Some(sum + heap(item, MAX_DEPTH)?))
}

/// How many bytes a timer occupies, in the map of timers or in the finished list, whichever is more.
pub(crate) fn size_of_timer(name: &String) -> usize {
    let running = GROWTH * (size_of::<u64>() + size_of::<TimerRecord>());
    running.max(GROWTH * size_of::<TimerRecord>()) + allocated(name.capacity())
}

/// How many bytes a named value occupies; `None` if it is nested too deeply.
pub(crate) fn size_of_data(name: &String, value: &Value) -> Option<usize> {
    Some(NODE_AND_SHARE / MIN_ENTRIES + allocated(name.capacity()) + heap(value, MAX_DEPTH)?)
}

/// The heap memory of a value. `depth` bounds the recursion.
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
