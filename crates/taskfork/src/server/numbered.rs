//! A map from worker numbers to values. Workers get ascending numbers, so it is a sorted vector: one piece of memory,
//! which can be left out of forked processes.

use crate::sys::VecPages;

/// Entries without a value are removed when they are more than the others by this number.
const KEPT_EMPTY: usize = 64;

/// A map from ascending numbers to values.
#[derive(Debug)]
pub(crate) struct Numbered<T> {
    /// In the order of the numbers. Removing a value leaves its entry, as moving all later ones takes long.
    entries: Vec<(u64, Option<T>)>,
    len: usize,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), len: 0 }
    }
}

impl<T> Numbered<T> {
    /// Adds a value, or replaces the one with this number. It is fast if no number is higher.
    pub(crate) fn insert(&mut self, number: u64, value: T) {
        match self.position(number) {
            Ok(at) => {
                let before = self.entries.get_mut(at).and_then(|(_, entry)| entry.replace(value));
                self.len += usize::from(before.is_none());
            }
            Err(at) => {
                self.entries.insert(at, (number, Some(value)));
                self.len += 1;
            }
        }
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let at = self.position(number).ok()?;
        let value = self.entries.get_mut(at)?.1.take()?;
        self.len -= 1;
        if self.entries.len() > 2 * self.len + KEPT_EMPTY {
            self.entries.retain(|(_, value)| value.is_some());
        }
        Some(value)
    }

    pub(crate) fn get(&self, number: u64) -> Option<&T> {
        self.entries.get(self.position(number).ok()?)?.1.as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let at = self.position(number).ok()?;
        self.entries.get_mut(at)?.1.as_mut()
    }

    /// All values with their numbers, in the order of the numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.entries.iter().filter_map(|(number, value)| Some((*number, value.as_ref()?)))
    }

    /// All values with their numbers, in the order of the numbers.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.entries.iter_mut().filter_map(|(number, value)| Some((*number, value.as_mut()?)))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.len = 0;
    }

    /// The memory in which all values are.
    pub(crate) fn pages(&self) -> VecPages<'_> {
        VecPages::of(&self.entries)
    }

    fn position(&self, number: u64) -> Result<usize, usize> {
        match self.entries.last() {
            Some((last, _)) if *last >= number => {
                self.entries.binary_search_by_key(&number, |(number, _)| *number)
            }
            _ => Err(self.entries.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0_u64..300, 0..4), 0..900)) {
            let (mut numbered, mut model) = (Numbered::default(), BTreeMap::new());
            let mut next = 0;
            for (number, step) in steps {
                match step {
                    0 => {
                        numbered.insert(number, number + next);
                        model.insert(number, number + next);
                    }
                    1 => {
                        next += 1;
                        numbered.insert(300 + next, next);
                        model.insert(300 + next, next);
                    }
                    2 => prop_assert_eq!(numbered.remove(number), model.remove(&number)),
                    _ => {
                        let first = model.first_entry().map(|entry| *entry.key());
                        if let Some(first) = first {
                            prop_assert_eq!(numbered.remove(first), model.remove(&first));
                        }
                        if let Some(value) = numbered.get_mut(number) {
                            *value += 1;
                        }
                        model.entry(number).and_modify(|value| *value += 1);
                    }
                }
                prop_assert_eq!(numbered.get(number), model.get(&number));
                prop_assert_eq!(numbered.len(), model.len());
                prop_assert_eq!(numbered.is_empty(), model.is_empty());
                prop_assert!(numbered.entries.len() <= 2 * numbered.len() + KEPT_EMPTY);
            }
            let pairs = |(number, value): (u64, &u64)| (number, *value);
            let expected: Vec<_> = model.iter().map(|(number, value)| (*number, *value)).collect();
            prop_assert_eq!(numbered.iter().map(pairs).collect::<Vec<_>>(), expected.clone());
            let found: Vec<_> = numbered.iter_mut().map(|(number, value)| (number, *value)).collect();
            prop_assert_eq!(found, expected);
            numbered.clear();
            prop_assert_eq!((numbered.len(), numbered.iter().count()), (0, 0));
        }
    }
}
