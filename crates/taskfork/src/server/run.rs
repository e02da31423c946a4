//! Running a server: from its options to the event loop, with the parent process of `keep_pid` and
//! the server that this one replaces.

use std::fmt;
use std::os::fd::OwnedFd;

use rustix::process::getpid;
use taskfork_sandbox::Level;

use super::error::ServerError;
use super::event_loop::{EventLoop, Program};
use super::handshakes::Handshakes;
use super::hangup::Hangup;
use super::huge_pages::use_huge_pages;
use super::log;
use super::options::{Options, PreloadFn};
use super::parent::{self, Parent};
use super::program_file;
use super::restart::{Inherited, Predecessor};
use super::signals::DeferredSignals;
use super::socket_file::Identity;
use crate::sys;
use crate::worker;

/// A server with all its options set, ready to [`run`](Self::run).
///
/// A server forks one worker process for each connection of a client. It must run in a process with
/// a single thread. [`Server::spawn`] and [`Server::fork`] start it in a process of its own, from
/// within a client's program.
///
/// ```no_run
/// use taskfork::{Methods, Server};
///
/// # fn main() -> Result<(), taskfork::ServerError> {
/// Server::builder()
///     .listen("unix:/run/adder.sock")
///     .name("adder")
///     .interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b)))
///     .run()
/// # }
/// ```
#[must_use = "a server is started by `run`"]
pub struct Server {
    pub(super) options: Options,
    pub(super) program: Program,
    pub(super) preload: Option<PreloadFn>,
}

impl Server {
    /// Serves until SIGTERM or SIGINT arrives, then shuts down gracefully.
    ///
    /// A graceful shutdown stops accepting connections, lets running checkouts finish within
    /// [`shutdown_grace`](crate::ServerBuilder::shutdown_grace), waits for every worker and removes
    /// the socket file. A second signal kills the workers at once. A signal that reaches both the
    /// server and its parent process, as from a terminal, counts once.
    ///
    /// # Signals
    ///
    /// | signal | effect |
    /// |---|---|
    /// | SIGTERM, SIGINT | graceful shutdown; the second one kills the workers |
    /// | SIGHUP | restart, see below |
    /// | SIGUSR1 | reopens the file of [`LogWriter::open`](crate::server::LogWriter::open) |
    /// | SIGUSR2 | logs the state of each worker |
    /// | SIGXFSZ, SIGPIPE | ignored while the server runs |
    ///
    /// Workers ignore SIGTERM, SIGINT, SIGHUP and SIGQUIT, because a service manager or a terminal
    /// sends these to all processes of a service, and a running call must not end by that. Code in a
    /// worker may install handlers. Programs that a worker starts inherit the ignored signals; see
    /// [`default_signals`](crate::worker::default_signals).
    ///
    /// # Restarts
    ///
    /// SIGHUP starts the program again with the same arguments, from the path by which it was first
    /// started, so that a new version takes over. The new server inherits the listener. Once it is
    /// ready, the old server shuts down gracefully. No connection is refused in between. A new
    /// server that is configured for another address opens that address, and the old server closes
    /// its own.
    ///
    /// If the file is missing or not executable, or if the new server ends before it is ready, the old
    /// server logs that and keeps serving. A second SIGHUP before the new server is ready
    /// replaces it by another one. A restart changes the process id, unless
    /// [`keep_pid`](crate::ServerBuilder::keep_pid) is set.
    ///
    /// SIGHUP is a graceful shutdown for a server with a controlling terminal (see
    /// [`restart_on_hangup`](crate::ServerBuilder::restart_on_hangup)) and for a server that
    /// [`Server::spawn`] or [`Server::fork`] started. A server that was started with SIGHUP ignored
    /// keeps ignoring it.
    ///
    /// # systemd
    ///
    /// Without [`listen`](crate::ServerBuilder::listen), the server listens on the first socket that
    /// the service manager passes to it. Further sockets are not passed to a new server at a restart.
    /// The server reports READY, STOPPING, MAINPID after a restart, and WATCHDOG if `WatchdogSec` is
    /// set. Workers do not inherit the variables for this.
    ///
    /// # Limits
    ///
    /// The server raises its soft limit of open files to the hard limit. It logs a warning if that
    /// allows fewer workers than [`max_workers`](crate::ServerBuilder::max_workers). Workers get the
    /// limit that the program was started with.
    ///
    /// # Errors
    ///
    /// Returns a [`ServerError`] if the server cannot start:
    ///
    /// * the address is missing, invalid, or in use;
    /// * the process has threads;
    /// * an option is invalid, or the system does not let workers set it;
    /// * preload failed.
    ///
    /// Returns [`ServerError::Killed`] if a shutdown had to kill workers.
    ///
    /// ```no_run
    /// use taskfork::{Methods, Server, ServerError};
    ///
    /// fn main() -> Result<(), ServerError> {
    ///     Server::builder()
    ///         .listen("unix:/run/adder.sock")
    ///         .interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b)))
    ///         .run()
    /// }
    /// ```
    pub fn run(self) -> Result<(), ServerError> {
        let _deferred = DeferredSignals::new()
            .map_err(ServerError::system("cannot block SIGUSR1 and SIGUSR2"))?;
        // The path is resolved before a new version can replace the file.
        program_file::path();
        let (inherited, predecessor) = Inherited::take().map(Inherited::into_parts).unzip();
        if let Err(error) = self.options.check() {
            if let Some(predecessor) = predecessor {
                predecessor.refuse(&error);
            }
            return Err(error);
        }
        let parent = Parent::take();
        let may_keep_pid = self.options.keep_pid && self.options.control.is_none();
        match parent {
            Some(parent) if parent.keeps_pid() => self.serve(inherited, predecessor, Some(parent)),
            parent if may_keep_pid && predecessor.is_none() => {
                let outer_parent = parent.filter(parent::is_own);
                let hangup = Hangup::of_this_process(self.options.restart_on_hangup);
                let name = self.options.name.clone();
                parent::keep_pid(&name, hangup, outer_parent.as_ref(), |parent| {
                    self.serve(None, None, Some(parent))
                })
            }
            parent => {
                if may_keep_pid {
                    log::warn!(
                        "the previous server has no parent process, so `keep_pid` takes effect when \
                         the service is stopped and started"
                    );
                }
                self.serve(inherited, predecessor, parent.filter(parent::is_own))
            }
        }
    }

