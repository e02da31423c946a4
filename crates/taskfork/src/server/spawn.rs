//! Starting a server by executing this program again: the options, and the checks before.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::entry;
use super::error::ServerError;
use super::handle::ServerHandle;
use super::launch::Launch;
use super::run::Server;
use crate::error::Failure;
use crate::wire::values::encode_to_vec;

/// The default of [`Spawn::start_timeout`].
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts a server of [`init`](crate::init) in a process of its own, with options.
/// [`Server::spawn`] and [`Server::spawn_with`] do the same with the defaults.
///
/// ```no_run
/// use std::time::Duration;
/// use taskfork::server::Spawn;
///
/// # fn example() -> Result<(), taskfork::ServerError> {
/// let server = Spawn::new("adder")
///     .config(&vec!["first", "second"])
///     .start_timeout(Duration::from_secs(300))
///     .respawn(false)
///     .start()?;
/// println!("the server's pid is {}", server.pid());
/// # Ok(())
/// # }
/// ```
///
/// # The new process
///
/// It executes the same file as this program, without arguments.
///
/// | | |
/// |---|---|
/// | environment, working directory | those of this program when the server is first started; a replacement has the same |
/// | standard output, standard error | those of this program. Output before `init` is held back until `init` is reached. If it is not reached, the output is part of the error |
/// | standard input | `/dev/null` |
/// | other descriptors | those without `FD_CLOEXEC`. Everything that the standard library and this crate open has it |
/// | ignored and blocked signals | those of the calling thread. Signals with handlers, and SIGPIPE, have their default action |
/// | limits (`ulimit`), niceness, umask, user, groups, control group | those of this program |
/// | process group | its own, so that Ctrl-C at a terminal reaches only this program |
#[derive(Clone)]
#[must_use = "a server is started by `start`"]
pub struct Spawn {
    name: String,
    config: Option<Result<Vec<u8>, Failure>>,
    start_timeout: Option<Duration>,
    respawn: bool,
}

impl Spawn {
    /// Describes the server that [`init`](crate::init) knows by this name, with every option at its
    /// default.
    ///
    /// ```no_run
    /// let server = taskfork::server::Spawn::new("adder").start()?;
    /// # Ok::<(), taskfork::ServerError>(())
    /// ```
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), config: None, start_timeout: Some(START_TIMEOUT), respawn: true }
    }

    /// Sets the server's configuration: any value that serde can serialize, of any size. Defaults
    /// to none. The server reads it with [`ServerBuilder::config`](crate::ServerBuilder::config). A
    /// replacement gets the same configuration.
    ///
    /// A value that cannot be serialized is an error of [`start`](Self::start).
    ///
    /// ```
    /// let spawn = taskfork::server::Spawn::new("adder").config(&("/srv/data", 2));
    /// # let _ = spawn;
    /// ```
    pub fn config<T: Serialize + ?Sized>(mut self, config: &T) -> Self {
        self.config = Some(encode_to_vec(config).map_err(|error| Failure::of(&error)));
        self
    }

    /// Sets how long the new process may take until the server is ready, including its preload. A
    /// process that takes longer is killed. Defaults to 30 seconds. `None` means no limit.
    ///
    /// ```
    /// use std::time::Duration;
    /// use taskfork::server::Spawn;
    ///
    /// let spawn = Spawn::new("adder").start_timeout(Duration::from_secs(300));
    /// # let _ = spawn;
    /// ```
    pub fn start_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.start_timeout = timeout.into();
        self
    }

    /// Sets whether a server that dies is replaced. Defaults to true.
    ///
    /// A server dies if a signal kills it, or if it exits with a status other than 0. A server that
    /// shuts down on request does not die. The running calls of a dead server fail. Checkouts that
    /// wait for a worker keep waiting, and the new server serves them at the same address.
    ///
    /// A server that ran for at least 10 seconds is replaced at once. Otherwise the program waits
    /// first: 100 milliseconds, doubled each time, up to 10 seconds. The number of attempts is not
    /// limited.
    ///
    /// ```
    /// let spawn = taskfork::server::Spawn::new("adder").respawn(false);
    /// # let _ = spawn;
    /// ```
    pub fn respawn(mut self, respawn: bool) -> Self {
        self.respawn = respawn;
        self
    }

    /// Starts the server. It works with any number of threads and with any runtime.
    ///
    /// Blocks until the server is ready, usually for some milliseconds, and at most for the
    /// [`start_timeout`](Self::start_timeout).
    ///
    /// # Errors
    ///
    /// * [`ServerError::NotInitialised`], [`ServerError::InitialisedLate`] or
    ///   [`ServerError::UnknownEntry`] if the call of `init` is missing, comes too late, or does
    ///   not know the name.
    /// * [`ServerError::UnencodableConfig`] or [`ServerError::Misconfigured`] if the configuration
    ///   cannot be serialized, or does not decode as the type that the server expects.
    /// * [`ServerError::NeverInitialised`] if the new process ended before it called `init`.
    /// * [`ServerError::StartTimedOut`] if it took too long.
    /// * [`ServerError::Startup`] with the server's own error.
    ///
    /// ```no_run
    /// use taskfork::ServerError;
    /// use taskfork::server::Spawn;
    ///
    /// match Spawn::new("adder").start() {
    ///     Ok(server) => println!("process {} serves", server.pid()),
    ///     Err(ServerError::Startup { source }) => println!("the server's own error: {source}"),
    ///     Err(error) => println!("{error}"),
    /// }
    /// ```
    pub fn start(self) -> Result<ServerHandle, ServerError> {
        entry::check(&self.name)?;
        let name = &self.name;
        let config = self.config.transpose();
        let config = config
            .map_err(|source| ServerError::UnencodableConfig { name: name.clone(), source })?;
        let launch = Launch::new(self.name, config, self.start_timeout);
        let started = launch.start(None, &|| false)?;
        ServerHandle::new(started, self.respawn.then_some(launch))
    }
}

