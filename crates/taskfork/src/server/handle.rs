//! A program's hold on a server that it started.

use std::io;

use super::error::ServerError;
use super::launch::{Launch, RunningServer};
use super::spawned_server::SpawnedServer;
use super::status::ServerStatus;
use crate::address::{Address, Place};
use crate::error::End;

/// A server in a process of its own, started by [`Server::spawn`](crate::Server::spawn) or
/// [`Server::fork`](crate::Server::fork).
///
/// Dropping the handle shuts the server down gracefully without waiting for it. The server also
/// shuts down when this program ends, however it ends.
///
/// A server that dies is replaced, if [`Server::spawn`](crate::Server::spawn) started it and
/// [`respawn`](crate::server::Spawn::respawn) is not off. Otherwise the clients of this program know: their calls fail at once with
/// [`FatalError::ServerEnded`](crate::error::FatalError::ServerEnded), which says how the server ended.
///
/// Once this program has another thread or builds a client of the server, a thread named `taskfork-server` takes the
/// server's exit status and replaces it. Without that thread the exit status is taken when the handle is asked.
#[derive(Debug)]
pub struct ServerHandle {
    server: SpawnedServer,
}

impl ServerHandle {
    /// Of a server that serves.
    pub(crate) fn new(started: RunningServer, launch: Option<Launch>) -> Result<Self, ServerError> {
        Ok(Self { server: SpawnedServer::new(started, launch)? })
    }

    /// The server's process id; that of the replacement, once there is one.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Where clients reach the server: the address that it listens on, with the port that the
    /// kernel chose, or, without one, a way through this handle that no other process has. It stays the same
    /// when the server is replaced.
    pub fn address(&self) -> Address {
        self.server.address().unwrap_or_else(|| Address(Place::Handle(self.server.clone())))
    }

    /// Whether the server's process runs. False while a dead one is being replaced.
    ///
    /// ```no_run
    /// # fn example(server: taskfork::server::ServerHandle) {
    /// if !server.is_alive() {
    ///     println!("the server is down");
    /// }
    /// # }
    /// ```
    pub fn is_alive(&self) -> bool {
        self.server.is_alive()
    }

    /// Waits, blocking, until the server has ended and will not be replaced; says how it ended. That is when it was
    /// shut down, by this handle or by a signal, or when it died and [`respawn`](crate::server::Spawn::respawn) is off.
    ///
    /// ```no_run
    /// use taskfork::server::Spawn;
    /// use taskfork::ServerError;
    ///
    /// # fn example() -> Result<(), ServerError> {
    /// let server = Spawn::new("adder").respawn(false).start()?;
    /// println!("the server {}", server.wait());
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(&self) -> End {
        self.server.wait()
    }

    /// What the server tells of itself and its workers. Needs no status socket. Blocks until the server has
    /// answered, for 10 seconds at most.
    ///
    /// # Errors
    /// When the server has ended, is being replaced, or does not answer in time.
    ///
    /// ```no_run
    /// # fn example(server: taskfork::server::ServerHandle) -> std::io::Result<()> {
    /// println!("{} workers", server.status()?.workers.len());
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(&self) -> io::Result<ServerStatus> {
        ServerStatus::request_on(self.server.connect_status()?.into(), "")
    }

    /// Asks the server to stop accepting, finish what runs and end. Does not wait. The server is not replaced.
    pub fn shutdown(&self) {
        self.server.shut_down();
    }

    /// Shuts the server down gracefully and waits, blocking, until its process and all its workers
    /// have ended.
    pub fn close(self) {
        self.server.shut_down();
        self.server.wait();
    }

    /// Kills the server at once, and its workers with it, and waits for its end. The server is not replaced.
    pub fn kill(self) {
        self.server.kill();
        self.server.wait();
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.server.release();
    }
}
