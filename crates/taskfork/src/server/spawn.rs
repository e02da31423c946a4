//! StartingProcess a server by executing this program again: its options, and what is checked first.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::entry;
use super::error::ServerError;
use super::handle::ServerHandle;
use super::launch::Launch;
use super::run::Server;
use crate::wire::values::encode_to_vec;

/// How long a new server may take to start, unless [`Spawn::start_timeout`] is set.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The options with which a program starts one of the servers of [`init`](crate::init) in a process of its own.
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
/// # What the new process has
///
/// It executes the same file as this program, without arguments.
///
/// | | |
/// |---|---|
/// | environment, working directory | as they are when the server is first started; a replacement has the same |
/// | standard output, standard error | this program's; what is written before `init` is held back until `init` is reached, or is part of the error |
/// | standard input | `/dev/null` |
/// | other descriptors | those without `FD_CLOEXEC`; everything that the standard library and this crate open has it |
/// | signals that are ignored or blocked | as in the calling thread; those with handlers have their default action, as has SIGPIPE |
/// | limits (`ulimit`), niceness, umask, user, groups, control group | this program's |
/// | process group | one of its own, so that Ctrl-C at a terminal reaches this program only |
#[derive(Clone)]
#[must_use = "a server is started by `start`"]
pub struct Spawn {
    name: String,
    config: Option<Result<Vec<u8>, String>>,
    start_timeout: Option<Duration>,
    respawn: bool,
}

impl Spawn {
    /// The server that [`init`](crate::init) knows by this name, with every option at its default.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), config: None, start_timeout: Some(START_TIMEOUT), respawn: true }
    }

    /// The server's configuration: any value that serde can serialize, of any size. The server takes it by
    /// [`ServerBuilder::config`](crate::ServerBuilder::config). None unless set. A replacement gets the same.
    pub fn config<T: Serialize + ?Sized>(mut self, config: &T) -> Self {
        self.config = Some(encode_to_vec(config).map_err(|error| error.to_string()));
        self
    }

    /// How long the new process may take until it serves, what it preloads included: 30 seconds unless set, `None`
    /// for no limit. A process that takes longer is killed.
    pub fn start_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.start_timeout = timeout.into();
        self
    }

    /// Whether a server that dies is replaced: it is unless this is set to false.
    ///
    /// A server dies if a signal kills it or if it exits with another status than 0; one that was told to shut down
    /// has ended. Its running calls get their errors. Checkouts that wait for a worker keep waiting and are served
    /// by the new server, at the same address. A server that ran for at least 10 seconds is replaced at once.
    /// Otherwise this program waits first: 100 milliseconds, then twice as long each time, up to 10 seconds. It
    /// tries again without end.
    pub fn respawn(mut self, respawn: bool) -> Self {
        self.respawn = respawn;
        self
    }

    /// Starts the server. Works whatever threads and runtimes this program has. Blocks until the server listens,
    /// which takes milliseconds as a rule, and at most the [`start_timeout`](Self::start_timeout).
    ///
    /// # Errors
    /// [`ServerError::NotInitialised`], [`ServerError::InitialisedLate`] and [`ServerError::UnknownEntry`] when the
    /// call of `init` is missing, late or does not know the name; [`ServerError::UnencodableConfig`] and
    /// [`ServerError::Misconfigured`] for a configuration that cannot be passed, or is not what the server
    /// expects; [`ServerError::NeverInitialised`] when the new process ended before it called `init`;
    /// [`ServerError::StartTimedOut`]; [`ServerError::Startup`] with the server's own error.
    pub fn start(self) -> Result<ServerHandle, ServerError> {
        entry::check(&self.name)?;
        let name = &self.name;
        let config = self.config.transpose();
        let config = config
            .map_err(|reason| ServerError::UnencodableConfig { name: name.clone(), reason })?;
        let launch = Launch::new(self.name, config, self.start_timeout);
        let started = launch.start(None, &|| false)?;
        ServerHandle::new(started, self.respawn.then_some(launch))
    }
}

/// Without the configuration, which may have secrets.
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
    /// Starts the server `name` of [`init`](crate::init) in a process of its own, by executing this program
    /// again. Works whatever threads and runtimes this program has. Blocks until the server listens, which takes
    /// milliseconds as a rule and at most 30 seconds. A server that dies is replaced. [`Spawn`] has options for
    /// both, and says what the new process has of this one.
    ///
    /// # Errors
    /// As for [`Spawn::start`].
    pub fn spawn(name: &str) -> Result<ServerHandle, ServerError> {
        Spawn::new(name).start()
    }

    /// The same with a configuration: any value that serde can serialize, of any size. The server takes it by
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
    /// As for [`Spawn::start`].
    pub fn spawn_with<T: Serialize + ?Sized>(
        name: &str,
        config: &T,
    ) -> Result<ServerHandle, ServerError> {
        Spawn::new(name).config(config).start()
    }
}
