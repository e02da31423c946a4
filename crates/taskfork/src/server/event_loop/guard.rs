//! Starting and replacing the guardian process.

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::epoll::{self, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use super::{EventLoop, GUARDIAN, LISTENER};
use crate::server::error::ServerError;
use crate::server::guardian::{Folders, Guardian};
use crate::server::log;
use crate::server::scratch::ScratchFolder;
use crate::server::titles::printable_name;
use crate::server::worker_groups::WorkerGroups;

impl EventLoop {
    /// Forks a worker for a client that waits already. It starts while the guardian is forked, and runs nothing of the user's
    /// before that.
    pub(super) fn serve_first_client(&mut self) {
        self.descendants.gate = eventfd(0, EventfdFlags::CLOEXEC).ok();
        if self.descendants.gate.is_some() {
            self.dispatch(LISTENER);
        }
    }

    /// Forks a guardian, which kills what this server would leave behind if it were killed itself.
    pub(super) fn start_guardian(&mut self) {
        let name = printable_name(&self.options.name);
        let workers = self.children.iter().map(|child| child.pid);
        let folders = Folders {
            scratch: self.surroundings.scratch.as_ref().map(ScratchFolder::path),
            groups: self.surroundings.groups.as_ref().map(WorkerGroups::path),
        };
        let started =
            Guardian::start(&name, &self.descendants.mark, workers, &self.process.threads, folders)
                .map_err(ServerError::system("it cannot be forked"))
                .and_then(|guardian| {
                    self.watch(guardian.as_fd(), GUARDIAN, EventFlags::IN)?;
                    Ok(guardian)
                });
        match started {
            Ok(guardian) => {
                self.descendants.orphans.exclude(guardian.pid());
                self.descendants.guardian = Some(guardian);
                self.descendants.guardian_failure_logged = false;
            }
            Err(error) if !self.descendants.guardian_failure_logged => {
                self.descendants.guardian_failure_logged = true;
                log::error!(
                    "without a guardian for now, what workers start outlives a killed server: {error}"
                );
            }
            Err(_) => {}
        }
        if let Some(gate) = self.descendants.gate.take() {
            // The counter is zero, so that this neither waits nor fails.
            let _ = rustix::io::write(&gate, &1_u64.to_ne_bytes());
        }
    }

    /// Waits until the guardian is ready.
    pub(super) fn await_guardian(&mut self) {
        if self.descendants.guardian.as_mut().is_some_and(|guardian| !guardian.await_ready()) {
            self.replace_guardian();
        }
    }

    /// The guardian has exited. The next run of the timers starts another.
    pub(super) fn handle_guardian_exit(&mut self) {
        let Some(guardian) = self.descendants.guardian.take() else { return };
        let _ = epoll::delete(&self.process.epoll, &guardian);
        self.descendants.orphans.kill_excluded(guardian.pid());
        if self.logs.limits.guardians.acquire(Instant::now()) {
            log::warn!(name = self.options.name, "the guardian has died, and is replaced");
        }
    }

    /// Stops a guardian that does not read records any more. The next one gets a list of the workers
    /// when it is forked.
    pub(super) fn replace_guardian(&mut self) {
        let Some(guardian) = self.descendants.guardian.take() else { return };
        let _ = epoll::delete(&self.process.epoll, &guardian);
        if self.logs.limits.guardians.acquire(Instant::now()) {
            let name = &self.options.name;
            log::warn!(name, "the guardian does not answer, and is replaced");
        }
        self.descendants.orphans.kill_excluded(guardian.pid());
        guardian.stop();
    }
}
