//! `taskfork serve`: a program as workers, or the pools of a file, each a server of its own.

use std::path::PathBuf;

use taskfork::__private::meaning_of_hangup;
use taskfork::client::{BusyPoll, Protocol};
use taskfork::server::{Limit, LogWriter, Stderr};
use taskfork::worker::Executable;
use taskfork::{Server, ServerBuilder, ServerError};

use crate::config::{self, Pool};
use crate::failure::Failure;
use crate::logging;
use crate::pools;

/// Where and how to serve what.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Serve the pools of this TOML file instead: each [pool.NAME] takes the options below with
    /// underscores, and command = ["PROGRAM", "ARG"]
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    config: Option<PathBuf>,
    /// Serve only this pool of the file
    #[arg(long, value_name = "NAME", requires = "config")]
    pool: Option<String>,
    /// Keep this process, and its id, when a new server takes over at SIGHUP, as Docker and supervisord
    /// need it (systemd does not); pools of a file have it always [default: the process id changes]
    #[arg(long)]
    keep_pid: bool,
    /// Have SIGHUP start a new server also if there is a controlling terminal, which sends SIGHUP when it
    /// closes [default: SIGHUP ends a server that has a controlling terminal]
    #[arg(long)]
    restart_on_hangup: bool,
    /// Append the log, and what workers write to standard error, to this file instead of showing it
    /// on standard error. SIGUSR1 has the server open it again
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    #[command(flatten)]
    own: Pool,
    /// The program to start for each connection, and its arguments. It finds the number of its
    /// connection's descriptor in the variable TASKFORK_FD
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "config")]
    command: Vec<String>,
}

impl Options {
    /// Has the log go to its file, if there is to be one.
    pub(crate) fn open_log(&self) -> Result<(), Failure> {
        let Some(path) = &self.log_file else { return Ok(()) };
        LogWriter::open(path).map_err(|error| {
            let what = format!("cannot open the log file {}: {error}", path.display());
            Failure::usage(what).hint("--log-file names a file that this user may write to")
        })
    }
}

pub(crate) fn run(options: Options, logging: &logging::Options) -> Result<(), Failure> {
    let Options { config, pool, keep_pid, restart_on_hangup, log_file, mut own, command } = options;
    let restarts = Restarts { keep_pid, on_hangup: restart_on_hangup };
    let Some(file) = config else {
        own.command = command;
        return serve(own, &Origin::CommandLine, restarts, logging);
    };
    if own != Pool::default() {
        return Err(Failure::usage("options of a pool stand in the file if there is one")
            .hint(format!("move them to {}", file.display())));
    }
    let mut pools = config::read(&file)?;
    match pool {
        Some(name) => {
            let known: Vec<String> = pools.keys().cloned().collect();
            let Some(pool) = pools.remove(&name) else {
                let known = known.join(", ");
                return Err(Failure::usage(format!("{} has no pool `{name}`", file.display()))
                    .hint(format!("there is {known}")));
            };
            pools::end_with_parent()?;
            serve(pool, &Origin::File, restarts, logging)
        }
        None => {
            for pool in pools.values() {
                check_program(pool)?;
            }
            let hangup = meaning_of_hangup(restart_on_hangup.then_some(true));
            pools::serve(file, hangup, !keep_pid, log_file)
        }
    }
}

/// How the server of a pool is restarted.
#[derive(Debug, Clone, Copy, Default)]
struct Restarts {
    keep_pid: bool,
    on_hangup: bool,
}

/// Where the options of a pool stand, so that messages name them as they are written there.
enum Origin {
    CommandLine,
    File,
}

impl Origin {
    fn name(&self, option: &str) -> String {
        match self {
            Self::CommandLine => format!("--{}", option.replace('_', "-")),
            Self::File => format!("`{option}`"),
        }
    }

    /// A server's error in the words of the command, which has no builder.
    fn explain(&self, error: ServerError) -> Failure {
        match error {
            ServerError::Killed { .. } => {
                let grace = self.name("shutdown_grace");
                Failure::fatal(error).hint(format!(
                    "{grace} gives running checkouts more time; a second signal takes it"
                ))
            }
            ServerError::NoAddress => {
                let listen = self.name("listen");
                Failure::usage(format!("there is no address to listen at: {listen} is missing")).hint(
                    "give --listen unix:PATH or --listen tcp:HOST:PORT; without it a service manager \
                     has to pass a socket on (LISTEN_FDS)",
                )
            }
            ServerError::Network { address } => {
                let allow = self.name("allow_unauthenticated_network");
                Failure::usage(format!(
                    "other machines can reach {address}, where whoever connects could call every method"
                ))
                .hint(format!(
                    "listen at a unix socket or a loopback address, or set {allow} if all that can reach \
                     it may"
                ))
            }
            ServerError::Option { option, reason, .. } => {
                Failure::usage(format!("{} cannot be so: {reason}", self.name(option)))
                    .hint("`taskfork serve --help` says what each option takes")
            }
            ServerError::Died { .. } => {
                Failure::fatal(error).hint("the log above may say why; start the command again")
            }
            error => Failure::usage(error).hint("`taskfork serve --help` lists all options"),
        }
    }
}

