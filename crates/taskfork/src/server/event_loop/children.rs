//! The workers of a server, by number and by process id.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::BorrowedFd;

use rustix::process::Pid;

use crate::server::child::Child;

#[derive(Debug, Default)]
pub(super) struct Children {
    /// Numbers are never reused.
    by_number: BTreeMap<u64, Child>,
    /// The kernel can reuse a process id only after the worker has been reaped, and removed here.
    numbers: HashMap<Pid, u64>,
    /// The workers of which the server has a descriptor with a low number.
    with_low_descriptors: BTreeSet<u64>,
}

impl Children {
    pub(super) fn insert(&mut self, child: Child) {
        self.numbers.insert(child.pid, child.number);
        self.by_number.insert(child.number, child);
    }

    /// Notes whether the server has a low descriptor of this worker.
    pub(super) fn note_low(&mut self, number: u64, is_low: impl Fn(BorrowedFd<'_>) -> bool) {
        let child = self.by_number.get(&number);
        match child.is_some_and(|child| child.descriptors().any(is_low)) {
            true => self.with_low_descriptors.insert(number),
            false => self.with_low_descriptors.remove(&number),
        };
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Child> {
        let child = self.by_number.remove(&number)?;
        self.numbers.remove(&child.pid);
        self.with_low_descriptors.remove(&number);
        Some(child)
    }

    pub(super) fn get(&self, number: u64) -> Option<&Child> {
        self.by_number.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Child> {
        self.by_number.get_mut(&number)
    }

    /// The number of the worker with this process id.
    pub(super) fn number_of(&self, pid: Pid) -> Option<u64> {
        self.numbers.get(&pid).copied()
    }

    /// All workers, in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Child> {
        self.by_number.values()
    }

    /// The workers of which the server has a descriptor with a low number.
    pub(super) fn with_low_descriptors(&self) -> impl Iterator<Item = &Child> {
        self.with_low_descriptors.iter().filter_map(|number| self.by_number.get(number))
    }

    /// All workers, in the order of their numbers.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Child> {
        self.by_number.values_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Closes this process's copies of the descriptors, in a process that was forked from the server.
    pub(super) fn close_copies(&mut self) {
        self.by_number.clear();
    }
}
