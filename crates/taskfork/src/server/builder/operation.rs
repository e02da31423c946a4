//! The options of operation: name, status socket, standard error, shutdown and restart.

use std::path::PathBuf;
use std::time::Duration;

use super::super::status_socket::StatusSocket;
use super::super::stderr::Stderr;
use super::ServerBuilder;

impl<S> ServerBuilder<S> {
    /// Sets the name of the server in `ps` and in logs. Defaults to `taskfork`. The server's process
    /// is titled `taskfork-server:NAME`, and its workers are titled `taskfork-worker:NAME(1)` and so
    /// on.
    ///
    /// ```
    /// let server = taskfork::Server::builder().name("adder");
    /// # let _ = server;
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// Sets the path of the status socket, or `None` for no status socket. Defaults to the path of the
    /// listening unix socket with `.status` appended. Only the server's user may connect.
    ///
    /// A process that connects gets a [`ServerStatus`](crate::server::ServerStatus) as one line of
    /// JSON. The server answers after 20 milliseconds, or as soon as the peer has sent a line or shut
    /// down its sending side.
    ///
    /// A server on a service manager's socket puts its status socket into the runtime directory, as
    /// `NAME.status` with the server's [`name`](Self::name). The runtime directory is
    /// `RUNTIME_DIRECTORY`, else `XDG_RUNTIME_DIR`, else `/run` for root, else `/run/user/UID`. The
    /// server logs the path, or that there is none.
    ///
    /// A path that is set here and cannot be used is an error of [`run`](crate::Server::run). The
    /// default path is optional: the server logs a warning and runs without it.
    ///
    /// ```
    /// use std::path::PathBuf;
    ///
    /// let server = taskfork::Server::builder()
    ///     .listen("tcp:127.0.0.1:7000")
    ///     .status_socket(PathBuf::from("/run/adder.status"));
    /// # let _ = server;
    /// ```
    pub fn status_socket(mut self, path: impl Into<Option<PathBuf>>) -> Self {
        self.options.status = path.into().map_or(StatusSocket::Off, StatusSocket::At);
        self
    }

    /// Sets what happens to the standard error of workers. Defaults to [`Stderr::Capture`].
    ///
    /// ```
    /// use taskfork::Server;
    /// use taskfork::server::Stderr;
    ///
    /// let server = Server::builder().stderr(Stderr::Inherit);
    /// # let _ = server;
    /// ```
    pub fn stderr(mut self, stderr: Stderr) -> Self {
        self.options.stderr = stderr;
        self
    }

    /// Sets how long running checkouts may continue after a graceful shutdown has begun. Then their
    /// workers are killed. Defaults to 30 seconds. 0 kills them at once. 100 years and more mean no
    /// limit.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = taskfork::Server::builder().shutdown_grace(Duration::from_secs(5));
    /// # let _ = server;
    /// ```
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.options.shutdown_grace = grace.into();
        self
    }

    /// Sets whether SIGHUP restarts the server, see [`run`](crate::Server::run), or shuts it down
    /// gracefully. Defaults to a restart, unless the server has a controlling terminal: a terminal
    /// that closes sends SIGHUP too.
    ///
    /// A server that was started with SIGHUP ignored, as by `nohup`, ignores it in any case.
    ///
    /// ```
    /// let server = taskfork::Server::builder().restart_on_hangup(true);
    /// # let _ = server;
    /// ```
    pub fn restart_on_hangup(mut self, restart: impl Into<Option<bool>>) -> Self {
        self.options.restart_on_hangup = restart.into();
        self
    }

    /// Sets whether the process id stays the same over restarts, for Docker, supervisord and other
    /// service managers that identify a service by its process id. Defaults to false.
    ///
    /// [`run`](crate::Server::run) then forks the server and stays as its parent, without connections
    /// and without the server's preloaded data. The parent forwards SIGTERM, SIGINT and SIGHUP, and
    /// adopts the new server after a restart. `run` returns in the parent when the last server has
    /// ended. If the parent is killed, the server shuts down gracefully.
    ///
    /// The parent keeps running the version that was first started. A new version takes effect in the
    /// server and its workers.
    ///
    /// systemd does not need this option, because a new server reports its process id. With this
    /// option a service of type `notify` needs `NotifyAccess=all`. A server that
    /// [`Server::spawn`](crate::Server::spawn) or [`Server::fork`](crate::Server::fork) started does
    /// not restart, and ignores this option.
    ///
    /// `run` fails with [`ServerError::Died`](crate::ServerError::Died) if the last server died, and
    /// with [`ServerError::Startup`](crate::ServerError::Startup) if the first one could not start.
    ///
    /// ```no_run
    /// use taskfork::{Methods, Server};
    ///
    /// # fn main() -> Result<(), taskfork::ServerError> {
    /// Server::builder()
    ///     .listen("unix:/run/adder.sock")
    ///     .keep_pid(true)
    ///     .interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b)))
    ///     .run()
    /// # }
    /// ```
    pub fn keep_pid(mut self, keep: bool) -> Self {
        self.options.keep_pid = keep;
        self
    }
}
