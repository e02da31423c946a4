//! Reaping workers and other children.

use std::collections::HashSet;

use rustix::event::epoll;

use super::EventLoop;
use crate::clock::now;
use crate::server::child::Child;
use crate::server::scratch::ScratchFolder;
use crate::server::worker_exit::{WorkerExit, WorkerRules};
use crate::server::worker_groups::WorkerGroups;
use crate::sys;

/// A directory is removed slowly only while there are fewer helpers than this. So workers that leave
/// many files cannot occupy all helpers.
const MAX_REMOVALS: usize = 2;

impl EventLoop {
    /// Reaps all workers that have exited, and other children. SIGCHLD says only that some child has
    /// exited.
    pub(super) fn reap_workers(&mut self) {
        while let Some(first) = sys::exited_child() {
            let is_first = |child: &&Child| child.pid == first;
            // The kernel may report another child first, and again until that one is reaped.
            let any = || self.children.values().find(|child| child.has_exited());
            let exited = self.children.values().find(is_first).or_else(any);
            let Some(number) = exited.map(|child| child.number) else {
                self.reap_orphans();
                return;
            };
            self.reap_worker(number);
        }
    }

    /// Reaps a worker that has exited or was killed, and sends its client a death notice.
    pub(super) fn reap_worker(&mut self, number: u64) {
        let Some(mut child) = self.children.remove(&number) else { return };
        // Closing the descriptors would not end the watches: a worker that has just been forked holds
        // copies for a moment. An error means only that a descriptor is not watched.
        if let Some(connection) = child.connection() {
            let _ = epoll::delete(&self.process.epoll, connection);
        }
        if let Some(stderr) = child.stderr() {
            let _ = epoll::delete(&self.process.epoll, stderr);
        }
        let last = child.observe().view;
        let known = self.supervisor.handle_exit(number, last, now());
        // The number of the process group may be reused after the worker has been reaped.
        child.kill_group();
        if !self
            .descendants
            .guardian
            .as_mut()
            .is_none_or(|guardian| guardian.record_reap(child.pid))
        {
            self.replace_guardian();
        }
        let WorkerExit { slot, mut notification, mut stack, cause, spare_failure } = child.reap(
            &known,
            &mut self.logs.stderr,
            &mut self.logs.limits.deaths,
            &WorkerRules {
                limits: &self.options.limits,
                oom_kills: &self.descendants.oom_kills,
                is_sandboxed: self.template.sandbox.is_some(),
                is_memory_exceeded: self
                    .surroundings
                    .groups
                    .as_ref()
                    .is_some_and(|groups| groups.is_memory_exceeded(number)),
            },
        );
        // The client's user is asked for only if that decides anything: it is a system call.
        let has_details = stack.is_some() || notification.has_details();
        let shares_details = self.options.access.details;
        if has_details
            && !shares_details
            && !self.connections.rules.is_own(&notification.connection)
        {
            notification.omit_details();
            stack = None;
        }
        self.scoreboard.quarantine(slot);
        if let Some(groups) = &mut self.surroundings.groups {
            groups.remove(number);
        }
        self.remove_scratch(number);
        *self.status.counters.deaths.entry(cause).or_default() += 1;
        match stack {
            Some(stack) if notification.has_notice() => self.send_with_stack(notification, stack),
            _ => notification.send(),
        }
        if let Some(reason) = spare_failure.filter(|_| self.supervisor.is_serving()) {
            self.record_spare_failure(&reason, known.age);
        }
        self.reap_orphans();
    }

    /// Removes the scratch directory of a worker, in a helper process if it is not empty.
    fn remove_scratch(&mut self, number: u64) {
        let Some(mut scratch) = self.surroundings.scratch.take() else { return };
        if scratch.remove_quickly(number) {
            let remove = |number| scratch.remove_slowly(number);
            let is_removed = self.descendants.orphans.helpers() < MAX_REMOVALS
                && self.run_in_helper(number, remove).is_none();
            if !is_removed {
                // The end of a helper is followed by another attempt.
                scratch.postpone(number);
            }
        }
        self.surroundings.scratch = Some(scratch);
    }

    /// Reaps children that are no workers, and kills descendants of workers among them.
    pub(super) fn reap_orphans(&mut self) {
        let workers: HashSet<_> = self.children.values().map(|child| child.pid).collect();
        self.descendants
            .orphans
            .reap_and_kill(&self.descendants.mark, |pid| workers.contains(&pid));
        if !self.descendants.orphans.are_pending() {
            self.scoreboard.release_quarantined();
        }
        self.surroundings.groups.iter_mut().for_each(WorkerGroups::remove_left);
        let postponed = self.surroundings.scratch.as_mut().map(ScratchFolder::take_postponed);
        postponed.into_iter().flatten().for_each(|number| self.remove_scratch(number));
    }
}
