//! How a server is described before it runs.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::getpid;
use serde::de::DeserializeOwned;

use super::error::ServerError;
use super::event_loop::EventLoop;
use super::hangup::Hangup;
use super::log;
use super::options::Options;
use super::parent::{self, Parent};
use super::preload::{PreloadFn, use_huge_pages};
use super::program_file;
use super::restart::{Inherited, Predecessor};
use super::signals::DeferredSignals;
use super::socket_file::Identity;
use super::status::StatusSocket;
use super::stderr::Stderr;
use crate::address::{Address, AddressError};
use crate::busy_poll::BusyPoll;
use crate::error::Failure;
use crate::sys;
use crate::wire::values::{ValueFormat, decode};
use crate::worker::executable::{Executable, Running};
use crate::worker::interface::{BoxError, Interface};
use crate::worker::{Handlers, WorkerInit, serve};

/// A server, ready to [`run`](Self::run).
///
/// A server forks one worker process for each connection of a client. It needs a process with one
/// thread; [`Server::spawn`] and [`Server::fork`] start it from within a client's own program.
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
pub struct Server {
    pub(super) options: Options,
    program: Program,
    preload: Option<PreloadFn>,
}

/// What a worker runs, with the types of the state and the interface forgotten.
pub(crate) type Program = Box<dyn Fn(WorkerInit) -> i32>;

impl Server {
    /// A server with every option at its default.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::with(Options::default())
    }

    /// Serves until SIGTERM or SIGINT comes, then stops accepting, lets running checkouts finish
    /// within [`shutdown_grace`](ServerBuilder::shutdown_grace), waits for every worker and removes
    /// its socket file. A second signal kills the workers at once, unless the server's parent only passes on
    /// what the server has got itself, as from a terminal.
    ///
    /// Workers ignore SIGTERM, SIGINT, SIGHUP and SIGQUIT, so that a service manager or a terminal, which sends them to all
    /// processes, ends no running call. Their code may install handlers. Programs that they start inherit that; see
    /// [`default_signals`](crate::worker::default_signals).
    ///
    /// The server raises its soft limit of open files to the hard one while it runs, and logs a warning if that allows
    /// fewer workers than [`max_workers`](ServerBuilder::max_workers). Workers have the limit that the program was started with.
    ///
    /// SIGHUP starts this program anew, with the same arguments, and hands the listener over once
    /// the new server is ready. The old server then finishes as above, and no connection is refused in
    /// between. The program is the file at the path by which it was started, so that a new version takes over. If
    /// that file is missing or cannot be executed, or the new server does not come up, the log says why and the old
    /// server goes on. Another SIGHUP before the new server is ready replaces that by another one. A new server that
    /// is to listen elsewhere opens that address, and the old one closes its own.
    ///
    /// A server that was started with SIGHUP ignored goes on ignoring it. A server with a controlling terminal takes
    /// SIGHUP for SIGTERM: see [`restart_on_hangup`](ServerBuilder::restart_on_hangup). So does a server that
    /// was started by [`Server::spawn`] or [`Server::fork`]. A restart changes the process id,
    /// unless [`keep_pid`](ServerBuilder::keep_pid) is set.
    ///
    /// SIGUSR1 opens the file of [`LogWriter::open`](crate::server::LogWriter::open) again, and SIGUSR2 logs what each worker does.
    /// SIGXFSZ and SIGPIPE are ignored while the server runs.
    ///
    /// Under systemd, a server without [`listen`](ServerBuilder::listen) listens on the first socket
    /// that the service manager has opened for it. It says when it is ready, when it stops, which
    /// process goes on after SIGHUP, and, where `WatchdogSec` asks for it, that it is alive. Workers do not
    /// have the variables by which it is told all that. Sockets besides the first are not handed over to a new server.
    ///
    /// # Errors
    /// A [`ServerError`] when the server cannot start: no address or a bad one, an address that is
    /// in use, a process that has threads, an option that cannot be or that the system does not let workers set, a
    /// failed preload.
    pub fn run(self) -> Result<(), ServerError> {
        let _held =
            DeferredSignals::new().map_err(ServerError::system("cannot hold signals back"))?;
        // Before its file is replaced.
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
                let above = parent.filter(parent::is_own);
                let hangup = Hangup::of_this_process(self.options.restart_on_hangup);
                let name = self.options.name.clone();
                parent::keep_pid(&name, hangup, above.as_ref(), |parent| {
                    self.serve(None, None, Some(parent))
                })
            }
            parent => {
                if may_keep_pid {
                    log::warn!(
                        "the server before this one has no parent process, so that `keep_pid` takes \
                         effect when the service is stopped and started"
                    );
                }
                self.serve(inherited, predecessor, parent.filter(parent::is_own))
            }
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
                    // It would be a second server on the same socket.
                    sys::exit_forked_child();
                }
                loaded.map_err(ServerError::Preload)?;
            }
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

