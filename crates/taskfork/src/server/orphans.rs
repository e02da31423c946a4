//! Processes that lose their parents and so become children of the server. Workers and server are subreapers: a
//! descendant of a worker that has left its process group becomes a child of its worker, and of the server once the worker
//! is dead. The server kills it. As process 1 of a container, or by a child that the program had before, the server
//! also gets processes that have nothing to do with its workers. These it only reaps.

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};

use super::guardian::{Mark, MarkCheck};
use crate::sys::KernelFile;

/// How soon those that have been killed, or whose mark could not be read, are looked at again.
pub(crate) const AGAIN: Duration = Duration::from_millis(5);

/// A process whose mark could not be read so many times is no worker's.
const MAX_MARK_READS: u32 = 200;

/// The server's children that are no workers.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// All children of this process's only thread.
    children: KernelFile,
    /// Those that the program had before it became a server.
    own: HashSet<Pid>,
    /// Processes that the server has made for itself, and that end by themselves.
    helpers: HashSet<Pid>,
    /// Others, and how many times their mark could not be read; `MAX_MARK_READS` for those that are no worker's.
    looks: HashMap<Pid, u32>,
    /// Whether some have been seen that may not be reaped yet.
    left: bool,
}

impl Orphans {
    pub(crate) fn adopt() -> Self {
        become_subreaper();
        let children = KernelFile::open("/proc/thread-self/children");
        let own = pids(&children).into_iter().collect();
        Self { children, own, helpers: HashSet::new(), looks: HashMap::new(), left: false }
    }

    /// Reaps all children that `is_worker` does not know, and kills those that have the mark of this server.
    pub(crate) fn end(&mut self, mark: &Mark, is_worker: impl Fn(Pid) -> bool) {
        self.helpers.retain(|&pid| matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)));
        self.left = !self.helpers.is_empty();
        for pid in pids(&self.children) {
            if self.own.contains(&pid) || is_worker(pid) || self.helpers.contains(&pid) {
                continue;
            }
            // It is this process's child, so that its number is its own until it is reaped.
            if !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
                self.looks.remove(&pid);
                continue;
            }
            let looks = self.looks.entry(pid).or_default();
            if *looks >= MAX_MARK_READS {
                continue;
            }
            match mark.look(pid) {
                MarkCheck::Yes => {
                    let _ = kill_process(pid, Signal::KILL);
                    // It may take a moment to die, and its own children come to this process then.
                    self.left = true;
                }
                MarkCheck::No => *looks = MAX_MARK_READS,
                MarkCheck::Unknown => {
                    *looks += 1;
                    self.left |= *looks < MAX_MARK_READS;
                }
            }
        }
    }

    /// A process of the server's own, which is only reaped.
    pub(crate) fn add_helper(&mut self, pid: Pid) {
        self.helpers.insert(pid);
        self.left = true;
    }

    /// How many such processes there are.
    pub(crate) fn helpers(&self) -> usize {
        self.helpers.len()
    }

    /// A process of the server's own, which goes its own way.
    pub(crate) fn exclude(&mut self, pid: Pid) {
        self.own.insert(pid);
    }

    /// It is to go its own way no longer: it is killed if it lives, and reaped.
    pub(crate) fn forget(&mut self, pid: Pid) {
        self.own.remove(&pid);
        // It has not been reaped yet, so that the number is its own.
        let _ = kill_process(pid, Signal::KILL);
        self.left = true;
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.children.as_fd()
    }

    /// Whether to look again before long.
    pub(crate) fn is_pending(&self) -> bool {
        self.left
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
