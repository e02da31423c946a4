//! `taskfork serve`: a program as workers, or the pools of a file, each with a server of its own.

use std::path::PathBuf;

use clap::ValueEnum;
use taskfork::__private::{keep_signals, meaning_of_hangup};
use taskfork::client::{BusyPoll, Protocol};
use taskfork::server::{Limit, LogWriter, Stderr};
use taskfork::worker::{Executable, ReplaceAfter};
use taskfork::{Server, ServerBuilder, ServerError};

use crate::config::{self, PoolOptions};
use crate::error::CommandError;
use crate::pools::{self, PoolSource};
use crate::{gateway, logging};

/// What to serve, where and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Serve the pools of this TOML file instead. Each table [pool.NAME] has the options below as keys with
    /// underscores, and command = ["PROGRAM", "ARG"]
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    config: Option<PathBuf>,
    /// Serve only this pool of the file
    #[arg(long, value_name = "NAME", requires = "config")]
    pool: Option<String>,
    /// Keep this process and its id when a new server takes over at SIGHUP. Docker and supervisord need this,
    /// systemd does not. It is always set for pools of a file [default: the process id changes]
    #[arg(long)]
    keep_pid: bool,
    /// Let SIGHUP start a new server even with a controlling terminal, which sends SIGHUP when it closes
    /// [default: SIGHUP ends a server that has a controlling terminal]
    #[arg(long)]
    restart_on_hangup: bool,
    /// Append the log and the standard error of workers to this file instead of showing them on standard
    /// error. SIGUSR1 makes the server open it again
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// Which process of a pool this is. Only the command itself sets it
    #[arg(long, hide = true)]
    part: Option<Part>,
    #[command(flatten)]
    pool_options: PoolOptions,
    /// The program to start for each connection, and its arguments. The variable TASKFORK_FD contains the
    /// number of the connection's descriptor
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "config")]
    command: Vec<String>,
}

/// What a process does for a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Part {
    Server,
    Gateway,
    /// Ends with an error if a gateway could not serve.
    GatewayCheck,
}

impl Part {
    /// The value of the option `--part`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Gateway => "gateway",
            Self::GatewayCheck => "gateway-check",
        }
    }
}

impl Options {
    /// Keeps signals for the server: a service manager may reload, or a program that rotates logs may signal, at any time.
    /// Returns whether nothing but errors is printed. `has_level` says that another option says how much is logged. That of the
    /// command line takes precedence over a file.
    pub(crate) fn prepare(&self, has_level: bool) -> Result<bool, CommandError> {
        keep_signals()?;
        if self.pool_options.quiet && has_level {
            let what = "--quiet and an option for more of the log exclude each other";
            return Err(
                CommandError::usage(what).hint("leave --quiet, or --verbose and --log-level, out")
            );
        }
        if self.pool_options.quiet || has_level {
            return Ok(self.pool_options.quiet);
        }
        let Some(file) = &self.config else { return Ok(false) };
        // A file that cannot be read is an error later.
        let pools = config::read(file).unwrap_or_default();
        let mut shown =
            pools.iter().filter(|(name, _)| self.pool.as_ref().is_none_or(|pool| pool == *name));
        Ok(!pools.is_empty() && shown.all(|(_, pool)| pool.quiet))
    }

    /// Opens the log file, if the option is given.
    pub(crate) fn open_log(&self) -> Result<(), CommandError> {
        let Some(path) = &self.log_file else { return Ok(()) };
        LogWriter::open(path).map_err(|error| {
            let what = format!("cannot open the log file {}: {error}", path.display());
            CommandError::usage(what).hint("--log-file names a file that this user may write to")
        })
    }
}

pub(crate) fn run(options: Options, logging: &logging::Options) -> Result<(), CommandError> {
    let Options {
        config,
        pool,
        keep_pid,
        restart_on_hangup,
        log_file,
        part,
        mut pool_options,
        command,
    } = options;
    let restart_options = RestartOptions { keep_pid, on_hangup: restart_on_hangup };
    let hangup = || meaning_of_hangup(restart_on_hangup.then_some(true));
    let (source, pool_source, pool) = match config {
        None => {
            pool_options.command = command;
            let pool_source = PoolSource::CommandLine(Box::new(pool_options.clone()));
            (OptionSource::CommandLine, pool_source, pool_options)
        }
        Some(file) => {
            // It is for all pools.
            pool_options.quiet = false;
            if pool_options != PoolOptions::default() {
                let what = "options of a pool stand in the file if there is one";
                return Err(
                    CommandError::usage(what).hint(format!("move them to {}", file.display()))
                );
            }
            let mut pools = config::read(&file)?;
            let Some(name) = pool else {
                for pool in pools.values() {
                    check_program(pool)?;
                }
                let source = PoolSource::File { file, only: None };
                return pools::serve(source, hangup(), !keep_pid, log_file);
            };
            let known: Vec<String> = pools.keys().cloned().collect();
            let Some(pool) = pools.remove(&name) else {
                let what = format!("{} has no pool `{name}`", file.display());
                let known = known.join(", ");
                return Err(CommandError::usage(what).hint(format!("there is {known}")));
            };
            (OptionSource::File, PoolSource::File { file, only: Some(name) }, pool)
        }
    };
    let log_path = log_file.as_deref();
    match part {
        Some(Part::Gateway) => gateway::run(&pool, &source, log_path, false),
        Some(Part::GatewayCheck) => gateway::run(&pool, &source, log_path, true),
        None if pool.gateway(&source)?.is_some() => {
            check_program(&pool)?;
            check_openings(&pool, &source)?;
            pools::serve(pool_source, hangup(), !keep_pid, log_file)
        }
        part => {
            if let Some(part) = part {
                pools::end_with_parent(part)?;
            }
            serve(pool, &source, restart_options, logging)
        }
    }
}