/// Collects the options of a server; [`interface`](Self::interface) finishes it.
///
/// `S` is the state that each worker keeps between calls, `()` until [`setup`](Self::setup) says
/// otherwise.
#[must_use = "a server does nothing before `interface` and `run`"]
pub struct ServerBuilder<S = ()> {
    pub(super) options: Options,
    pub(super) handlers: Handlers<S>,
    /// What is loaded before the first fork.
    pub(super) preload: Option<PreloadFn>,
}

impl ServerBuilder {
    pub(crate) fn with(options: Options) -> Self {
        let handlers = Handlers { setup: Box::new(|| Ok(())), checkout_done: None };
        Self { options, handlers, preload: None }
    }

    /// Makes the state of each new worker, once, before its first call.
    ///
    /// An error or a panic reaches the first call as [`Setup`](crate::error::CallError::Setup), shown as
    /// `setup exception: …`; the next call on that worker runs `setup` again. Random generators
    /// that were seeded before the server started are the same in every worker: seed the worker's
    /// own here.
    ///
    /// ```
    /// use taskfork::{BoxError, Methods, Server};
    ///
    /// let server = Server::builder()
    ///     .setup(|| Ok::<_, BoxError>(Vec::<String>::new()))
    ///     .interface(Methods::new().method("keep", |kept: &mut Vec<String>, text: String| {
    ///         kept.push(text);
    ///         Ok(kept.len())
    ///     }));
    /// # let _ = server;
    /// ```
    pub fn setup<S: 'static, E: Into<BoxError>>(
        self,
        setup: impl Fn() -> Result<S, E> + 'static,
    ) -> ServerBuilder<S> {
        let done = self.handlers.checkout_done;
        let handlers = Handlers {
            setup: Box::new(move || setup().map_err(failure)),
            checkout_done: done.map(|done| Box::new(move |_: &mut S| done(&mut ())) as _),
        };
        ServerBuilder { options: self.options, handlers, preload: self.preload }
    }
}

impl ServerBuilder {
    /// Has each worker run a program of any language, and finishes the description. What `setup` and
    /// `checkout_done` are for other workers is the program's own.
    pub fn executable(self, executable: Executable) -> Server {
        let Options { name, max_frame, max_blob, .. } = &self.options;
        let executable = executable.of_server(name, *max_frame, *max_blob);
        let forward = executable.forward();
        self.setup(move || executable.start())
            .checkout_done(Running::checkout_done)
            .interface(forward)
    }
}

