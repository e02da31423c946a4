//! What can keep a server from starting.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::process::describe_end;
use crate::address::AddressError;
use crate::display::{debug_as_text, seconds};
use crate::error::{End, Failure};

/// Why a server did not start, or stopped in a way it was not told to.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// [`run`](crate::Server::run) was called without an address to listen on.
    #[error(
        "the server has no address: set one with `listen`, as in listen(\"unix:/run/app.sock\")"
    )]
    NoAddress,
    /// The address given is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Another server answers there.
    #[error("another server is listening at {address}: stop it first, or choose another address")]
    InUse {
        /// The address.
        address: String,
    },
    /// Something that is no socket is in the way.
    #[error("{} exists and is no socket: remove it, or choose another path", path.display())]
    NotASocket {
        /// The path of the socket to be.
        path: PathBuf,
    },
    /// The folder that the socket is to be in cannot be used.
    #[error("the folder {} of the socket cannot be used: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A socket without a server, of another user, is in the way.
    #[error(
        "{} is a socket of the user {user}, who may come back to it: remove it, or choose another path",
        path.display()
    )]
    Foreign {
        /// The path of the socket to be.
        path: PathBuf,
        /// The user's id.
        user: u32,
    },
    /// The file that keeps two servers from starting at one path cannot be used.
    #[error(
        "the lock file {} cannot be used: {reason}: remove it if it is nobody's, or choose a path in a \
         folder of your own",
        path.display()
    )]
    Lock {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused the address.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// Other machines can reach the address, and
    /// [`allow_unauthenticated_network`](crate::ServerBuilder::allow_unauthenticated_network) is not
    /// set.
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
    #[error("the inherited descriptor {descriptor} is no listening socket: {reason}")]
    Inherited {
        /// Its number.
        descriptor: i32,
        /// What is wrong with it.
        reason: String,
    },
    /// The process has threads, so that it cannot be forked.
    #[error(
        "this process has {threads} threads and cannot fork workers: start the server before any \
         thread, or have `Server::spawn` start it in a process of its own"
    )]
    Threads {
        /// How many.
        threads: u64,
    },
    /// An option has a value that cannot be.
    #[error("the option `{option}` cannot be so: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// What [`preload`](crate::ServerBuilder::preload) was to load could not be loaded.
    #[error("cannot preload: {0}")]
    Preload(#[source] Failure),
    /// [`Server::spawn`](crate::Server::spawn) was called, and [`init`](crate::init) was not.
    #[error(
        "cannot start the server `{name}` by executing this program again: the first line of \
         `main` must be `taskfork::init(&[(\"{name}\", …)]);`, before the runtime starts"
    )]
    NotInitialised {
        /// The server that was to be started.
        name: String,
    },
    /// [`init`](crate::init) was called when there were threads already.
    #[error(
        "`taskfork::init` was called when this process had threads already: make it the first line \
         of a `fn main` that is not async, and start the runtime after it"
    )]
    InitialisedLate,
    /// [`init`](crate::init) was not given a server of this name.
    #[error("`taskfork::init` knows no server `{name}`: it was given {}", known.join(", "))]
    UnknownEntry {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// [`Spawn::config`](crate::server::Spawn::config) was given a value that cannot be serialized.
    #[error("the configuration of the server `{name}` cannot be passed: {reason}")]
    UnencodableConfig {
        /// The server that was to be started.
        name: String,
        /// What cannot be serialized.
        reason: String,
    },
    /// [`ServerBuilder::config`](crate::ServerBuilder::config) was called in a server that was started without one.
    #[error(
        "this server has been started without a configuration: start it by `Server::spawn_with`, or do not call \
         `config`"
    )]
    NotConfigured,
    /// The configuration is not of the type that the server expects.
    #[error(
        "the server expects a configuration of the type {expected}, and was given another: {reason}"
    )]
    Misconfigured {
        /// The type's name.
        expected: String,
        /// What does not fit.
        reason: String,
    },
    /// The new process ended before it called [`init`](crate::init).
    #[error(
        "cannot start the server `{name}` by executing this program again: {}{}",
        early_end(*end, output),
        output_lines(output)
    )]
    NeverInitialised {
        /// The server that was to be started.
        name: String,
        /// How the process ended.
        end: End,
        /// The last that it wrote to standard output and standard error, up to 4 KiB.
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
        /// The server that was to be started.
        name: String,
        /// The time that it had.
        after: Duration,
        /// Its process: id, command line and state, as they were then.
        process: String,
        /// Whether it had called `init`.
        initialised: bool,
        /// The last that it wrote to standard output and standard error before `init`, up to 4 KiB.
        output: String,
    },
    /// The server's process did not come up.
    #[error("the server did not start: {message}")]
    Startup {
        /// What it said before it ended.
        message: String,
    },
    /// The server has ended as it was told to, but not in peace: its
    /// [`shutdown_grace`](crate::ServerBuilder::shutdown_grace) was over, or it was told twice.
    #[error("the server has ended, and had to kill {workers} of its workers")]
    Killed {
        /// How many were killed.
        workers: usize,
    },
    /// The server's process has ended that [`keep_pid`](crate::ServerBuilder::keep_pid) had started, and no other has
    /// taken over.
    #[error("the server process {pid} {end}")]
    Died {
        /// Its process id.
        pid: u32,
        /// How it ended.
        end: End,
    },
    /// A system call failed that has no reason to.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

debug_as_text!(ServerError);

impl ServerError {
    /// For `map_err`: names what was tried.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, source: error.into() }
    }
}

/// Why a process ended before it called `init`, as far as its output tells.
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

/// What a process wrote, below the error.
fn output_lines(output: &str) -> String {
    let text = log_defer::printable_lines(output.trim_end());
    let lines = text.lines().map(|line| format!("\n    {line}")).collect::<String>();
    if lines.is_empty() { lines } else { format!("; it wrote:{lines}") }
}
