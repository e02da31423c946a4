//! Shutdown: requests of the program that started the server, draining, and killing workers.

use std::time::Instant;

use rustix::event::epoll;

use super::{EventLoop, Mode};
use crate::server::access::Origin;
use crate::server::control::ControlRequest;
use crate::server::log;
use crate::server::parent::Parent;
use crate::worker::scoreboard::Retirement;

impl EventLoop {
    /// Handles a request of the program that started this server.
    pub(super) fn handle_control(&mut self) {
        let Some(control) = &self.options.control else { return };
        match control.next_request() {
            Ok(Some(ControlRequest::Connection(connection))) if self.mode == Mode::Serving => {
                self.admit(connection, Origin::Local);
            }
            Ok(None | Some(ControlRequest::Connection(_))) => {}
            Ok(Some(ControlRequest::Status(connection))) => self.add_status_request(connection),
            Ok(Some(ControlRequest::Shutdown)) => {
                self.close_control();
                self.drain();
            }
            Err(error) => {
                log::error!("the control channel to the program failed: {error}");
                self.close_control();
                self.drain();
            }
        }
    }

    fn close_control(&mut self) {
        if let Some(control) = self.options.control.take() {
            let _ = epoll::delete(&self.epoll, &control);
        }
    }

    /// The parent process was killed, and can forward no request to end any more.
    pub(super) fn handle_parent_exit(&mut self) {
        if let Some(channel) = self.options.parent.as_ref().and_then(Parent::channel) {
            let _ = epoll::delete(&self.epoll, channel);
        }
        if self.mode == Mode::Serving {
            log::error!("the parent process has ended, and so does this server");
            self.shut_down();
        }
    }

    /// Shuts down gracefully, without a successor.
    pub(super) fn shut_down(&mut self) {
        self.cancel_successor();
        self.service_manager.notify_stopping();
        self.drain();
    }

    /// Closes the listener and asks all workers to leave after their checkouts.
    pub(super) fn drain(&mut self) {
        log::info!(name = self.options.name, workers = self.children.len(), "shutting down");
        self.listener = None;
        self.handshakes.close_all();
        self.queue.close_all();
        self.mode = Mode::Draining(self.options.shutdown_grace.after(Instant::now()));
        for child in self.children.values_mut() {
            child.retire(Retirement::Shutdown);
        }
    }

    /// Kills all workers.
    pub(super) fn kill_all(&mut self, reason: &str) {
        if self.mode != Mode::Killing {
            self.killed = self.children.len();
        }
        self.mode = Mode::Killing;
        for child in self.children.values_mut() {
            child.kill(reason);
        }
    }
}
