//! The handle of a server that this program has started.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::error::ServerError;
use super::launch::Launch;
use super::spawned_server::SpawnedServer;
use super::starting_process::RunningServer;
use super::status::ServerStatus;
use crate::address::{Address, AddressKind, LocalServer};
use crate::error::End;

/// A server in a process of its own, started by [`Server::spawn`](crate::Server::spawn) or
/// [`Server::fork`](crate::Server::fork).
///
/// Dropping the handle shuts the server down gracefully, without waiting. The server also shuts
/// down when this program ends, even if it is killed.
///
/// A server that dies is replaced if [`Server::spawn`](crate::Server::spawn) started it and
/// [`respawn`](crate::server::Spawn::respawn) is not turned off. Otherwise the calls of this
/// program's clients fail at once with
/// [`FatalError::ServerEnded`](crate::error::FatalError::ServerEnded), which says how the server
/// ended. After a shutdown by the handle, or after it was dropped, calls that have no worker fail at once with
/// [`FatalError::ServerShutDown`](crate::error::FatalError::ServerShutDown).
///
/// A thread named `taskfork-server` reaps and replaces the server. It starts when this program has
/// another thread, or builds a client of the server. Without that thread, methods of the handle
/// reap the server.
#[must_use = "the server shuts down when its handle is dropped"]
pub struct ServerHandle {
    server: SpawnedServer,
}

impl ServerHandle {
    pub(crate) fn new(started: RunningServer, launch: Option<Launch>) -> Result<Self, ServerError> {
        Ok(Self { server: SpawnedServer::new(started, launch)? })
    }

    /// The server's process id. After a replacement, that of the new process.
    ///
    /// ```no_run
    /// # fn example(server: taskfork::server::ServerHandle) {
    /// println!("process {} listens at {}", server.pid(), server.address());
    /// # }
    /// ```
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The address by which clients reach the server. It stays the same when the server is
    /// replaced.
    ///
    /// This is the address that the server listens at, with the port that the kernel has chosen. A
    /// server without an address has one that only this process can use.
    ///
    /// ```no_run
    /// use taskfork::{Client, Server};
    ///
    /// # fn example() -> Result<(), taskfork::BoxError> {
    /// let server = Server::spawn("adder")?;
    /// let client = Client::builder().address(server.address()).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn address(&self) -> Address {
        self.server
            .address()
            .unwrap_or_else(|| Address(AddressKind::Spawned(Arc::new(self.server.clone()))))
    }

    /// Whether the server's process runs. False while a dead server is being replaced.
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

    /// Blocks until the server has ended and will not be replaced. Returns how it ended.
    ///
    /// A server ends for good when it is shut down, by this handle or by a signal, or when it dies
    /// and [`respawn`](crate::server::Spawn::respawn) is off.
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

    /// Reads the status of the server. It needs no status socket. Blocks for at most 10 seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if the server has ended, is being replaced, or does not answer in time.
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

    /// Asks the server to shut down gracefully. Does not wait. The server is not replaced. Calls that run may end;
    /// calls that have no worker fail with [`FatalError::ServerShutDown`](crate::error::FatalError::ServerShutDown).
    ///
    /// ```no_run
    /// # fn example(first: taskfork::server::ServerHandle, second: taskfork::server::ServerHandle) {
    /// // Both shut down at the same time.
    /// first.shutdown();
    /// second.shutdown();
    /// println!("the first server {}, the second {}", first.wait(), second.wait());
    /// # }
    /// ```
    pub fn shutdown(&self) {
        self.server.shut_down();
    }

    /// Shuts the server down gracefully. Blocks until its process and all its workers have ended.
    ///
    /// ```no_run
    /// # fn example(server: taskfork::server::ServerHandle) {
    /// server.close();
    /// // No process of the server is left.
    /// # }
    /// ```
    pub fn close(self) {
        self.server.shut_down();
        self.server.wait();
    }

    /// Kills the server and its workers at once. Blocks until the server has ended. It is not
    /// replaced.
    ///
    /// ```no_run
    /// # fn example(server: taskfork::server::ServerHandle) {
    /// server.kill();
    /// # }
    /// ```
    pub fn kill(self) {
        self.server.kill();
        self.server.wait();
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ServerHandle")
            .field("pid", &self.pid())
            .field("address", &self.server.address())
            .field("is_alive", &self.is_alive())
            .finish()
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.server.release();
    }
}
