//! Workers that are programs in any language.
//!
//! The forked worker starts the program, passes it one end of a socket pair, and acts as its client. To
//! the server and to the real client, it is a worker like any other: it has a slot of the scoreboard,
//! deadlines and limits. It exits as the program exits.

mod input;
mod items;
mod program;
mod translate;

use std::ffi::OsString;
use std::io;
use std::process::Command;

pub(crate) use program::Program;
use rustix::io::Errno;

use super::WorkerSandbox;
use super::inherited_state::{STATE_VARIABLE, VERSION, version_error};
use super::interface::{Interface, Reply, Request};
use super::takeover::NOT_IN_PLACE;
use super::telemetry;
use crate::context::context;
use crate::error::BoxError;
use crate::sys;
use crate::wire::Protocol;
use crate::wire::frame::{DEFAULT_MAX_BLOB, DEFAULT_MAX_FRAME};

/// The environment variable with the number of the program's descriptor.
const FD_VARIABLE: &str = "TASKFORK_FD";

/// The environment variables with the path of the program's scratch directory. Libraries look for the
/// first.
const SCRATCH_VARIABLES: [&str; 2] = ["TMPDIR", "TASKFORK_SCRATCH"];

/// A program that serves as worker, for [`ServerBuilder::executable`](crate::ServerBuilder::executable).
///
/// Each worker starts the program once, in the worker's process group and with its limits. The
/// environment variable `TASKFORK_FD` contains the number of a descriptor, which is one end of a stream
/// socket. The program speaks the worker's side of the [native protocol](Protocol::Native) there, or of
/// [JSON](Protocol::Perl) if [`protocol`](Self::protocol) says so. Clients may speak either protocol.
///
/// A program with the package `taskfork` for Python serves its client itself, and no process stands in between. The first
/// one of a server is started once more for that, in the place of the worker.
///
/// The program starts with SIGTERM, SIGINT, SIGHUP, SIGQUIT and SIGTTOU ignored. Runtimes that reset
/// this, such as those of Node and Go, should ignore them again. When the worker ends, it closes the
/// socket, and kills the program after one second.
///
/// A program that cannot be started, or that fails the handshake, is an error of `setup`, which the
/// first call returns. The worker exits with the status or the signal of its program.
///
/// ```no_run
/// use taskfork::worker::Executable;
/// use taskfork::Server;
///
/// # fn main() -> Result<(), taskfork::ServerError> {
/// Server::builder()
///     .listen("unix:/run/pictures.sock")
///     .executable(Executable::new("python3").arg("pictures.py"))
///     .run()
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a program is started when it is passed to `ServerBuilder::executable`"]
pub struct Executable {
    program: OsString,
    args: Vec<OsString>,
    protocol: Protocol,
    name: String,
    max_frame: usize,
    max_blob: usize,
}

impl Executable {
    /// A program without arguments, which speaks the native protocol. A name without a slash is searched
    /// for in `PATH`.
    ///
    /// ```
    /// use taskfork::worker::Executable;
    ///
    /// let executable = Executable::new("/usr/local/bin/pictures");
    /// # let _ = executable;
    /// ```
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            protocol: Protocol::Native,
            name: String::new(),
            max_frame: DEFAULT_MAX_FRAME,
            max_blob: DEFAULT_MAX_BLOB,
        }
    }

    /// Adds an argument. No shell interprets it.
    ///
    /// ```
    /// use taskfork::worker::Executable;
    ///
    /// let executable = Executable::new("node").arg("pictures.js").arg("--verbose");
    /// # let _ = executable;
    /// ```
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets the protocol that the program speaks. Defaults to [`Protocol::Native`].
    ///
    /// ```
    /// use taskfork::client::Protocol;
    /// use taskfork::worker::Executable;
    ///
    /// let executable = Executable::new("perl").arg("pictures.pl").protocol(Protocol::Perl);
    /// # let _ = executable;
    /// ```
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Sets what the server's options determine: its name, and the maximum lengths of a message and of a
    /// blob in bytes.
    pub(crate) fn with_options(self, name: &str, max_frame: usize, max_blob: usize) -> Self {
        Self { name: name.to_owned(), max_frame, max_blob, ..self }
    }

    /// The interface of a server whose workers are this program.
    pub(crate) fn interface(&self) -> ProgramInterface {
        ProgramInterface { protocol: self.protocol }
    }

    /// Whether the program may say that it serves the connection itself.
    pub(crate) fn may_take_over(&self) -> bool {
        self.protocol == Protocol::Native
    }

    /// Starts the program, under this sandbox.
    pub(crate) fn start(&self, sandbox: Option<&WorkerSandbox>) -> Result<Made<Program>, BoxError> {
        let program = Program::start(self, sandbox)?;
        match program.takes_over() {
            None => Ok(Made::State(program)),
            Some(VERSION) if !program.is_in_place() => Err(NOT_IN_PLACE.into()),
            Some(VERSION) => {
                // It ends, and no later notice names it.
                drop(program);
                telemetry::set_program(0);
                Ok(Made::TakesOver)
            }
            Some(other) => Err(version_error(other).into()),
        }
    }

    /// The command that executes the program under this sandbox.
    pub(super) fn command(&self, sandbox: Option<&WorkerSandbox>) -> Command {
        let mut command = Command::new(&self.program);
        // The server may come from a program itself.
        command.args(&self.args).env_remove(FD_VARIABLE).env_remove(STATE_VARIABLE);
        let scratch = context().scratch();
        if let Some(scratch) = scratch {
            command.envs(SCRATCH_VARIABLES.map(|name| (name, scratch)));
        }
        if let Some(sandbox) = sandbox {
            let prepared = sandbox.prepared.clone();
            sys::before_exec(&mut command, move || {
                prepared.apply(scratch).map_err(|error| {
                    // Only a number of an error reaches the worker.
                    eprintln!("this program cannot be confined: {error}");
                    io::Error::from_raw_os_error(Errno::PERM.raw_os_error())
                })
            });
        }
        command
    }

    /// Why the program cannot be started under this sandbox.
    pub(super) fn start_error(
        &self,
        error: &io::Error,
        sandbox: Option<&WorkerSandbox>,
    ) -> BoxError {
        let forbidden = error.kind() == io::ErrorKind::PermissionDenied && sandbox.is_some();
        let hint = if forbidden { ": its sandbox may have to open it with `execute`" } else { "" };
        format!("cannot start the program {}: {error}{hint}", self.program.display()).into()
    }
}

/// What `setup` has made.
pub(crate) enum Made<S> {
    State(S),
    /// Nothing: the program has ended again, because it can serve the connection itself in the place of this process.
    TakesOver,
}

/// Passes calls on to the program.
pub(crate) struct ProgramInterface {
    protocol: Protocol,
}

impl Interface<Program> for ProgramInterface {
    fn call(&self, program: &mut Program, request: Request<'_>) -> Reply {
        program.call(request)
    }

    fn on_answer_sent(&self) {
        sys::defer_mirroring(false);
    }

    /// The program knows which of its methods stream, and answers calls of others with an error.
    fn streams(&self, _method: Option<&str>, _interface: Option<&str>) -> bool {
        true
    }

    /// As for [`streams`](Self::streams).
    fn takes_input(&self, _method: Option<&str>, _interface: Option<&str>) -> bool {
        true
    }

    fn returns_json(&self) -> bool {
        self.protocol == Protocol::Perl
    }

    /// The arguments travel on to another process, which does not map the client's memory.
    fn accepts_shared_memory(&self) -> bool {
        false
    }
}
