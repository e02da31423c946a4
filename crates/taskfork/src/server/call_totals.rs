//! The calls of all workers by method.

use std::collections::{BTreeMap, BTreeSet};

use super::status::MethodStatus;
use crate::worker::scoreboard::{CountedCalls, METHOD_BYTES, UNKNOWN_METHOD};

/// The most methods with an entry of their own. Workers choose the names, and clients if a function or a program takes any.
const MAX_METHODS: usize = 100;

/// The entry of all other methods.
const OTHER: &str = "(other)";

/// The calls of workers that have ended, and the names that have an entry. A name keeps its entry, so that no count decreases.
#[derive(Debug, Default)]
pub(crate) struct CallTotals {
    calls: BTreeMap<String, MethodStatus>,
    names: BTreeSet<String>,
}

impl CallTotals {
    /// Adds the calls of a worker that has ended. `methods` are those that the server knows, if it knows them.
    pub(crate) fn add(&mut self, calls: Vec<CountedCalls>, methods: &[String]) {
        self.take_names(&calls, methods);
        add_to(&mut self.calls, calls, &self.names);
    }

    /// These calls and those of living workers.
    pub(crate) fn with(
        &mut self,
        living: Vec<Vec<CountedCalls>>,
        methods: &[String],
    ) -> BTreeMap<String, MethodStatus> {
        living.iter().for_each(|calls| self.take_names(calls, methods));
        let mut all = self.calls.clone();
        living.into_iter().for_each(|calls| add_to(&mut all, calls, &self.names));
        all
    }

    /// Gives names an entry while there is room. Known methods have theirs, even if they are called late.
    fn take_names(&mut self, calls: &[CountedCalls], methods: &[String]) {
        let known = methods.iter().take(MAX_METHODS).map(|name| shortened(name));
        for name in calls.iter().filter_map(|calls| calls.method.as_ref()) {
            if self.names.contains(name) {
                continue;
            }
            let has_room = || {
                let absent = known.clone().filter(|known| !self.names.contains(*known)).count();
                self.names.len() + absent < MAX_METHODS
            };
            let is_reserved = || name == UNKNOWN_METHOD || known.clone().any(|it| it == name);
            if is_reserved() || (self.names.len() < MAX_METHODS && has_room()) {
                self.names.insert(name.clone());
            }
        }
    }
}

fn add_to(
    all: &mut BTreeMap<String, MethodStatus>,
    calls: Vec<CountedCalls>,
    names: &BTreeSet<String>,
) {
    for CountedCalls { method, errors, times } in calls {
        let name = method.filter(|name| names.contains(name)).unwrap_or_else(|| OTHER.to_owned());
        let of_method = all.entry(name).or_default();
        of_method.errors = of_method.errors.saturating_add(errors);
        of_method.times.merge(&times);
    }
}

/// A name as workers count it.
fn shortened(name: &str) -> &str {
    &name[..name.floor_char_boundary(METHOD_BYTES)]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::histogram::Histogram;

    fn counted(method: Option<&str>) -> CountedCalls {
        let mut times = Histogram::default();
        times.add(Duration::from_secs(1));
        CountedCalls { method: method.map(str::to_owned), errors: 1, times }
    }

    #[test]
    fn the_number_of_methods_is_bounded_and_no_call_is_lost() {
        let mut totals = CallTotals::default();
        for _ in 0..2 {
            let calls = (0..200).map(|number| counted(Some(&format!("m{number:03}"))));
            totals.add(calls.collect(), &[]);
            totals.add(vec![counted(None)], &[]);
        }
        let map = totals.with(Vec::new(), &[]);
        assert_eq!(map.len(), MAX_METHODS + 1);
        assert_eq!((map["m000"].errors, map["m000"].times.count()), (2, 2));
        assert!(!map.contains_key("m100"));
        totals.add(vec![counted(Some(UNKNOWN_METHOD))], &[]);
        assert_eq!(totals.with(Vec::new(), &[])[UNKNOWN_METHOD].errors, 1);
        assert_eq!(map.values().map(|it| it.times.count()).sum::<u64>(), 402);
    }

    #[test]
    fn names_of_others_leave_room_for_the_methods_that_are_known() {
        let long = "l".repeat(100);
        let known = ["add".to_owned(), long.clone()];
        let mut totals = CallTotals::default();
        let calls = (0..200).map(|number| counted(Some(&format!("x{number:03}"))));
        totals.add(calls.collect(), &known);
        totals.add(vec![counted(Some("add")), counted(Some(&long[..METHOD_BYTES]))], &known);
        let map = totals.with(Vec::new(), &known);
        assert_eq!((map.len(), map["add"].errors), (MAX_METHODS + 1, 1));
        assert_eq!(map[&long[..METHOD_BYTES]].errors, 1);
    }

    #[test]
    fn counts_do_not_decrease_when_workers_end_in_another_order() {
        let mut totals = CallTotals::default();
        let full = (0..MAX_METHODS - 1).map(|number| counted(Some(&format!("m{number:03}"))));
        totals.add(full.collect(), &[]);
        let (first, second) = (counted(Some("first")), counted(Some("second")));
        let living = || vec![vec![counted(Some("first"))], vec![counted(Some("second"))]];
        let before = totals.with(living(), &[]);
        assert_eq!((before["first"].errors, before["(other)"].errors), (1, 1));
        // The second one ends first.
        totals.add(vec![second], &[]);
        let after = totals.with(vec![vec![first]], &[]);
        assert_eq!(after, before);
    }
}
