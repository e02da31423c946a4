//! When there is something to do though nothing happens: deadlines, ages, pauses, and all that is tried again.

use std::time::{Duration, Instant};

use super::{EventLoop, Mode};
use crate::log_output;
use crate::server::wake_pipe::pause_after;
use crate::server::{guardian, orphans};
use crate::worker::scoreboard::now;

/// By so much a worker may learn late that its call's time is over.
const MAX_WAKE_DELAY: Duration = Duration::from_millis(1);

/// However long a look at all workers takes, the server looks again after this time if a worker is due.
const MIN_RESCAN: Duration = Duration::from_millis(20);

impl EventLoop {
    /// Does what is due now; gives how long to sleep if no event comes. A worker that begins a call
    /// whose time is over sooner than that wakes the server: one that could not know is seen by
    /// looking once more. A time that was set is kept to though there is nothing to do any more, so
    /// that the calls that come next, with times as long, wake nobody.
    pub(in crate::server) fn plan(&mut self) -> Option<Duration> {
        self.scoreboard.publish_workers(self.children.len());
        let begun = now();
        loop {
            let left = self.run_due_timers();
            let now = now();
            let at = left.map(|left| now.saturating_add(left));
            let promised = self.scoreboard.wakeup().filter(|&promised| promised > now);
            let at = promised.into_iter().chain(at).min();
            let left = at.map(|at| at.saturating_sub(now));
            let before = self.scoreboard.set_wakeup(at);
            let is_later = match (before, at) {
                (Some(before), Some(at)) => at > before.saturating_add(MAX_WAKE_DELAY),
                (Some(_), None) => true,
                (None, _) => false,
            };
            if !is_later {
                self.took = now.saturating_sub(begun);
                return left;
            }
        }
    }

    /// How long nothing needs to be done, if no event comes. Does what is due now.
    fn run_due_timers(&mut self) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        let mut at_most = |left: Duration| next = Some(next.map_or(left, |next| next.min(left)));
        self.manager.keep_alive().into_iter().for_each(&mut at_most);
        self.look_for_files().into_iter().for_each(&mut at_most);
        self.report_omitted().into_iter().for_each(&mut at_most);
        log_output::lock().tend().into_iter().for_each(&mut at_most);
        if self.guardian.is_none() && self.mode == Mode::Serving {
            self.start_guardian();
            if self.guardian.is_none() {
                at_most(guardian::AGAIN);
            }
        }
        self.resume_stderr().into_iter().for_each(&mut at_most);
        self.run_status_timers().into_iter().for_each(&mut at_most);
        self.update_spares().into_iter().for_each(&mut at_most);
        self.rebalance_queue().into_iter().for_each(&mut at_most);
        let recycling = self.options.recycling;
        if recycling.replaces_in_time() {
            let now = now();
            let children = self.children.values_mut();
            children.filter_map(|child| child.enforce_age(now, &recycling)).for_each(&mut at_most);
        }
        if self.orphans.is_pending() {
            at_most(orphans::AGAIN);
        }
        // A worker tells nobody when it begins a call, unless its time is over soon. One that begins
        // just now is due after the whole `hung_worker_timeout`, and will have been looked at by
        // then.
        let (now, timeout) = (now(), self.options.hung_worker_timeout.get());
        // Workers say when they are due: one that is due again and again must not keep the server from the rest.
        let soonest = pause_after(self.took).min(MIN_RESCAN);
        for child in self.children.values_mut() {
            let (late, hanging) =
                (child.enforce_call_deadline(now), child.enforce_hang_timeout(now, timeout));
            let leaving = child.enforce_leave_timeout(now, timeout);
            let due = late.into_iter().chain(hanging).chain(leaving);
            due.map(|left| left.max(soonest)).for_each(&mut at_most);
        }
        if let Some(again) = self.accept_again {
            let left = again.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.accept_again = None;
                self.set_listener_paused(false);
            } else {
                at_most(left);
            }
        }
        self.expire_handshakes().into_iter().for_each(&mut at_most);
        if let Mode::Draining(Some(until)) = self.mode {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.kill_all("the server's shutdown_grace is over");
            } else {
                at_most(left);
            }
        }
        next
    }
}
