//! Carrying out what the supervisor has decided, and reporting to it how that went.

use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;

use super::EventLoop;
use crate::clock::now;
use crate::display::seconds;
use crate::server::child::Role;
use crate::server::supervisor::{Action, Purpose};
use crate::server::{log, proc_status};
use crate::sys::ForkError;
use crate::worker::ClientSource;
use crate::worker::scoreboard::Retirement;

impl EventLoop {
    /// Carries out all decisions.
    pub(super) fn carry_out_actions(&mut self) {
        while let Some(action) = self.supervisor.poll_action() {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Fork { worker, purpose: Purpose::Client(client) } => {
                self.fork_for_client(worker, client);
            }
            Action::Fork { worker, purpose: Purpose::Spare } => self.fork_spare(worker),
            Action::Assign { client, worker, may_be_in_setup } => {
                self.assign_client(client, worker, may_be_in_setup);
            }
            Action::Enqueue { client } => self.enqueue_client(client),
            Action::Refuse { client } => self.refuse_busy(client),
            Action::EndHandshake { connection, why } => self.end_handshake(connection, why),
            Action::Close { client } => drop(self.connections.waiting.take(client)),
            Action::ObserveForReview => self.review_queue(),
            Action::Retire { worker, why } => self.retire_worker(worker, why),
            Action::Stop { worker, view, request } => {
                if let Some(child) = self.children.get_mut(worker) {
                    let has_held = child.try_stop(view, request);
                    self.supervisor.handle_stop(worker, request, has_held);
                }
            }
            Action::Kill { worker } => {
                if let Some(child) = self.children.get(worker) {
                    child.kill_group();
                }
            }
            Action::Interrupt { worker, view } => {
                if let Some(child) = self.children.get_mut(worker) {
                    child.interrupt(view);
                }
            }
            Action::RequestStack { worker } => {
                if let Some(child) = self.children.get(worker) {
                    child.request_stack();
                }
            }
            Action::InspectAlarm { worker } => {
                if let Some(child) = self.children.get(worker) {
                    let action = proc_status::signal_action(child.pid(), Signal::ALARM);
                    self.supervisor.handle_alarm_action(worker, action, now());
                }
            }
            Action::PauseAccepting => self.set_listener_paused(true),
            Action::ResumeAccepting => self.set_listener_paused(false),
            Action::CloseConnections => self.close_connections(),
            Action::StartSuccessor => self.start_successor(),
            Action::CancelSuccessor { is_replaced } => self.cancel_successor(is_replaced),
            Action::ForwardRestart => self.forward_restart(),
            Action::NotifyStopping => self.service_manager.notify_stopping(),
        }
    }

    fn fork_spare(&mut self, worker: u64) {
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let forked =
            pair.map_err(|errno| ForkError::Kernel(errno.into())).and_then(|(ours, theirs)| {
                self.fork_worker(worker, Role::Spare(ours), ClientSource::Channel(theirs))
                    .map_err(|(_, error)| error)
            });
        if let Err(error) = forked {
            self.supervisor.handle_fork_failed();
            self.record_spare_failure(&error.to_string(), Duration::ZERO);
        }
    }

    /// Logs the failure of a spare worker of this age.
    pub(super) fn record_spare_failure(&mut self, reason: &str, age: Duration) {
        if let Some(backoff) = self.supervisor.handle_spare_failed(age, now()) {
            let (name, backoff) = (&self.options.name, seconds(backoff));
            log::error!(name, "a spare worker failed, the next is forked in {backoff}: {reason}");
        }
    }

    fn retire_worker(&mut self, worker: u64, why: Retirement) {
        let Some(child) = self.children.get_mut(worker) else { return };
        match why {
            Retirement::Fairness => log::debug!(worker, "it makes room for another client"),
            Retirement::Age | Retirement::Idleness => {
                log::debug!(worker, pid = child.pid(), "replaced for its {why:?}");
            }
            _ => {}
        }
        let observed = child.request_retirement(why);
        self.supervisor.handle_retiring(worker, &observed);
    }

    fn review_queue(&mut self) {
        let started = now();
        let slots = self.children.iter_mut().map(|child| (child.number, child.observe()));
        self.supervisor.handle_review(slots, started);
        let ended = now();
        self.supervisor.handle_review_end(ended.saturating_sub(started), ended);
    }
}
