//! Restarts: starting a new server that takes over, and shutting down once it is ready.

use std::os::fd::AsFd;

use rustix::event::epoll::{self, EventFlags};
use rustix::process::{Signal, kill_process};

use super::status::open_status;
use super::{EventLoop, STATUS, SUCCESSOR};
use crate::clock::now;
use crate::server::hangup::explain_shutdown;
use crate::server::restart::{Outcome, Successor};
use crate::server::{log, program_file};

impl EventLoop {
    /// Handles SIGHUP: a request to restart, or to end.
    pub(super) fn handle_hangup(&mut self) {
        let is_controlled = self.options.control.is_some();
        if self.process.signals.asks_for_restart() && !is_controlled {
            // A new server may have taken over, and then the request is for it.
            if self.takeover.successor.as_ref().is_some_and(Successor::is_readable) {
                self.read_successor();
            }
            return self.supervisor.handle_restart_request();
        }
        if self.supervisor.is_serving() {
            if !is_controlled {
                explain_shutdown();
            }
            self.supervisor.handle_end_request(false, now());
        }
    }

    /// Starts a new server. This one keeps serving until the new one is ready.
    pub(super) fn start_successor(&mut self) {
        if self.try_start_successor().is_none() {
            self.supervisor.handle_successor_failed();
        }
    }

    /// Returns nothing if there is no new server.
    fn try_start_successor(&mut self) -> Option<()> {
        let Some(listener) = &self.connections.listener else { return None };
        let program = program_file::path();
        if let Err(reason) = program_file::check(program) {
            log::error!("no new server, this one goes on: {reason}, then send SIGHUP again");
            return None;
        }
        let name = &self.options.name;
        log::info!(name, "starting {} as a new server to take over", program.display());
        // The new server opens its own status socket at the same path.
        self.status.listener = None;
        let started = Successor::start(listener, self.options.parent.as_ref());
        let watched = started.and_then(|successor| {
            self.descendants.orphans.exclude_server(successor.pid());
            match self.watch(successor.as_fd(), SUCCESSOR, EventFlags::IN) {
                Ok(()) => Ok(successor),
                Err(error) => {
                    self.descendants.orphans.kill_excluded(successor.pid());
                    Err(error.to_string())
                }
            }
        });
        match watched {
            Ok(successor) => {
                self.takeover.successor = Some(successor);
                Some(())
            }
            Err(reason) => {
                log::error!("no new server, this one goes on: {reason}");
                self.reopen_status_socket();
                None
            }
        }
    }

    /// Forwards a request to restart to the server that has taken over.
    pub(super) fn forward_restart(&self) {
        if let Some(pid) = self.takeover.successor_pid {
            // This process never reaps that child, so its process id cannot have been reused.
            let _ = kill_process(pid, Signal::HUP);
        }
    }

    /// Reads what the new server has reported.
    pub(super) fn read_successor(&mut self) {
        let Some(mut successor) = self.unwatch_successor() else { return };
        match successor.outcome() {
            Outcome::Ready { is_listener_inherited } => {
                if let Some(parent) = &self.options.parent {
                    parent.announce(successor.pid());
                }
                if let Some(listener) =
                    self.connections.listener.as_mut().filter(|_| is_listener_inherited)
                {
                    listener.disown_file();
                }
                self.takeover.successor_pid = Some(successor.pid());
                self.supervisor.handle_successor_ready(now());
            }
            Outcome::Failed(reason) => {
                let pid = successor.pid();
                log::error!("the new server {pid} did not come up, this one goes on: {reason}");
                self.kill_successor(&successor);
                self.reopen_status_socket();
                self.supervisor.handle_successor_failed();
            }
        }
    }

    /// Kills a new server that is not ready yet.
    pub(super) fn cancel_successor(&mut self, is_replaced: bool) {
        if let Some(successor) = self.unwatch_successor() {
            if is_replaced {
                let pid = successor.pid();
                log::warn!("the new server {pid} is not ready yet, and is replaced by another");
            }
            self.kill_successor(&successor);
        }
    }

    fn kill_successor(&mut self, successor: &Successor) {
        self.descendants.orphans.kill_excluded(successor.pid());
        self.reap_orphans();
    }

    fn unwatch_successor(&mut self) -> Option<Successor> {
        let successor = self.takeover.successor.take()?;
        let _ = epoll::delete(&self.process.epoll, &successor);
        Some(successor)
    }

    fn reopen_status_socket(&mut self) {
        self.status.listener = open_status(&self.options, self.connections.listener.as_ref())
            .unwrap_or_else(|error| {
                log::error!("there is no status socket any more: {error}");
                None
            });
        if let Some(status) = &self.status.listener
            && let Err(error) = self.watch(status.as_fd(), STATUS, EventFlags::IN)
        {
            log::error!("the status socket cannot be watched: {error}");
        }
    }
}
