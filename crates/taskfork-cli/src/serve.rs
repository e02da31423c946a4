//! `taskfork serve`: a program as workers, or the pools of a file, each a server of its own.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process, set_child_subreaper,
    set_parent_process_death_signal, waitpid,
};
use taskfork::{BusyPoll, Executable, Limit, Protocol, Server, ServerBuilder, ServerError, Stderr};

use crate::config::{self, Pool};
use crate::failure::Failure;

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
    #[command(flatten)]
    own: Pool,
    /// The program to start for each connection, and its arguments. It finds the number of its
    /// connection's descriptor in the variable TASKFORK_FD
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "config")]
    command: Vec<String>,
}

pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let Options { config, pool, mut own, command } = options;
    let Some(file) = config else {
        own.command = command;
        return serve(own);
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
            end_with_parent()?;
            serve(pool)
        }
        None if pools.len() == 1 => pools.into_values().try_for_each(serve),
        None => {
            for pool in pools.values() {
                check_program(pool)?;
            }
            serve_all(&file, pools.into_keys().collect())
        }
    }
}

fn serve(pool: Pool) -> Result<(), Failure> {
    check_program(&pool)?;
    describe(pool).run().map_err(|error| match error {
        ServerError::Killed { .. } => Failure::fatal(error)
            .hint("--shutdown-grace gives running checkouts more time; a second signal takes it"),
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
fn describe(pool: Pool) -> Server {
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
        .share_details(pool.share_details);
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

/// A server a pool, until all have ended, those that have taken over from the first ones included.
/// SIGTERM, SIGINT and SIGHUP are passed on; one that fails ends all.
fn serve_all(file: &Path, names: Vec<String>) -> Result<(), Failure> {
    // A server that hands over to another leaves it to this process.
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    let program = std::env::current_exe()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut pools = BTreeMap::new();
    for name in names {
        let mut command = Command::new(&program);
        command.arg("serve").arg("--config").arg(file).args(["--pool", &name]);
        command.env(PARENT, std::process::id().to_string());
        // It is reaped with all others.
        pools.insert(command.spawn()?.id(), name);
    }
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};

        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut child = signal(SignalKind::child())?;
        let mut failed = None;
        loop {
            while let Some((pid, status)) = match waitpid(None, WaitOptions::NOHANG) {
                Ok(ended) => ended,
                // There is none any more.
                Err(_) => return failed.map_or(Ok(()), Err),
            } {
                if let (Some(how), None) = (bad_end(status), &failed) {
                    let pid = pid.as_raw_nonzero().get().unsigned_abs();
                    let pool = pools.get(&pid).map_or("a pool's new server".to_owned(), |name| {
                        format!("the server of pool `{name}`")
                    });
                    let failure = Failure::fatal(format!("{pool} {how}"));
                    failed = Some(failure.hint("its own message stands above"));
                    tell_all(Signal::TERM);
                }
            }
            let pass_on = tokio::select! {
                _ = terminate.recv() => Signal::TERM,
                _ = interrupt.recv() => Signal::INT,
                _ = hang_up.recv() => Signal::HUP,
                _ = child.recv() => continue,
            };
            tell_all(pass_on);
        }
    })
}

/// In what way a server has failed, if it has.
fn bad_end(status: WaitStatus) -> Option<String> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exited with status {code}")),
        (None, signal) => Some(format!("was killed by signal {}", signal.unwrap_or(0))),
    }
}

fn tell_all(signal: Signal) {
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    let pids = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    // One that has just ended needs no signal.
    pids.for_each(|pid| kill_process(pid, signal).unwrap_or(()));
}

/// The variable that tells the server of a pool which process it belongs to.
const PARENT: &str = "TASKFORK_PARENT";

/// The server of a pool ends with the command that has started it. One that takes over from such a server
/// has that for its parent at first, and must not end with it.
fn end_with_parent() -> io::Result<()> {
    let parent = std::env::var(PARENT).ok().and_then(|pid| pid.parse().ok());
    if parent.is_some() && parent == getppid().map(|parent| parent.as_raw_nonzero().get()) {
        set_parent_process_death_signal(Some(Signal::TERM))?;
    }
    Ok(())
}
