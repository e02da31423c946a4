//! `taskfork serve`: a program as workers, or the pools of a file, each a server of its own.

use std::path::PathBuf;

use taskfork::{
    BusyPoll, Executable, Limit, LogWriter, Protocol, Server, ServerBuilder, ServerError, Stderr,
};

use crate::config::{self, Pool};
use crate::failure::Failure;
use crate::hangup::Hangup;
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

pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let Options { config, pool, keep_pid, restart_on_hangup, log_file, mut own, command } = options;
    let restarts = Restarts { keep_pid, on_hangup: restart_on_hangup };
    let Some(file) = config else {
        own.command = command;
        return serve(own, restarts);
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
            serve(pool, restarts)
        }
        None => {
            for pool in pools.values() {
                check_program(pool)?;
            }
            pools::serve(file, Hangup::of_this_process(restart_on_hangup), !keep_pid, log_file)
        }
    }
}

/// How the server of a pool is restarted.
#[derive(Debug, Clone, Copy)]
struct Restarts {
    keep_pid: bool,
    on_hangup: bool,
}

fn serve(pool: Pool, restarts: Restarts) -> Result<(), Failure> {
    check_program(&pool)?;
    describe(pool, restarts).run().map_err(|error| match error {
        ServerError::Killed { .. } => Failure::fatal(error)
            .hint("--shutdown-grace gives running checkouts more time; a second signal takes it"),
        ServerError::Died { .. } => {
            Failure::fatal(error).hint("the log above may say why; start the command again")
        }
        error => Failure::usage(error).hint("`taskfork serve --help` lists all options"),
    })
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
fn describe(pool: Pool, restarts: Restarts) -> Server {
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
    server = given(server, pool.listen, |server, address| server.listen(address.0));
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
    server = given(server, pool.stderr, |server, stderr| {
        server.stderr(match stderr {
            config::StandardError::Capture => Stderr::Capture,
            config::StandardError::Inherit => Stderr::Inherit,
        })
    });
    server = given(server, pool.busy_poll, |server, mode| {
        server.busy_poll(match mode {
            config::Polling::Adaptive => BusyPoll::Adaptive,
            config::Polling::Off => BusyPoll::Off,
        })
    });
    server.executable(executable)
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
