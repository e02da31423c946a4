//! Everything that is due at a time: deadlines, ages, pauses and retries.

use std::time::Duration;

use super::EventLoop;
use crate::clock::now;
use crate::log_output;
use crate::server::guardian;
use crate::server::wake_pipe::pause_after;

/// How late a worker may learn that the time of its call is over.
const DEADLINE_TOLERANCE: Duration = Duration::from_millis(1);

/// The longest pause between two scans of all workers while a worker is due. A scan may take long.
const MAX_RESCAN_PAUSE: Duration = Duration::from_millis(20);

/// After this time the server reads all slots once it is awake, whether or not one is due: what a worker
/// has written may be corrupt.
const MAX_SCAN_PAUSE: Duration = Duration::from_millis(100);

impl EventLoop {
    /// Runs the timers that are due. Returns how long to sleep if no event arrives.
    ///
    /// A worker that begins a call with an earlier deadline than the published wake-up time wakes the
    /// server. A worker that begins a call before it can see that time is found by one more scan. A
    /// published time is kept even if it turns out to be earlier than necessary, so that the next
    /// calls with the same time limit do not wake the server.
    ///
    /// Only times of the supervisor are published. At other times the server wakes without reading all slots.
    pub(super) fn run_timers(&mut self) -> Option<Duration> {
        self.scoreboard.publish_workers(self.supervisor.workers());
        let mut are_slots_due = self.are_slots_due(now());
        loop {
            let maintenance = self.run_maintenance();
            let decisions = self.run_decisions(are_slots_due);
            let now = now();
            let at = decisions.map(|left| now.saturating_add(left));
            let promised = self.scoreboard.wakeup().filter(|&promised| promised > now);
            let at = promised.into_iter().chain(at).min();
            let scan = at.map(|at| at.saturating_sub(now));
            let before = self.scoreboard.set_wakeup(at);
            let is_later = match (before, at) {
                (Some(before), Some(at)) => at > before.saturating_add(DEADLINE_TOLERANCE),
                (Some(_), None) => true,
                (None, _) => false,
            };
            if !is_later {
                return scan.into_iter().chain(maintenance).min();
            }
            are_slots_due = true;
        }
    }

    /// Whether the server has to read all slots: a worker has woken it, a time has come that it has
    /// published or that a slot had, or the last time is long ago.
    ///
    /// It does not read all slots whenever it is awake: thousands take longer than a new worker.
    fn are_slots_due(&self, now: Duration) -> bool {
        let pause = pause_after(self.scan_time).max(MAX_SCAN_PAUSE);
        self.process.wake.is_woken()
            || self.scoreboard.wakeup().is_some_and(|promised| promised <= now)
            || self.supervisor.are_slots_due(now)
            || self.scanned_at.saturating_add(pause) <= now
    }

    /// Does what is due and concerns no single worker. Returns the time until something else is.
    fn run_maintenance(&mut self) -> Option<Duration> {
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
        self.descendants.orphans.check().time_until().into_iter().for_each(&mut at_most);
        self.descendants.unnamed_exits.time_until().into_iter().for_each(&mut at_most);
        next
    }

    /// Lets the supervisor decide about what workers do now: all of them, or those that something has
    /// happened to. Returns the time until something else is due.
    fn run_decisions(&mut self, are_slots_due: bool) -> Option<Duration> {
        let started = now();
        if are_slots_due {
            let pause = self.rescan_pause();
            let (may_take_over, mut takes_over) = (self.scoreboard.has_files(), false);
            let slots = self.children.iter_mut().map(|child| {
                takes_over |= may_take_over && child.notice_takeover();
                (child.number, child.observe())
            });
            self.supervisor.handle_slots(slots, pause, started);
            if takes_over {
                self.scoreboard.publish_takeover(true);
            }
            self.scanned_at = now();
            self.scan_time = self.scanned_at.saturating_sub(started);
        } else {
            self.observe_changed();
        }
        self.supervisor.handle_timeout(started);
        self.carry_out_actions();
        // What was carried out has changed workers, and may make them due.
        while self.observe_changed() {
            self.carry_out_actions();
        }
        self.supervisor.poll_timeout(now())
    }

    /// Observes the workers that something has happened to. Returns whether there were any.
    fn observe_changed(&mut self) -> bool {
        let (pause, now, mut any) = (self.rescan_pause(), now(), false);
        while let Some(number) = self.supervisor.poll_changed() {
            any = true;
            if let Some(child) = self.children.get_mut(number) {
                let observed = child.observe();
                self.supervisor.handle_changed(number, &observed, pause, now);
            }
        }
        any
    }

    fn rescan_pause(&self) -> Duration {
        pause_after(self.scan_time).min(MAX_RESCAN_PAUSE)
    }
}
