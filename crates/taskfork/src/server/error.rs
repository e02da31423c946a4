//! The errors of starting and running a server.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use taskfork_sandbox::PrepareError;

use super::process::describe_end;
use crate::address::AddressError;
use crate::display::{debug_as_text, seconds};
use crate::error::{End, Failure};

/// The error of starting or running a server.
///
/// [`source`](std::error::Error::source) returns the cause, where there is one: the system's error, or
/// the error of the server's own process. `Debug` writes the text and all causes, because a `main` that
/// returns an error prints it by `Debug`.
///
/// ```
/// use taskfork::{Server, ServerError, Methods};
///
/// fn main() -> Result<(), ServerError> {
///     let server = Server::builder().max_workers(0).interface(Methods::<()>::new());
///     match server.check() {
///         Err(ServerError::Option { option, .. }) => assert_eq!(option, "max_workers"),
///         other => other?,
///     }
///     Ok(())
/// }
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// [`run`](crate::Server::run) was called without an address to listen at.
    #[error(
        "the server has no address: set one with `listen`, as in listen(\"unix:/run/app.sock\")"
    )]
    NoAddress,
    /// The address is invalid.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Another server listens at the address.
    #[error("another server is listening at {address}: stop it first, or choose another address")]
    InUse {
        /// The address.
        address: String,
    },
    /// A file that is not a socket exists at the path.
    #[error("{} exists and is no socket: remove it, or choose another path", path.display())]
    NotASocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The folder of the socket cannot be used.
    #[error("the folder {} of the socket cannot be used: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A socket of another user exists at the path, and no server listens at it.
    #[error(
        "{} is a socket of the user {user}, who may come back to it: remove it, or choose another path",
        path.display()
    )]
    Foreign {
        /// The path of the socket.
        path: PathBuf,
        /// The id of the user.
        user: u32,
    },
    /// The lock file, which keeps two servers from starting at one path, cannot be used.
    #[error(
        "the lock file {} cannot be used: {source}: remove it if it is nobody's, or choose a path in a \
         folder of your own",
        path.display()
    )]
    Lock {
        /// The file.
        path: PathBuf,
        /// The system's error, or what is wrong with the file.
        source: io::Error,
    },
    /// The system refused the address.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// Other machines can reach the address, and
    /// [`allow_unauthenticated_network`](crate::ServerBuilder::allow_unauthenticated_network) is
    /// not set.
    #[error(
        "other machines can reach {address}, where whoever connects could run every method: listen \
         on a loopback address or a unix socket, or set `allow_unauthenticated_network` if all that \
         can reach it may"
    )]
    Network {
        /// The address.
        address: String,
    },
    /// The inherited descriptor is not a listening socket.
    #[error("the inherited descriptor {descriptor} is no listening socket: {source}")]
    Inherited {
        /// The number of the descriptor.
        descriptor: i32,
        /// The system's error, or what is wrong with the descriptor.
        source: io::Error,
    },
    /// The process has several threads, so it cannot be forked.
    #[error(
        "this process has {threads} threads and cannot fork workers: start the server before any \
         thread, or have `Server::spawn` start it in a process of its own (in a test, with \
         `taskfork::test_support!`)"
    )]
    Threads {
        /// The number of threads.
        threads: u64,
    },
    /// An option has an invalid value.
    #[error("the option `{option}` cannot be so: {reason}")]
    Option {
        /// The name of the option.
        option: &'static str,
        /// What is wrong with its value.
        reason: String,
        /// The system's error, if the system has refused the value.
        source: Option<io::Error>,
    },
    /// The [`sandbox`](crate::ServerBuilder::sandbox) of workers cannot be had on this machine.
    #[error("the sandbox of workers cannot be prepared: {source}")]
    Sandbox {
        /// What the kernel lacks, or which path cannot be opened.
        source: PrepareError,
    },
    /// [`preload`](crate::ServerBuilder::preload) failed.
    #[error("cannot preload: {0}")]
    Preload(#[source] Failure),
    /// [`Server::spawn`](crate::Server::spawn) was called before [`init`](crate::init).
    #[error(
        "cannot start the server `{name}` by executing this program again: the first line of \
         `main` must be `taskfork::init(&[(\"{name}\", …)]);`, before the runtime starts. Tests have \
         no `main`: write `taskfork::test_support!((\"{name}\", …));` into a module of the test"
    )]
    NotInitialised {
        /// The name of the server.
        name: String,
    },
    /// [`init`](crate::init) was called when the process had threads already.
    #[error(
        "`taskfork::init` was called when this process had threads already: make it the first line \
         of a `fn main` that is not async, and start the runtime after it. Tests have no `main`: use \
         `taskfork::test_support!` instead"
    )]
    InitialisedLate,
    /// [`init`](crate::init) was not given a server of this name.
    #[error("`taskfork::init` knows no server `{name}`: it was given {}", known.join(", "))]
    UnknownEntry {
        /// The requested name.
        name: String,
        /// The names that `init` was given.
        known: Vec<String>,
    },
    /// Two uses of [`test_support!`](crate::test_support) in one test program have a server of this name.
    #[error(
        "`taskfork::test_support!` has a server `{name}` in {} of this program: give each a name of its own",
        modules.join(" and in ")
    )]
    AmbiguousEntry {
        /// The name of the servers.
        name: String,
        /// The modules that have it, in alphabetical order.
        modules: Vec<String>,
    },
    /// [`Spawn::config`](crate::server::Spawn::config) was given a value that cannot be serialized.
    #[error("the configuration of the server `{name}` cannot be passed: {source}")]
    UnencodableConfig {
        /// The name of the server.
        name: String,
        /// What cannot be serialized.
        source: Failure,
    },
    /// [`ServerBuilder::config`](crate::ServerBuilder::config) was called in a server that was
    /// started without a configuration.
    #[error(
        "this server has been started without a configuration: start it by `Server::spawn_with`, or do not call \
         `config`"
    )]
    NotConfigured,
    /// The configuration does not decode as the type that the server expects.
    #[error(
        "the server expects a configuration of the type {expected}, and was given another: {source}"
    )]
    Misconfigured {
        /// The name of the type.
        expected: String,
        /// What does not fit the type.
        source: Failure,
    },
    /// The new process ended before it called [`init`](crate::init).
    #[error(
        "cannot start the server `{name}` by executing this program again: {}{}",
        early_end(*end, output),
        output_lines(output)
    )]
    NeverInitialised {
        /// The name of the server.
        name: String,
        /// How the process ended.
        end: End,
        /// The end of its standard output and standard error, up to 4 KiB.
        output: String,
    },
    /// The new process took longer than its [`start_timeout`](crate::server::Spawn::start_timeout), and was killed.
    #[error(
        "the server `{name}` did not start within {} (start_timeout): {process} {}{}",
        seconds(*after),
        if *initialised {
            "has called `taskfork::init`, and the server does not serve yet: raise `start_timeout` if it \
             loads something for long"
        } else {
            "has not called `taskfork::init`, which must be the first line of `main`"
        },
        output_lines(output)
    )]
    StartTimedOut {
        /// The name of the server.
        name: String,
        /// The time limit.
        after: Duration,
        /// The process: its id, command line and state at that time.
        process: String,
        /// Whether the process had called `init`.
        initialised: bool,
        /// The end of its standard output and standard error before `init`, up to 4 KiB.
        output: String,
    },
    /// The process of the server did not become ready.
    #[error("the server did not start: {source}")]
    Startup {
        /// The error that it reported, with its causes.
        source: Failure,
    },
    /// The server has shut down, but had to kill workers: its
    /// [`shutdown_grace`](crate::ServerBuilder::shutdown_grace) was over, or a second signal came.
    #[error("the server has ended, and had to kill {workers} of its workers")]
    Killed {
        /// The number of killed workers.
        workers: usize,
    },
    /// The server process of [`keep_pid`](crate::ServerBuilder::keep_pid) has died, and no other
    /// server has taken over.
    #[error("the server process {pid} {end}")]
    Died {
        /// The process id.
        pid: u32,
        /// How the process ended.
        end: End,
    },
    /// A system call failed unexpectedly.
    #[error("{what}: {source}")]
    System {
        /// What the server tried to do.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

debug_as_text!(ServerError);

impl ServerError {
    /// The error of an option whose value is wrong in itself.
    pub(crate) fn option(option: &'static str, reason: impl Into<String>) -> Self {
        Self::Option { option, reason: reason.into(), source: None }
    }

    /// The error of a server's process that ended, or was ended, before it was ready.
    pub(super) fn startup(message: impl Into<String>) -> Self {
        Self::Startup { source: Failure::new(message) }
    }

    /// Returns a function for `map_err` that adds what was tried.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, source: error.into() }
    }
}

/// Why a process ended before it called `init`, as far as its output shows.
fn early_end(end: End, output: &str) -> String {
    let why = match output.to_lowercase().contains("usage") {
        true => {
            "an argument parser before that line has ended it, as the new process has no arguments"
        }
        false => "nothing that can end the process may stand before that line",
    };
    format!(
        "the new process {} before it called `taskfork::init`, which must be the first line of `main`: {why}",
        describe_end(end)
    )
}

/// The output of a process, as it is shown below an error.
fn output_lines(output: &str) -> String {
    let text = log_defer::printable_lines(output.trim_end());
    let lines = text.lines().map(|line| format!("\n    {line}")).collect::<String>();
    if lines.is_empty() { lines } else { format!("; it wrote:{lines}") }
}