/// How the server of a pool is restarted.
#[derive(Debug, Clone, Copy, Default)]
struct RestartOptions {
    keep_pid: bool,
    on_hangup: bool,
}

/// The source of a pool's options. Error messages name options as they are written there.
#[derive(Debug)]
pub(crate) enum OptionSource {
    CommandLine,
    File,
}

impl OptionSource {
    pub(crate) fn option_name(&self, option: &str) -> String {
        match self {
            Self::CommandLine => format!("--{}", option.replace('_', "-")),
            Self::File => format!("`{option}`"),
        }
    }

    /// The error of a server in terms of the command's options, since users of the command have no builder.
    fn command_error(&self, error: ServerError) -> CommandError {
        match error {
            ServerError::Killed { .. } => {
                let grace = self.option_name("shutdown_grace");
                CommandError::fatal(error).hint(format!(
                    "{grace} gives running checkouts more time; a second signal takes it"
                ))
            }
            ServerError::NoAddress => {
                let listen = self.option_name("listen");
                CommandError::usage(format!("there is no address to listen at: {listen} is missing")).hint(
                    "give --listen unix:PATH or --listen tcp:HOST:PORT; without it a service manager \
                     has to pass a socket on (LISTEN_FDS)",
                )
            }
            ServerError::Network { address } => {
                let allow = self.option_name("allow_unauthenticated_network");
                CommandError::usage(format!(
                    "other machines can reach {address}, where whoever connects could call every method"
                ))
                .hint(format!(
                    "listen at a unix socket or a loopback address, or set {allow} if all that can reach \
                     it may"
                ))
            }
            ServerError::Option { option, reason, .. } => {
                CommandError::usage(format!("{} cannot be so: {reason}", self.option_name(option)))
                    .hint("`taskfork serve --help` says what each option takes")
            }
            ServerError::Died { .. } => CommandError::fatal(error)
                .hint("the log above may say why; start the command again"),
            error => CommandError::usage(error).hint("`taskfork serve --help` lists all options"),
        }
    }
}

fn serve(
    pool: PoolOptions,
    source: &OptionSource,
    restart_options: RestartOptions,
    logging: &logging::Options,
) -> Result<(), CommandError> {
    check_program(&pool)?;
    check_openings(&pool, source)?;
    build(pool, restart_options, logging)?.run().map_err(|error| source.command_error(error))
}

/// Checks a pool of a file as far as that is possible without starting it.
pub(crate) fn check(pool: PoolOptions) -> Result<(), CommandError> {
    check_program(&pool)?;
    check_openings(&pool, &OptionSource::File)?;
    pool.gateway(&OptionSource::File)?;
    build(pool, RestartOptions::default(), &logging::Options::default())?
        .check()
        .map_err(|error| OptionSource::File.command_error(error))
}

/// Checks that the program exists, so that the command fails once and not in each worker.
fn check_program(pool: &PoolOptions) -> Result<(), CommandError> {
    let Some(program) = pool.command.first() else {
        return Err(CommandError::usage("there is no command to serve")
            .hint("write it behind `--`, or as command = [\"PROGRAM\"] in the file"));
    };
    match which::which(program) {
        Ok(_) => Ok(()),
        Err(_) => Err(CommandError::usage(format!("there is no program `{program}`"))
            .hint("check its path, that it may be executed, or PATH")),
    }
}

/// Checks that nothing is opened in a sandbox that is not there: the user may have forgotten it.
fn check_openings(pool: &PoolOptions, source: &OptionSource) -> Result<(), CommandError> {
    let Some(option) = pool.opening_without_sandbox() else { return Ok(()) };
    let (option, sandbox) = (source.option_name(option), source.option_name("sandbox"));
    Err(CommandError::usage(format!("{option} has no effect without {sandbox}"))
        .hint(format!("set {sandbox} to a level, such as compute or python")))
}

