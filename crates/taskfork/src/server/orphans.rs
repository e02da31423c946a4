//! Orphans: processes that have lost their parents and become children of the server. Workers and
//! server are subreapers. A descendant of a worker that has left its process group becomes a child
//! of that worker, and of the server once the worker is dead. The server kills it.
//!
//! The server may also get processes that do not come from its workers, as process 1 of a container
//! or from children that the program had before. It only reaps these. It knows its workers' processes
//! by a mark, which a hostile process can remove. Where no others can come, it kills all.

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid,
};

use super::delayed_check::DelayedCheck;
use super::guardian::{Mark, MarkCheck};
use crate::sys::KernelFile;

/// How soon killed processes, and processes with an unreadable mark, are checked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// How soon the children are checked after the death of a worker. The worker's client gets another one
/// meanwhile.
const CHECK_DELAY: Duration = Duration::from_millis(1);

/// After this many failed reads of its mark, a process does not count as a worker's.
const MAX_MARK_READS: u32 = 200;

/// The children of the server that are not workers.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// The list of this process's children.
    children: KernelFile,
    /// Children that the server does not reap here: the children of the program from before the server
    /// started, the guardian, and successors.
    excluded: HashSet<Pid>,
    /// Helper processes, which are reaped and never killed.
    helpers: HashSet<Pid>,
    /// The number of failed reads of each other process's mark. `MAX_MARK_READS` stands for a
    /// process that is not a worker's.
    mark_reads: HashMap<Pid, u32>,
    /// The next check of all children, as some of them may not have been reaped yet. The kernel takes
    /// 0.4 µs for each child to list them.
    check: DelayedCheck,
    /// No other process than a descendant of a worker can become a child of this one. Then a hostile
    /// process cannot stay by removing its mark.
    all_are_workers: bool,
}

impl Orphans {
    pub(crate) fn new() -> Self {
        become_subreaper();
        let children = KernelFile::open("/proc/thread-self/children");
        let excluded: HashSet<_> = pids(&children).into_iter().collect();
        // The first process of a container gets the orphans of all others.
        let is_first = getpid() == Pid::INIT;
        Self {
            all_are_workers: excluded.is_empty() && !is_first,
            children,
            excluded,
            helpers: HashSet::new(),
            mark_reads: HashMap::new(),
            check: DelayedCheck::default(),
        }
    }

    /// Reaps all children that `is_worker` does not know, and kills those with the mark of this
    /// server.
    pub(crate) fn reap_and_kill(&mut self, mark: &Mark, is_worker: impl Fn(Pid) -> bool) {
        let started = Instant::now();
        self.helpers.retain(|&pid| matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)));
        let mut is_pending = !self.helpers.is_empty();
        for pid in pids(&self.children) {
            if self.excluded.contains(&pid) || is_worker(pid) || self.helpers.contains(&pid) {
                continue;
            }
            // The number of a child cannot be reused before it is reaped.
            if !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
                self.mark_reads.remove(&pid);
                // Its children became children of this process when it ended, which may have been after
                // the list was read. No other event reports them: its SIGCHLD finds nothing to reap.
                is_pending = true;
                continue;
            }
            let mark_reads = self.mark_reads.entry(pid).or_default();
            if *mark_reads >= MAX_MARK_READS {
                continue;
            }
            let check = if self.all_are_workers { MarkCheck::Yes } else { mark.check(pid) };
            match check {
                MarkCheck::Yes => {
                    let _ = kill_process(pid, Signal::KILL);
                    // It may take a moment to die. Then its own children become children of this
                    // process.
                    is_pending = true;
                }
                MarkCheck::No => *mark_reads = MAX_MARK_READS,
                MarkCheck::Unknown => {
                    *mark_reads += 1;
                    is_pending |= *mark_reads < MAX_MARK_READS;
                }
            }
        }
        self.check.finish(started);
        if is_pending {
            self.check.order(RETRY_INTERVAL);
        }
    }

    /// A child that is no worker has ended.
    pub(crate) fn handle_exit(&mut self) {
        self.check.order(Duration::ZERO);
    }

    /// A worker has died, and its children may have become children of this process.
    pub(crate) fn handle_worker_exit(&mut self) {
        self.check.order(CHECK_DELAY);
    }

    /// A fork of a worker has failed. In rare cases there is a new process that the server does not know.
    pub(crate) fn handle_failed_fork(&mut self) {
        self.check.order(CHECK_DELAY);
    }

    /// Adds a helper process.
    pub(crate) fn add_helper(&mut self, pid: Pid) {
        self.helpers.insert(pid);
        self.check.order(RETRY_INTERVAL);
    }

    /// The number of helper processes.
    pub(crate) fn helpers(&self) -> usize {
        self.helpers.len()
    }

    /// Leaves a child alone: it is neither reaped nor killed.
    pub(crate) fn exclude(&mut self, pid: Pid) {
        self.excluded.insert(pid);
    }

    /// Leaves a child alone that has descendants which are not a worker's.
    pub(crate) fn exclude_server(&mut self, pid: Pid) {
        self.all_are_workers = false;
        self.exclude(pid);
    }

    /// Kills an excluded child, and reaps it later.
    pub(crate) fn kill_excluded(&mut self, pid: Pid) {
        self.excluded.remove(&pid);
        // The number of a child cannot be reused before it is reaped.
        let _ = kill_process(pid, Signal::KILL);
        self.check.order(RETRY_INTERVAL);
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.children.as_fd()
    }

    /// Whether some processes may have to be reaped.
    pub(crate) fn are_pending(&self) -> bool {
        self.check.is_ordered()
    }

    /// When all children are checked next.
    pub(crate) fn check(&self) -> &DelayedCheck {
        &self.check
    }
}

/// Makes orphaned descendants children of this process. A fork does not inherit this.
#[taskfork_macros::startup_code]
pub(crate) fn become_subreaper() {
    // Every kernel with pidfds supports this.
    let _ = set_child_subreaper(Some(getpid()));
}

fn pids(children: &KernelFile) -> Vec<Pid> {
    let list = children.read();
    let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.filter_map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    #[test]
    fn a_process_that_ends_after_the_list_was_read_is_followed_by_another_check() {
        let pid = Pid::from_child(&Command::new("sleep").arg("1000").spawn().unwrap());
        let mut orphans = Orphans {
            children: KernelFile::open("/proc/thread-self/children"),
            excluded: HashSet::new(),
            helpers: HashSet::new(),
            mark_reads: HashMap::new(),
            check: DelayedCheck::default(),
            all_are_workers: false,
        };
        let end = |listed| {
            if listed == pid {
                kill_process(pid, Signal::KILL).unwrap();
                waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
            }
            false
        };
        orphans.reap_and_kill(&Mark::without_mapping("TASKFORK_TEST=1"), end);
        assert!(orphans.are_pending());
    }
}
