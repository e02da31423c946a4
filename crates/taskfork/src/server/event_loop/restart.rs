//! Restarts: starting a new server that takes over, and shutting down once it is ready.

use std::os::fd::AsFd;

use rustix::event::epoll::{self, EventFlags};
use rustix::process::{Signal, kill_process};

use super::status::open_status;
use super::{EventLoop, STATUS, SUCCESSOR};
use crate::server::restart::{Outcome, Successor};
use crate::server::{log, program_file};

impl EventLoop {
    /// Starts a new server. This one keeps serving until the new one is ready.
    pub(super) fn start_restart(&mut self) {
        match &self.successor {
            // It has taken over, so the request is for it, or it has failed.
            Some(successor) if successor.is_readable() => {
                self.read_successor();
                if self.successor_pid.is_some() {
                    return self.forward_restart();
                }
            }
            Some(successor) => {
                let pid = successor.pid();
                log::warn!("the new server {pid} is not ready yet, and is replaced by another");
                self.cancel_successor();
            }
            None => {}
        }
        let Some(listener) = &self.listener else { return };
        let program = program_file::path();
        if let Err(reason) = program_file::check(program) {
            log::error!("no new server, this one goes on: {reason}, then send SIGHUP again");
            return;
        }
        let name = &self.options.name;
        log::info!(name, "starting {} as a new server to take over", program.display());
        // The new server opens its own status socket at the same path.
        self.status = None;
        let started = Successor::start(listener, self.options.parent.as_ref());
        let watched = started.and_then(|successor| {
            self.orphans.exclude_server(successor.pid());
            match self.watch(successor.as_fd(), SUCCESSOR, EventFlags::IN) {
                Ok(()) => Ok(successor),
                Err(error) => {
                    self.orphans.kill_excluded(successor.pid());
                    Err(error.to_string())
                }
            }
        });
        match watched {
            Ok(successor) => self.successor = Some(successor),
            Err(reason) => {
                log::error!("no new server, this one goes on: {reason}");
                self.reopen_status_socket();
            }
        }
    }

    /// Forwards a request to restart to the server that has taken over.
    pub(super) fn forward_restart(&self) {
        if let Some(pid) = self.successor_pid.filter(|_| self.signals.asks_for_restart()) {
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
                if let Some(listener) = self.listener.as_mut().filter(|_| is_listener_inherited) {
                    listener.disown_file();
                }
                self.successor_pid = Some(successor.pid());
                self.drain();
            }
            Outcome::Failed(reason) => {
                let pid = successor.pid();
                log::error!("the new server {pid} did not come up, this one goes on: {reason}");
                self.kill_successor(&successor);
                self.reopen_status_socket();
            }
        }
    }

    /// Kills a new server that is not ready yet.
    pub(super) fn cancel_successor(&mut self) {
        if let Some(successor) = self.unwatch_successor() {
            self.kill_successor(&successor);
        }
    }

    fn kill_successor(&mut self, successor: &Successor) {
        self.orphans.kill_excluded(successor.pid());
        self.reap_orphans();
    }

    fn unwatch_successor(&mut self) -> Option<Successor> {
        let successor = self.successor.take()?;
        let _ = epoll::delete(&self.epoll, &successor);
        Some(successor)
    }

    fn reopen_status_socket(&mut self) {
        self.status = open_status(&self.options, self.listener.as_ref()).unwrap_or_else(|error| {
            log::error!("there is no status socket any more: {error}");
            None
        });
        if let Some(status) = &self.status
            && let Err(error) = self.watch(status.as_fd(), STATUS, EventFlags::IN)
        {
            log::error!("the status socket cannot be watched: {error}");
        }
    }
}
