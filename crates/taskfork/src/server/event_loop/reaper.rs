//! Reaping workers and other children.

use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::process::Pid;

use super::EventLoop;
use super::state::Descendants;
use crate::clock::now;
use crate::server::child::Child;
use crate::server::log;
use crate::server::recent_deaths::RecentDeath;
use crate::server::scratch::ScratchFolder;
use crate::server::worker_exit::{WorkerExit, WorkerRules, cause};
use crate::server::worker_groups::WorkerGroups;
use crate::sys;
use crate::worker::scoreboard::ProgramStage;

/// A directory is removed slowly only while there are fewer helpers than this. So workers that leave
/// many files cannot occupy all helpers.
const MAX_REMOVALS: usize = 2;

/// With more workers than this, the server does not look at all children after each death, because that
/// takes a microsecond for each twenty of them.
const MAX_CHILDREN_AT_ONCE: usize = 256;

/// Up to this many deaths in a row, each one is found by a look at all children. Then the reaper asks all workers
/// once, which takes as long as 20 such looks.
const MAX_DEATHS_FOUND: usize = 16;

/// How soon the server looks for further deaths then. The dead worker's client gets another one meanwhile.
const UNNAMED_EXITS_DELAY: Duration = Duration::from_millis(1);

impl EventLoop {
    /// Reaps the child that SIGCHLD names, if it is a worker. Others may have exited since, and need
    /// not be workers.
    pub(super) fn reap_named(&mut self, child: Option<Pid>) {
        let number = child.and_then(|pid| self.children.number_of(pid));
        let exited =
            number.filter(|number| self.children.get(*number).is_some_and(Child::has_exited));
        match exited {
            Some(number) => self.reap_worker(number),
            None => self.descendants.orphans.handle_exit(),
        }
        if self.children.len() <= MAX_CHILDREN_AT_ONCE {
            self.reap_workers();
        } else {
            self.descendants.unnamed_exits.order(UNNAMED_EXITS_DELAY);
        }
    }

    /// Reaps all workers that have exited, and has other children checked if one of them has.
    ///
    /// The kernel finds one exited child by looking at all. It finds the state of a given child at once, but that
    /// takes a system call for each worker. So only after many deaths are all workers asked in turn.
    fn reap_workers(&mut self) {
        let mut found = 0;
        while let Some(exited) = sys::exited_child() {
            let Some(number) = self.children.number_of(exited) else {
                // The kernel reports the same child until it is reaped, and may hide workers behind it.
                self.descendants.orphans.handle_exit();
                self.reap_each();
                return;
            };
            self.reap_worker(number);
            found += 1;
            if found == MAX_DEATHS_FOUND {
                self.reap_each();
                found = 0;
            }
        }
    }

    /// Asks for the state of each worker, and reaps those that have exited.
    fn reap_each(&mut self) {
        let exited = self.children.iter().filter(|child| child.has_exited());
        let exited: Vec<_> = exited.map(|child| child.number).collect();
        exited.into_iter().for_each(|number| self.reap_worker(number));
    }

    /// Reaps a worker that has exited or was killed, and sends its client a death notice.
    pub(super) fn reap_worker(&mut self, number: u64) {
        let Some(mut child) = self.children.remove(number) else { return };
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
        let is_relayed = child.is_relayed();
        let exit = child.reap(
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
        let WorkerExit { slot, mut notification, mut stack, cause, spare_failure, death } = exit;
        if last.calls > 0 {
            self.status.counters.calls.add(slot.counted_calls(), &self.options.methods);
        }
        if let Some(status) = death {
            let at = now().saturating_sub(self.status.started_at);
            self.status
                .counters
                .recent_deaths
                .add(RecentDeath { status, stack: stack.clone() }, at);
        }
        // The client's user is asked for only if that decides anything: it is a system call.
        let has_details = stack.is_some() || notification.has_details();
        let shares_details = self.options.access.details;
        if has_details
            && !shares_details
            && (is_relayed || !self.connections.rules.is_own(&notification.connection))
        {
            notification.omit_details();
            stack = None;
        }
        let has_failed = [cause::EXITED, cause::FINISHED, cause::SIGNALED].contains(&cause);
        if has_failed && slot.program_stage() == Some(ProgramStage::Executed) {
            // It may be another program by now, or one of another version: its hello tells.
            self.scoreboard.publish_takeover(false);
            if self.logs.limits.workers.acquire(Instant::now()) {
                log::warn!(
                    worker = number,
                    "the program of a worker has ended before it took its connection over; the next one is started as a child of \
                     its worker first"
                );
            }
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
        self.descendants.orphans.handle_worker_exit();
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

    /// Makes the checks of children that are due.
    pub(super) fn check_children(&mut self) {
        let now = Instant::now();
        if self.descendants.unnamed_exits.is_due(now) {
            self.reap_workers();
            self.descendants.unnamed_exits.finish(now);
        }
        if self.descendants.orphans.check().is_due(now) {
            self.reap_orphans();
        }
    }

    /// Reaps children that are no workers, and kills descendants of workers among them.
    pub(super) fn reap_orphans(&mut self) {
        let Descendants { orphans, mark, .. } = &mut self.descendants;
        orphans.reap_and_kill(mark, |pid| self.children.number_of(pid).is_some());
        if !self.descendants.orphans.are_pending() {
            self.scoreboard.release_quarantined();
        }
        self.surroundings.groups.iter_mut().for_each(WorkerGroups::remove_left);
        let postponed = self.surroundings.scratch.as_mut().map(ScratchFolder::take_postponed);
        postponed.into_iter().flatten().for_each(|number| self.remove_scratch(number));
    }
}
