//! The signals of an operator: SIGUSR1 reopens the log file, and SIGUSR2 logs the state of each
//! worker.

use super::EventLoop;
use crate::clock::now;
use crate::log_output;
use crate::server::child::Child;
use crate::server::log;
use crate::sys;

impl EventLoop {
    /// Handles SIGUSR1: reopens the log file, which may have been renamed.
    pub(super) fn reopen_log(&mut self) {
        let name = &self.options.name;
        let reopened = log_output::lock().reopen();
        match reopened {
            Ok(true) => log::info!(name, "the log file has been opened again"),
            Ok(false) => log::info!(name, "SIGUSR1: there is no log file to open again"),
            Err(error) => log::error!(
                name,
                "cannot open the log file again, and still write to the old one: {error}"
            ),
        }
    }

    /// Handles SIGUSR2: logs the state of each worker.
    pub(super) fn log_workers(&mut self) {
        let (name, workers) = (&self.options.name, self.children.len());
        let handshakes = self.connections.handshakes.len();
        log::info!(name, workers, handshakes, "SIGUSR2: the workers follow");
        let now = now();
        for (child, observed) in self.observed_children() {
            let status = child.status(&observed, now);
            let client = status.peer.as_ref().map(ToString::to_string).or_else(|| address(child));
            log::info!(
                worker = status.number,
                pid = status.pid,
                method = status.method,
                seconds = status.seconds,
                calls = status.calls,
                client,
                "a worker is {}",
                status.state
            );
        }
    }
}

/// The address of a client on TCP.
fn address(child: &Child) -> Option<String> {
    sys::peer_address(child.connection()?).map(|address| address.to_string())
}
