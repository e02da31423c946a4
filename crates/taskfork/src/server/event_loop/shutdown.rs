//! Requests of the program that started the server, and the beginning of a shutdown.

use rustix::event::epoll;

use super::EventLoop;
use crate::clock::now;
use crate::server::access::Origin;
use crate::server::control::ControlRequest;
use crate::server::log;
use crate::server::parent::Parent;

impl EventLoop {
    /// Handles a request of the program that started this server.
    pub(super) fn handle_control(&mut self) {
        let Some(control) = &self.options.control else { return };
        match control.next_request() {
            Ok(Some(ControlRequest::Connection(connection))) if self.supervisor.is_serving() => {
                self.admit(connection, Origin::Local);
            }
            Ok(None | Some(ControlRequest::Connection(_))) => {}
            Ok(Some(ControlRequest::Status(connection))) => self.add_status_request(connection),
            Ok(Some(ControlRequest::Shutdown)) => {
                self.close_control();
                self.supervisor.handle_control_end(now());
            }
            Err(error) => {
                log::error!("the control channel to the program failed: {error}");
                self.close_control();
                self.supervisor.handle_control_end(now());
            }
        }
    }

    fn close_control(&mut self) {
        if let Some(control) = self.options.control.take() {
            let _ = epoll::delete(&self.process.epoll, &control);
        }
    }

    /// The parent process was killed, and can forward no request to end any more.
    pub(super) fn handle_parent_exit(&mut self) {
        if let Some(channel) = self.options.parent.as_ref().and_then(Parent::channel) {
            let _ = epoll::delete(&self.process.epoll, channel);
        }
        if self.supervisor.is_serving() {
            log::error!("the parent process has ended, and so does this server");
        }
        self.supervisor.handle_parent_exit(now());
    }

    /// Closes everything through which new work comes.
    pub(super) fn close_connections(&mut self) {
        log::info!(name = self.options.name, workers = self.children.len(), "shutting down");
        self.connections.listener = None;
        self.connections.handshakes.close_all();
        self.connections.waiting.close_all();
    }
}