fn serve(
    pool: Pool,
    origin: &Origin,
    restarts: Restarts,
    logging: &logging::Options,
) -> Result<(), Failure> {
    check_program(&pool)?;
    describe(pool, restarts, logging)?.run().map_err(|error| origin.explain(error))
}

/// Whether a pool of a file could be served, as far as that can be known before.
pub(crate) fn check(pool: Pool) -> Result<(), Failure> {
    check_program(&pool)?;
    describe(pool, Restarts::default(), &logging::Options::default())?
        .check()
        .map_err(|error| Origin::File.explain(error))
}

/// A program that cannot be found is told now, and not by each of its workers.
fn check_program(pool: &Pool) -> Result<(), Failure> {
    let Some(program) = pool.command.first() else {
        return Err(Failure::usage("there is no command to serve")
            .hint("write it behind `--`, or as command = [\"PROGRAM\"] in the file"));
    };
    match which::which(program) {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::usage(format!("there is no program `{program}`"))
            .hint("check its path, that it may be executed, or PATH")),
    }
}

/// The server with all options that were given.
fn describe(pool: Pool, restarts: Restarts, logging: &logging::Options) -> Result<Server, Failure> {
    let mut command = pool.command.into_iter();
    let mut executable = Executable::new(command.next().unwrap_or_default());
    for arg in command {
        executable = executable.arg(arg);
    }
    executable = executable.protocol(pool.protocol.map_or(Protocol::Native, Protocol::from));
    let mut server = Server::builder()
        .max_calls(pool.max_calls)
        .max_age(pool.max_age.map(|time| time.0))
        .max_idle(pool.max_idle.map(|time| time.0))
        .max_memory(pool.max_memory.map(|size| size.0))
        .allow_unauthenticated_network(pool.allow_unauthenticated_network)
        .share_details(pool.share_details)
        .keep_pid(restarts.keep_pid)
        .restart_on_hangup(restarts.on_hangup.then_some(true));
    for limit in pool.limit {
        server = server.limit(limit.kind(), limit.value);
    }
    if let Some(place) = pool.listen {
        server = server.listen(place.address().map_err(Failure::usage)?);
    }
    server = given(server, pool.name, ServerBuilder::name);
    server = given(server, pool.protocols, |server, protocols| {
        server.protocols(protocols.into_iter().map(Protocol::from))
    });
    server = given(server, pool.allow_users, ServerBuilder::allow_users);
    server = given(server, pool.allow_groups, ServerBuilder::allow_groups);
    server = given(server, pool.handshake_timeout, |server, time| server.handshake_timeout(time.0));
    server = given(server, pool.max_handshakes, ServerBuilder::max_handshakes);
    server = given(server, pool.hung_worker_timeout, |server, time| {
        server.hung_worker_timeout(time.limit())
    });
    server = given(server, pool.shutdown_grace, |server, time| server.shutdown_grace(time.0));
    server = given(server, pool.stall_timeout, |server, time| server.stall_timeout(time.0));
    server = given(server, pool.max_workers, ServerBuilder::max_workers);
    server = given(server, pool.spare_workers, ServerBuilder::spare_workers);
    server = given(server, pool.niceness, ServerBuilder::niceness);
    server = given(server, pool.oom_score_adj, ServerBuilder::oom_score_adj);
    server = given(server, pool.socket_mode, |server, mode| server.socket_mode(mode.0));
    server = given(server, pool.max_frame, |server, size| {
        server.max_frame(usize::try_from(size.0).unwrap_or(usize::MAX))
    });
    server = given(server, pool.max_blob, |server, size| {
        server.max_blob(usize::try_from(size.0).unwrap_or(usize::MAX))
    });
    server = given(server, pool.status_socket, |server, path| {
        server.status_socket(Some(path).filter(|path| path.as_os_str() != "none"))
    });
    server = server.stderr(match pool.stderr.unwrap_or(config::StandardError::Capture) {
        // Whoever reads lines of JSON reads nothing else.
        config::StandardError::Capture if logging.is_json() => Stderr::Log,
        config::StandardError::Capture => Stderr::Capture,
        config::StandardError::Inherit => Stderr::Inherit,
    });
    server = given(server, pool.busy_poll, |server, mode| {
        server.busy_poll(match mode {
            config::Polling::Adaptive => BusyPoll::Adaptive,
            config::Polling::Off => BusyPoll::Off,
        })
    });
    Ok(server.executable(executable))
}

/// Sets what was given.
fn given<T>(
    server: ServerBuilder,
    value: Option<T>,
    set: impl FnOnce(ServerBuilder, T) -> ServerBuilder,
) -> ServerBuilder {
    match value {
        Some(value) => set(server, value),
        None => server,
    }
}

impl From<config::Language> for Protocol {
    fn from(language: config::Language) -> Self {
        match language {
            config::Language::Json => Self::Perl,
            config::Language::Native => Self::Native,
        }
    }
}

impl config::LimitOf {
    fn kind(self) -> Limit {
        match self.name {
            config::LimitName::AddressSpace => Limit::AddressSpace,
            config::LimitName::CpuTime => Limit::CpuTime,
            config::LimitName::OpenFiles => Limit::OpenFiles,
            config::LimitName::CoreSize => Limit::CoreSize,
            config::LimitName::Processes => Limit::Processes,
        }
    }
}
