//! Processes that lose their parents and so become children of the server. Workers and server are subreapers: a
//! descendant of a worker that has pending its process group becomes a child of its worker, and of the server once the worker
//! is dead. The server kills it. As process 1 of a container, or by a child that the program had before, the server
//! also gets processes that have nothing to do with its workers. These it only reaps.

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};

use super::guardian::{Mark, MarkCheck};
use crate::sys::KernelFile;

/// How soon those that have been killed, or whose mark could not be read, are looked at again.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// A process whose mark could not be read so many times is no worker's.
const MAX_MARK_READS: u32 = 200;

/// The server's children that are no workers.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// All children of this process's only thread.
    children: KernelFile,
    /// Those that the program had before it became a server.
    excluded: HashSet<Pid>,
    /// Processes that the server has made for itself, and that end by themselves.
    helpers: HashSet<Pid>,
    /// Others, and how many times their mark could not be read; `MAX_MARK_READS` for those that are no worker's.
    mark_reads: HashMap<Pid, u32>,
    /// Whether some have been seen that may not be reaped yet.
    pending: bool,
}

impl Orphans {
    pub(crate) fn new() -> Self {
        become_subreaper();
        let children = KernelFile::open("/proc/thread-self/children");
        let excluded = pids(&children).into_iter().collect();
        Self {
            children,
            excluded,
            helpers: HashSet::new(),
            mark_reads: HashMap::new(),
            pending: false,
        }
    }

    /// Reaps all children that `is_worker` does not know, and kills those that have the mark of this server.
    pub(crate) fn reap_and_kill(&mut self, mark: &Mark, is_worker: impl Fn(Pid) -> bool) {
        self.helpers.retain(|&pid| matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)));
        self.pending = !self.helpers.is_empty();
        for pid in pids(&self.children) {
            if self.excluded.contains(&pid) || is_worker(pid) || self.helpers.contains(&pid) {
                continue;
            }
            // It is this process's child, so that its number is its own until it is reaped.
            if !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
                self.mark_reads.remove(&pid);
                continue;
            }
            let mark_reads = self.mark_reads.entry(pid).or_default();
            if *mark_reads >= MAX_MARK_READS {
                continue;
            }
            match mark.check(pid) {
                MarkCheck::Yes => {
                    let _ = kill_process(pid, Signal::KILL);
                    // It may take a moment to die, and its own children come to this process then.
                    self.pending = true;
                }
                MarkCheck::No => *mark_reads = MAX_MARK_READS,
                MarkCheck::Unknown => {
                    *mark_reads += 1;
                    self.pending |= *mark_reads < MAX_MARK_READS;
                }
            }
        }
    }

    /// A process of the server's own, which is only reaped.
    pub(crate) fn add_helper(&mut self, pid: Pid) {
        self.helpers.insert(pid);
        self.pending = true;
    }

    /// How many such processes there are.
    pub(crate) fn helpers(&self) -> usize {
        self.helpers.len()
    }

    /// A process of the server's own, which goes its own way.
    pub(crate) fn exclude(&mut self, pid: Pid) {
        self.excluded.insert(pid);
    }

    /// It is to go its own way no longer: it is killed if it lives, and reaped.
    pub(crate) fn kill_excluded(&mut self, pid: Pid) {
        self.excluded.remove(&pid);
        // It has not been reaped yet, so that the number is its own.
        let _ = kill_process(pid, Signal::KILL);
        self.pending = true;
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.children.as_fd()
    }

    /// Whether to look again before long.
    pub(crate) fn are_pending(&self) -> bool {
        self.pending
    }
}

/// Has what loses its parent come to this process. It is no part of what a fork copies.
pub(crate) fn become_subreaper() {
    // Every kernel that has descriptors of processes has this.
    let _ = set_child_subreaper(Some(rustix::process::getpid()));
}

fn pids(children: &KernelFile) -> Vec<Pid> {
    let list = children.read();
    let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.filter_map(Pid::from_raw).collect()
}
