//! The calls of a worker by method: a table in its slot, to which the worker adds, and which the server reads.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use super::layout::{COUNTED_METHODS, ENTRY, ENTRY_NAME, MAX_COUNT, METHOD_WORDS};
use crate::histogram::Histogram;
use crate::time_limit::nanoseconds;

/// An entry: 1 if it is in use, failed calls, the sum of times in nanoseconds, the name, and how many calls were in each
/// range of time.
const USED: usize = 0;
const ERRORS: usize = 1;
const TIME: usize = 2;
const NAME: usize = ENTRY_NAME;
const COUNTS: usize = NAME + METHOD_WORDS;

/// The name under which calls of methods that do not exist are counted. Otherwise clients could fill the table with names.
pub(crate) const UNKNOWN_METHOD: &str = "(unknown)";

/// The same as text in words.
pub(super) static UNKNOWN_METHOD_WORDS: [AtomicU64; 2] = [
    AtomicU64::new(u64::from_ne_bytes(*b"(unknown")),
    AtomicU64::new(u64::from_ne_bytes(*b")\0\0\0\0\0\0\0")),
];

/// The calls of one method, as a worker has counted them.
#[derive(Debug, PartialEq)]
pub(crate) struct CountedCalls {
    /// The first 64 bytes of its name. `None` for all methods for which the table has no room.
    pub(crate) method: Option<String>,
    pub(crate) errors: u64,
    pub(crate) times: Histogram,
}

/// Empties the table. No worker may use it yet.
pub(super) fn clear(table: &[AtomicU64]) {
    table.iter().for_each(|word| word.store(0, Relaxed));
}

/// Counts a call of the method with this name, which is text that ends with a zero or fills the words. Only one thread
/// counts.
#[taskfork_macros::startup_code]
pub(super) fn count(table: &[AtomicU64], name: &[AtomicU64], time: Duration, has_failed: bool) {
    let Some(entry) = entry_of(table, name) else { return };
    let add = |word: &AtomicU64, more: u64| {
        word.store(word.load(Relaxed).wrapping_add(more), Relaxed);
    };
    add(&entry[COUNTS + Histogram::range_of(time)], 1);
    add(&entry[TIME], nanoseconds(time));
    if has_failed {
        add(&entry[ERRORS], 1);
    }
}

/// The entry of a method. A new one is made if there is none.
#[taskfork_macros::startup_code]
fn entry_of<'a>(table: &'a [AtomicU64], name: &[AtomicU64]) -> Option<&'a [AtomicU64]> {
    let mut entries = table.chunks_exact(ENTRY);
    for entry in entries.by_ref().take(COUNTED_METHODS) {
        if entry[USED].load(Relaxed) == 0 {
            copy_text(name, &entry[NAME..COUNTS]);
            // The server reads the name of an entry that is in use.
            entry[USED].store(1, SeqCst);
            return Some(entry);
        }
        if is_same_text(name, &entry[NAME..COUNTS]) {
            return Some(entry);
        }
    }
    let others = entries.next()?;
    others[USED].store(1, Relaxed);
    Some(others)
}

/// What stands in the table. A worker can write anything there: its counts are bounded, and concern only its own methods.
pub(super) fn read(
    table: &[AtomicU64],
    text: impl Fn(&[AtomicU64]) -> String,
) -> Vec<CountedCalls> {
    let entries = table.chunks_exact(ENTRY).enumerate();
    let used = entries.filter(|(_, entry)| entry[USED].load(SeqCst) != 0);
    let calls = used.map(|(place, entry)| {
        let bounded = |word: &AtomicU64| word.load(Relaxed).min(MAX_COUNT);
        let mut times = Histogram::default();
        let seconds = Duration::from_nanos(entry[TIME].load(Relaxed)).as_secs_f64();
        times.add_counts(seconds, entry[COUNTS..].iter().map(bounded).enumerate());
        CountedCalls {
            method: (place < COUNTED_METHODS).then(|| text(&entry[NAME..COUNTS])),
            errors: bounded(&entry[ERRORS]),
            times,
        }
    });
    calls.collect()
}

