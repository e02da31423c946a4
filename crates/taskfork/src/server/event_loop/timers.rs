//! Everything that is due at a time: deadlines, ages, pauses and retries.

use std::time::Duration;

use super::EventLoop;
use crate::clock::now;
use crate::log_output;
use crate::server::wake_pipe::pause_after;
use crate::server::{guardian, orphans};

/// How late a worker may learn that the time of its call is over.
const DEADLINE_TOLERANCE: Duration = Duration::from_millis(1);

/// The longest pause between two scans of all workers while a worker is due. A scan may take long.
const MAX_RESCAN_PAUSE: Duration = Duration::from_millis(20);

impl EventLoop {
    /// Runs the timers that are due. Returns how long to sleep if no event arrives.
    ///
    /// A worker that begins a call with an earlier deadline than the published wake-up time wakes the
    /// server. A worker that begins a call before it can see that time is found by one more scan. A
    /// published time is kept even if it turns out to be earlier than necessary, so that the next
    /// calls with the same time limit do not wake the server.
    pub(super) fn run_timers(&mut self) -> Option<Duration> {
        self.scoreboard.publish_workers(self.supervisor.workers());
        let started = now();
        loop {
            let left = self.run_due_timers();
            let now = now();
            let at = left.map(|left| now.saturating_add(left));
            let promised = self.scoreboard.wakeup().filter(|&promised| promised > now);
            let at = promised.into_iter().chain(at).min();
            let left = at.map(|at| at.saturating_sub(now));
            let before = self.scoreboard.set_wakeup(at);
            let is_later = match (before, at) {
                (Some(before), Some(at)) => at > before.saturating_add(DEADLINE_TOLERANCE),
                (Some(_), None) => true,
                (None, _) => false,
            };
            if !is_later {
                self.scan_time = now.saturating_sub(started);
                return left;
            }
        }
    }

    /// Runs what is due once. Returns the time until something else is.
    fn run_due_timers(&mut self) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        let mut at_most = |left: Duration| next = Some(next.map_or(left, |next| next.min(left)));
        self.service_manager.keep_alive().into_iter().for_each(&mut at_most);
        self.check_socket_files().into_iter().for_each(&mut at_most);
        self.report_omitted().into_iter().for_each(&mut at_most);
        log_output::retry().into_iter().for_each(&mut at_most);
        if self.descendants.guardian.is_none() && self.supervisor.is_serving() {
            self.start_guardian();
            if self.descendants.guardian.is_none() {
                at_most(guardian::RETRY_INTERVAL);
            }
        }
        self.resume_stderr().into_iter().for_each(&mut at_most);
        self.run_status_timers().into_iter().for_each(&mut at_most);
        if self.descendants.orphans.are_pending() {
            at_most(orphans::RETRY_INTERVAL);
        }
        self.run_decisions().into_iter().for_each(&mut at_most);
        next
    }

    /// Lets the supervisor decide about what all workers do now. Returns the time until something else is
    /// due.
    fn run_decisions(&mut self) -> Option<Duration> {
        let started = now();
        let pause = pause_after(self.scan_time).min(MAX_RESCAN_PAUSE);
        let slots = self.children.values_mut().map(|child| (child.number, child.observe()));
        self.supervisor.handle_slots(slots, pause, started);
        self.supervisor.handle_timeout(started);
        self.carry_out_actions();
        self.supervisor.poll_timeout(now())
    }
}