impl<S: 'static> ServerBuilder<S> {
    /// The configuration that [`Server::spawn_with`] was given, as the type that it had there or another one of
    /// the same shape. See there for an example.
    ///
    /// # Errors
    /// [`ServerError::NotConfigured`] if the server was started without a configuration, or otherwise than by
    /// [`Server::spawn_with`] or [`Spawn`](crate::server::Spawn); [`ServerError::Misconfigured`] if it is not of this type.
    /// The program that started the server gets the same error when the server returns it.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, ServerError> {
        let config = self.options.given.config.as_ref().ok_or(ServerError::NotConfigured)?;
        decode(config, ValueFormat::MessagePack).map_err(|reason| ServerError::Misconfigured {
            expected: std::any::type_name::<T>().to_owned(),
            reason,
        })
    }

    /// Where to listen: `unix:PATH`, `tcp:HOST:PORT` or `fd:NUMBER`. A mistake in it is the error
    /// of [`run`](Server::run), and so is an address that other machines can reach, without
    /// [`allow_unauthenticated_network`](Self::allow_unauthenticated_network).
    ///
    /// While a server starts or stops, there is a lock file `PATH.lock` beside its unix socket. A server that was
    /// started by [`Server::spawn`] or [`Server::fork`] needs no address: without one, its clients reach it through
    /// its handle only.
    pub fn listen<A>(mut self, address: A) -> Self
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        self.options.address = Some(address.try_into().map_err(Into::into));
        self
    }

    /// What `ps` and the logs call the server: `taskfork-server:NAME`, and its workers
    /// `taskfork-worker:NAME(1)` and so on. `taskfork` unless set.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// How long a worker may be stuck in one call, in `setup` or in `checkout_done` before it is
    /// killed, whatever it is doing. 5 minutes unless set; `None`, or 100 years and more, for no limit.
    /// 0 is an error of [`run`](Server::run).
    pub fn hung_worker_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.options.hung_worker_timeout = timeout.into().into();
        self
    }

    /// How long running checkouts may go on after a graceful shutdown has begun; 30 seconds unless
    /// set. 100 years and more are no limit; with 0 they are killed at once.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.options.shutdown_grace = grace.into();
        self
    }

    /// The permissions of the unix socket's file, 0600 unless set. A client needs permission to write.
    /// Only the permission bits count; the file never has more of them, not even while the server starts.
    /// [`allow_users`](Self::allow_users) and [`allow_groups`](Self::allow_groups) restrict who is served.
    pub fn socket_mode(mut self, mode: u32) -> Self {
        self.options.socket_mode = mode;
        self
    }

    /// The most bytes of one message in either direction, 64 MiB unless set. Less than 256 is an error of
    /// [`run`](Server::run).
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.options.max_frame = bytes;
        self
    }

    /// The most bytes of one [`Blob`](crate::Blob) of an argument that a client hands over as memory: 256 MiB unless
    /// set. A client is told, and its call fails with an error of the kind
    /// [`CallError::Arguments`](crate::error::CallError::Arguments) if an argument has a longer one that cannot be sent in a
    /// message either; see [`max_frame`](Self::max_frame). One that hands over more all the same is disconnected.
    ///
    /// To map a blob takes only addresses. But each page of it that is read becomes memory of the worker, also where
    /// the client has never written to it. So this is the most memory that one blob of a client can take in a worker.
    /// The default is four times that of `max_frame`, as no buffer has to hold it.
    ///
    /// ```
    /// let server = taskfork::Server::builder().max_blob(2 << 30);
    /// # let _ = server;
    /// ```
    pub fn max_blob(mut self, bytes: usize) -> Self {
        self.options.max_blob = bytes;
        self
    }

    /// How much memory each side of a connection keeps for long [`Blob`](crate::Blob)s that it sends to the
    /// other, in bytes: 64 MiB unless set, or less if the client has set less; 0 for none, nor any for short messages. See
    /// [`ClientBuilder::shared_memory`](crate::client::ClientBuilder::shared_memory).
    ///
    /// It is shared with clients of the server's own user only: whoever lends memory can still write to it.
    ///
    /// ```
    /// let server = taskfork::Server::builder().shared_memory(256 << 20);
    /// # let _ = server;
    /// ```
    pub fn shared_memory(mut self, bytes: usize) -> Self {
        self.options.shared_memory = bytes;
        self
    }

    /// How long a client may stop in the middle of a message before its connection is closed; 30
    /// seconds unless set. 100 years and more are no limit; 0 is an error of [`run`](Server::run).
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.options.stall_timeout = timeout.into();
        self
    }

    /// Whether a worker looks for its next call for a moment before it goes to sleep:
    /// [`BusyPoll::Adaptive`] unless set.
    ///
    /// ```
    /// use taskfork::client::BusyPoll;
    /// use taskfork::Server;
    /// let server = Server::builder().busy_poll(BusyPoll::Off);
    /// # let _ = server;
    /// ```
    pub fn busy_poll(mut self, mode: BusyPoll) -> Self {
        self.options.busy_poll = mode;
        self
    }

    /// What becomes of what workers write to standard error: [`Stderr::Capture`] unless set.
    ///
    /// ```
    /// use taskfork::server::Stderr;
    /// use taskfork::Server;
    /// let server = Server::builder().stderr(Stderr::Inherit);
    /// # let _ = server;
    /// ```
    pub fn stderr(mut self, stderr: Stderr) -> Self {
        self.options.stderr = stderr;
        self
    }

    /// Where the server tells of itself and its workers: a process that connects gets a
    /// [`ServerStatus`](crate::server::ServerStatus) as JSON, in a line, after 20 milliseconds, or as soon as it has sent a
    /// line or ended its sending side. Beside a listening unix socket
    /// unless set, at its path with `.status` behind it; `None` for nowhere. Only the server's user
    /// may connect.
    ///
    /// A server on a service manager's socket has it in the runtime directory, as `NAME.status` with its
    /// [`name`](Self::name). That is `RUNTIME_DIRECTORY`, else `XDG_RUNTIME_DIR`, else `/run` for root, else
    /// `/run/user/UID`. The server logs the path, or that there is none.
    ///
    /// ```
    /// use std::path::PathBuf;
    /// let server = taskfork::Server::builder()
    ///     .listen("tcp:127.0.0.1:7000")
    ///     .status_socket(PathBuf::from("/run/adder.status"));
    /// # let _ = server;
    /// ```
    pub fn status_socket(mut self, path: impl Into<Option<PathBuf>>) -> Self {
        self.options.status = path.into().map_or(StatusSocket::Off, StatusSocket::At);
        self
    }

    /// Cleans up after each checkout, in the worker, before the next one gets it. An error or a
    /// panic is logged and ends the worker, so that nobody gets an unclean one.
    pub fn checkout_done<E: Into<BoxError>>(
        mut self,
        done: impl Fn(&mut S) -> Result<(), E> + 'static,
    ) -> Self {
        self.handlers.checkout_done = Some(Box::new(move |state| done(state).map_err(failure)));
        self
    }

    /// Sets what the workers can be asked, and finishes the description.
    pub fn interface(self, interface: impl Interface<S>) -> Server {
        let handlers = self.handlers;
        let program = Box::new(move |init| serve(init, &interface, &handlers));
        Server { options: self.options, program, preload: self.preload }
    }
}

pub(super) fn failure(error: impl Into<BoxError>) -> Failure {
    Failure::of(&*error.into())
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Server").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for ServerBuilder<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ServerBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}