/// The configuration is left out because it may contain secrets.
impl fmt::Debug for Spawn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Spawn")
            .field("name", &self.name)
            .field("start_timeout", &self.start_timeout)
            .field("respawn", &self.respawn)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Starts the server `name` of [`init`](crate::init) in a process of its own, by executing this
    /// program again. It works with any number of threads and with any runtime. A server that dies
    /// is replaced.
    ///
    /// Blocks until the server is ready, usually for some milliseconds, and at most for 30 seconds.
    /// [`Spawn`] has options for both, and describes the new process.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Spawn::start`].
    ///
    /// ```no_run
    /// let server = taskfork::Server::spawn("adder")?;
    /// println!("clients connect to {}", server.address());
    /// # Ok::<(), taskfork::ServerError>(())
    /// ```
    pub fn spawn(name: &str) -> Result<ServerHandle, ServerError> {
        Spawn::new(name).start()
    }

    /// Starts a server as [`spawn`](Self::spawn) does, with a configuration: any value that serde
    /// can serialize, of any size. The server reads it with
    /// [`ServerBuilder::config`](crate::ServerBuilder::config).
    ///
    /// ```no_run
    /// use serde::{Deserialize, Serialize};
    /// use taskfork::{Methods, Server, ServerBuilder, ServerError};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Config {
    ///     database: String,
    ///     spare_workers: usize,
    /// }
    ///
    /// fn queries(server: ServerBuilder) -> Result<(), ServerError> {
    ///     let Config { database, spare_workers } = server.config()?;
    ///     let name = Methods::new().function("database", move || Ok(database.clone()));
    ///     server.spare_workers(spare_workers).interface(name).run()
    /// }
    ///
    /// fn main() -> Result<(), ServerError> {
    ///     taskfork::init(&[("queries", queries)]);
    ///     let config = Config { database: "/srv/data".to_owned(), spare_workers: 2 };
    ///     let server = Server::spawn_with("queries", &config)?;
    ///     server.close();
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Spawn::start`].
    pub fn spawn_with<T: Serialize + ?Sized>(
        name: &str,
        config: &T,
    ) -> Result<ServerHandle, ServerError> {
        Spawn::new(name).config(config).start()
    }
}
