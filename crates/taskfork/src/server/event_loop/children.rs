//! The workers of a server, by number and by process id.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::process::Pid;
use smallvec::SmallVec;

use crate::server::child::Child;
use crate::server::numbered::Numbered;
use crate::sys::VecPages;

#[derive(Debug, Default)]
pub(super) struct Children {
    /// Numbers are never reused.
    by_number: Numbered<Child>,
    /// The kernel can reuse a process id only after the worker has been reaped, and removed here.
    numbers: HashMap<Pid, u64>,
    /// The server's descriptors of workers, as far as they have low numbers. A new worker closes them, and may not
    /// have the memory of the others.
    low_descriptors: BTreeMap<u64, SmallVec<[RawFd; 2]>>,
}

impl Children {
    pub(super) fn insert(&mut self, child: Child) {
        self.numbers.insert(child.pid, child.number);
        self.by_number.insert(child.number, child);
    }

    /// Notes whether the server has a low descriptor of this worker.
    pub(super) fn note_low(&mut self, number: u64, is_low: impl Fn(BorrowedFd<'_>) -> bool) {
        let child = self.by_number.get(number);
        let low = child.into_iter().flat_map(Child::descriptors).filter(|&it| is_low(it));
        let low: SmallVec<_> = low.map(|descriptor| descriptor.as_raw_fd()).collect();
        match low.is_empty() {
            false => self.low_descriptors.insert(number, low),
            true => self.low_descriptors.remove(&number),
        };
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Child> {
        let child = self.by_number.remove(number)?;
        self.numbers.remove(&child.pid);
        self.low_descriptors.remove(&number);
        Some(child)
    }

    pub(super) fn get(&self, number: u64) -> Option<&Child> {
        self.by_number.get(number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Child> {
        self.by_number.get_mut(number)
    }

    /// The number of the worker with this process id.
    pub(super) fn number_of(&self, pid: Pid) -> Option<u64> {
        self.numbers.get(&pid).copied()
    }

    /// All workers, in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Child> {
        self.by_number.iter().map(|(_, child)| child)
    }

    /// The server's descriptors of workers that have low numbers.
    pub(super) fn low_descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.low_descriptors.values().flatten().copied()
    }

    /// The memory of what is known about workers. [`low_descriptors`](Self::low_descriptors) does not read it.
    pub(super) fn pages(&self) -> VecPages<'_> {
        self.by_number.pages()
    }

    /// All workers, in the order of their numbers.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Child> {
        self.by_number.iter_mut().map(|(_, child)| child)
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Closes this process's copies of the descriptors, in a process that was forked from the server.
    pub(super) fn close_copies(&mut self) {
        self.by_number.clear();
    }
}
