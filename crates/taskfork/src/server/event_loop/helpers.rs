//! Helper processes: forked copies of the server for work that may take long, such as resolving the
//! names on a stack.

use std::time::Instant;

use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use super::EventLoop;
use crate::server::log;
use crate::server::process::is_child_of;
use crate::server::worker_exit::DeathNotification;
use crate::sys::{self, Forked};

/// The maximum number of helpers at one time. Beyond it, a status lacks the memory of workers, and a
/// death notification lacks the names on the stack.
const MAX_HELPERS: usize = 64;

impl EventLoop {
    /// Sends a death notification from a helper process, which resolves the names on the stack first.
    pub(super) fn send_with_stack(&mut self, notification: DeathNotification, stack: Vec<u64>) {
        let unsent =
            self.run_in_helper(notification, |notification| notification.send_with_stack(stack));
        if let Some(notification) = unsent {
            notification.send();
        }
    }

    /// Runs `task` in a helper process. Returns its input if there can be no helper now.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(super) fn run_in_helper<T>(&mut self, input: T, task: impl FnOnce(T)) -> Option<T> {
        if self.descendants.orphans.helpers() >= MAX_HELPERS {
            return Some(input);
        }
        // SAFETY: the helper writes only to connections in `input`, and leaves by `exit_now`.
        match unsafe { sys::fork(&self.process.threads) } {
            Ok(Forked::Parent { child }) => {
                let pid = Pid::from_raw(child.as_raw());
                pid.into_iter().for_each(|pid| self.descendants.orphans.add_helper(pid));
                None
            }
            Ok(Forked::Child) => {
                // The helper must not outlive the server.
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                // The server may have died before the signal was asked for.
                if !Pid::from_raw(self.process.pid.cast_signed()).is_some_and(is_child_of) {
                    sys::exit_now(1);
                }
                self.close_copies();
                task(input);
                sys::exit_now(0);
            }
            Err(error) => {
                if self.logs.limits.helpers.acquire(Instant::now()) {
                    log::warn!("the server cannot fork a helper: {error}");
                }
                Some(input)
            }
        }
    }

    /// In a helper: closes the copies of all connections, so that their peers see the end when the
    /// server closes them.
    fn close_copies(&mut self) {
        drop((
            self.connections.listener.take(),
            self.status.listener.take(),
            self.options.control.take(),
        ));
        self.status.requests.close_copies();
        self.children.close_copies();
        self.connections.handshakes.close_copies();
        self.connections.waiting.close_copies();
    }
}