/// Whether the last byte of a text's word is its zero, or one before is. What stands behind it means nothing.
#[taskfork_macros::startup_code]
fn is_last(word: u64) -> bool {
    word.to_ne_bytes().contains(&0)
}

#[taskfork_macros::startup_code]
fn is_same_text(one: &[AtomicU64], other: &[AtomicU64]) -> bool {
    for (one, other) in one.iter().zip(other) {
        let word = one.load(Relaxed);
        if word != other.load(Relaxed) {
            return false;
        }
        if is_last(word) {
            return true;
        }
    }
    true
}

#[taskfork_macros::startup_code]
fn copy_text(from: &[AtomicU64], to: &[AtomicU64]) {
    for (from, to) in from.iter().zip(to) {
        let word = from.load(Relaxed);
        to.store(word, Relaxed);
        if is_last(word) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::TABLE_WORDS;
    use super::*;

    fn text(words: &[AtomicU64]) -> String {
        let bytes: Vec<u8> =
            words.iter().flat_map(|word| word.load(SeqCst).to_ne_bytes()).collect();
        String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap()).into_owned()
    }

    fn name(text: &str) -> Vec<AtomicU64> {
        // What stands behind the end of an earlier name.
        let mut bytes = [b'x'; METHOD_WORDS * 8];
        let cut = &text.as_bytes()[..text.len().min(bytes.len())];
        bytes[..cut.len()].copy_from_slice(cut);
        let end = (cut.len() / 8 + 1) * 8;
        bytes.iter_mut().take(end).skip(cut.len()).for_each(|byte| *byte = 0);
        let words = bytes.as_chunks::<8>().0;
        words.iter().map(|word| AtomicU64::new(u64::from_ne_bytes(*word))).collect()
    }

    #[test]
    fn calls_are_counted_by_method_and_none_is_lost() {
        let table: Vec<AtomicU64> = (0..TABLE_WORDS).map(|_| AtomicU64::new(7)).collect();
        clear(&table);
        assert_eq!(read(&table, text), []);
        let long = "m".repeat(100);
        let methods = ["add", "adder", "", "eight by", &long, "5", "6", "7", "8", "9"];
        for (round, method) in methods.iter().chain(&methods).enumerate() {
            count(&table, &name(method), Duration::from_millis(3), round == 0);
        }
        let counted = read(&table, text);
        let shown: Vec<_> =
            counted.iter().map(|it| (it.method.as_deref(), it.times.count(), it.errors)).collect();
        let cut = &long[..64];
        let expected = [
            Some("add"),
            Some("adder"),
            Some(""),
            Some("eight by"),
            Some(cut),
            Some("5"),
            Some("6"),
            Some("7"),
        ];
        let mut expected: Vec<_> = expected.into_iter().map(|method| (method, 2, 0)).collect();
        expected[0].2 = 1;
        expected.push((None, 4, 0));
        assert_eq!(shown, expected);
        assert!((counted[0].times.seconds - 0.006).abs() < 1e-9);
    }

    #[test]
    fn methods_that_do_not_exist_have_one_entry() {
        let table: Vec<AtomicU64> = (0..TABLE_WORDS).map(|_| AtomicU64::new(7)).collect();
        clear(&table);
        for _ in 0..3 {
            count(&table, &UNKNOWN_METHOD_WORDS, Duration::from_millis(3), true);
        }
        count(&table, &name(UNKNOWN_METHOD), Duration::from_millis(3), true);
        let counted = read(&table, text);
        let shown: Vec<_> = counted.iter().map(|it| (it.method.as_deref(), it.errors)).collect();
        assert_eq!(shown, [(Some(UNKNOWN_METHOD), 4)]);
    }

    #[test]
    fn whatever_a_worker_writes_is_bounded() {
        let table: Vec<AtomicU64> = (0..TABLE_WORDS).map(|_| AtomicU64::new(u64::MAX)).collect();
        let counted = read(&table, text);
        assert_eq!(counted.len(), COUNTED_METHODS + 1);
        assert!(
            counted.iter().all(|it| it.errors <= MAX_COUNT && it.times.count() <= 24 * MAX_COUNT)
        );
    }
}