    /// Checks the options without starting anything. No address is opened, since another server may
    /// listen there already.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`run`](Self::run) that depend on the options alone:
    /// [`ServerError::Option`] and [`ServerError::Address`].
    ///
    /// ```
    /// use taskfork::{Methods, Server, ServerError};
    ///
    /// let server = Server::builder().max_calls(0).interface(Methods::<()>::new());
    /// assert!(matches!(server.check(), Err(ServerError::Option { option: "max_calls", .. })));
    /// ```
    pub fn check(&self) -> Result<(), ServerError> {
        self.options.check()?;
        self.options.privileges.identity()?;
        let rules = self.options.access.rules()?;
        Handshakes::new(&self.options.handshakes, &rules)?;
        match &self.options.address {
            Some(Err(error)) => Err(error.clone().into()),
            _ => Ok(()),
        }
    }

    fn serve(
        self,
        inherited: Option<(OwnedFd, Option<Identity>)>,
        predecessor: Option<Predecessor>,
        parent: Option<Parent>,
    ) -> Result<(), ServerError> {
        let Self { mut options, program, preload } = self;
        options.parent = parent;
        let start = || {
            if let Some(load) = preload {
                let own = getpid();
                let loaded = load();
                if getpid() != own {
                    // The preload has forked. The copy must not become a second server on the socket.
                    sys::exit_forked_child();
                }
                loaded.map_err(ServerError::Preload)?;
            }
            if options.sandbox.level() != Level::Off {
                worker::load_symbols();
            }
            sys::map_worker_mark();
            // What was read is memory that each fork shares.
            if options.huge_pages {
                use_huge_pages();
            }
            EventLoop::start(options, program, inherited)
        };
        match start() {
            Ok(server) => server.run(predecessor),
            Err(error) => {
                if let Some(predecessor) = predecessor {
                    predecessor.refuse(&error);
                }
                Err(error)
            }
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Server").field("options", &self.options).finish_non_exhaustive()
    }
}