/// Builds the server from the options.
fn build(
    mut pool: PoolOptions,
    restart_options: RestartOptions,
    logging: &logging::Options,
) -> Result<Server, CommandError> {
    let server = pool.confine(Server::builder());
    let mut command = std::mem::take(&mut pool.command).into_iter();
    let mut executable = Executable::new(command.next().unwrap_or_default());
    for arg in command {
        executable = executable.arg(arg);
    }
    executable = executable.protocol(pool.protocol.map_or(Protocol::Native, Protocol::from));
    let mut server = server
        .max_calls(pool.max_calls)
        .max_age(pool.max_age.map(|time| time.0))
        .max_idle(pool.max_idle.map(|time| time.0))
        .max_memory(pool.max_memory.map(|size| size.0))
        .allow_unauthenticated_network(pool.allow_unauthenticated_network)
        .share_details(pool.share_details)
        .keep_pid(restart_options.keep_pid)
        .restart_on_hangup(restart_options.on_hangup.then_some(true));
    for limit in &pool.limit {
        server = server.limit(limit.kind(), limit.value);
    }
    if let Some(address) = pool.listen {
        server = server.listen(address.parse().map_err(CommandError::usage)?);
    }
    server = set_if_some(server, pool.name, ServerBuilder::name);
    server = set_if_some(server, pool.protocols, |server, protocols| {
        server.protocols(protocols.into_iter().map(Protocol::from))
    });
    server = set_if_some(server, pool.allow_users, ServerBuilder::allow_users);
    server = set_if_some(server, pool.allow_groups, ServerBuilder::allow_groups);
    server = set_if_some(server, pool.gateway_user, ServerBuilder::gateway_user);
    server = set_if_some(server, pool.handshake_timeout, |server, time| {
        server.handshake_timeout(time.0)
    });
    server = set_if_some(server, pool.max_handshakes, ServerBuilder::max_handshakes);
    server = set_if_some(server, pool.hung_worker_timeout, |server, time| {
        server.hung_worker_timeout(time.limit())
    });
    server = set_if_some(server, pool.shutdown_grace, |server, time| server.shutdown_grace(time.0));
    server = set_if_some(server, pool.stall_timeout, |server, time| server.stall_timeout(time.0));
    server = set_if_some(server, pool.max_workers, ServerBuilder::max_workers);
    server = set_if_some(server, pool.spare_workers, ServerBuilder::spare_workers);
    server = set_if_some(server, pool.cgroup, ServerBuilder::cgroup);
    server = set_if_some(server, pool.niceness, ServerBuilder::niceness);
    server = set_if_some(server, pool.oom_score_adj, ServerBuilder::oom_score_adj);
    server = set_if_some(server, pool.socket_mode, |server, mode| server.socket_mode(mode.0));
    server = set_if_some(server, pool.max_frame, |server, size| {
        server.max_frame(usize::try_from(size.0).unwrap_or(usize::MAX))
    });
    server = set_if_some(server, pool.max_blob, |server, size| {
        server.max_blob(usize::try_from(size.0).unwrap_or(usize::MAX))
    });
    server = set_if_some(server, pool.status_socket, |server, path| {
        server.status_socket(Some(path).filter(|path| path.as_os_str() != "none"))
    });
    server = server.stderr(match pool.stderr.unwrap_or(config::StderrMode::Capture) {
        // A reader of JSON lines cannot parse other text.
        config::StderrMode::Capture if logging.is_json() => Stderr::Log,
        config::StderrMode::Capture => Stderr::Capture,
        config::StderrMode::Hide => Stderr::Hide,
        config::StderrMode::Inherit => Stderr::Inherit,
    });
    server = set_if_some(server, pool.busy_poll, |server, mode| {
        server.busy_poll(match mode {
            config::BusyPollMode::Adaptive => BusyPoll::Adaptive,
            config::BusyPollMode::Off => BusyPoll::Off,
        })
    });
    server = set_if_some(server, pool.replace_after, |server, errors| {
        server.replace_after(match errors {
            config::ReplaceAfterErrors::Panic => ReplaceAfter::Panic,
            config::ReplaceAfterErrors::AnyError => ReplaceAfter::AnyError,
            config::ReplaceAfterErrors::Never => ReplaceAfter::Never,
        })
    });
    Ok(server.executable(executable))
}

/// Sets an option that has a value.
fn set_if_some<T>(
    server: ServerBuilder,
    value: Option<T>,
    set: impl FnOnce(ServerBuilder, T) -> ServerBuilder,
) -> ServerBuilder {
    match value {
        Some(value) => set(server, value),
        None => server,
    }
}

impl From<config::ProtocolName> for Protocol {
    fn from(language: config::ProtocolName) -> Self {
        match language {
            config::ProtocolName::Json => Self::Perl,
            config::ProtocolName::Native => Self::Native,
        }
    }
}

impl config::WorkerLimit {
    fn kind(self) -> Limit {
        match self.name {
            config::LimitName::AddressSpace => Limit::AddressSpace,
            config::LimitName::Memory => Limit::Memory,
            config::LimitName::CpuTime => Limit::CpuTime,
            config::LimitName::OpenFiles => Limit::OpenFiles,
            config::LimitName::CoreSize => Limit::CoreSize,
            config::LimitName::Processes => Limit::Processes,
            config::LimitName::CpuPercent => Limit::CpuPercent,
        }
    }
}
