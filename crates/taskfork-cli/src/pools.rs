//! `taskfork serve --config`: the pools of a file. Each pool has a process that keeps its id when a new server
//! replaces the old one. This process starts the pools, restarts a pool that ends, forwards signals, and reads
//! the file again at SIGHUP.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process, set_child_subreaper,
    set_parent_process_death_signal, waitpid,
};
use taskfork::__private::{
    Hangup, ServiceManager, block_signals_until_served, program_file, service_manager,
};
use taskfork::server::LogWriter;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::config;
use crate::error::CommandError;

/// The variable with the id of the process that forwards signals to the process of a pool.
const PARENT: &str = "TASKFORK_PARENT";

/// The delays before a pool that has ended is started again: the first one, and the limit of its doubling.
const MIN_RESTART_DELAY: Duration = Duration::from_millis(100);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);

/// After this time without an end, the next delay of a pool is the first one again.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// The variables by which the service manager addresses this process only.
const OWN_VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Serves the pools of a file until SIGTERM or SIGINT arrives.
pub(crate) fn serve(
    file: PathBuf,
    hangup: Hangup,
    add_keep_pid: bool,
    log_file: Option<PathBuf>,
) -> Result<(), CommandError> {
    // The path is resolved before a new version replaces the file, so that later pools run the new version.
    program_file();
    // If the process of a pool is killed, this process adopts and reaps its server.
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let names = config::read(&file)?.into_keys();
    let mut pools = Pools {
        file,
        add_keep_pid,
        running: HashMap::new(),
        pending_restarts: BTreeMap::new(),
        is_shutting_down: false,
        failure: None,
        manager: service_manager(),
    };
    runtime.block_on(async {
        let mut signals = Signals::new(hangup)?;
        names.for_each(|name| pools.start(name, 0));
        pools.manager.notify_ready();
        while pools.is_active() {
            let again = pools.manager.keep_alive().map(|left| Instant::now() + left);
            let next = pools.next_restart().into_iter().chain(again).min();
            let delay = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = delay => {}
                event = signals.next() => match event {
                    Event::Child => {}
                    Event::Restart => pools.reload(),
                    Event::Shutdown(signal) => pools.shut_down(signal),
                    Event::Forward(signal) => {
                        if signal == Signal::USR1 {
                            reopen(log_file.as_deref());
                        }
                        pools.forward(signal);
                    }
                },
            }
            pools.reap();
            pools.start_due();
        }
        pools.failure.map_or(Ok(()), Err)
    })
}

/// Opens the log file again. A failure leaves the old one in use.
fn reopen(log_file: Option<&Path>) {
    if let Some(Err(error)) = log_file.map(LogWriter::open) {
        tracing::error!("cannot open the log file again, and still write to the old one: {error}");
    }
}

/// An event of this process.
enum Event {
    /// A child has ended.
    Child,
    Restart,
    Shutdown(Signal),
    Forward(Signal),
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// `None` if SIGHUP is ignored, because a handler would replace that.
    hangup: Option<tokio::signal::unix::Signal>,
    restarts: bool,
    child: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
}

impl Signals {
    fn new(hangup: Hangup) -> io::Result<Self> {
        let is_ignored = hangup == Hangup::Ignored;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if is_ignored { None } else { Some(signal(SignalKind::hangup())?) },
            restarts: hangup == Hangup::Restart,
            child: signal(SignalKind::child())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Event {
        let Self { hangup, restarts, .. } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Event::Shutdown(Signal::TERM),
            _ = self.interrupt.recv() => Event::Shutdown(Signal::INT),
            _ = hangup => if *restarts { Event::Restart } else { Event::Shutdown(Signal::TERM) },
            _ = self.child.recv() => Event::Child,
            _ = self.user1.recv() => Event::Forward(Signal::USR1),
            _ = self.user2.recv() => Event::Forward(Signal::USR2),
        }
    }
}

struct Pools {
    file: PathBuf,
    /// Whether to add `--keep-pid` for each pool, as the command line does not have it.
    add_keep_pid: bool,
    /// The running pools by process id.
    running: HashMap<Pid, Running>,
    /// The pools that have ended, by name.
    pending_restarts: BTreeMap<String, PendingRestart>,
    is_shutting_down: bool,
    /// The first pool that failed during the shutdown.
    failure: Option<CommandError>,
    manager: ServiceManager,
}

struct Running {
    name: String,
    since: Instant,
    /// How often in a row the pool has ended.
    deaths: u32,
    /// The pool is no longer in the file, and has received SIGTERM.
    is_removed: bool,
}

struct PendingRestart {
    until: Instant,
    deaths: u32,
}

impl Pools {
    fn start(&mut self, name: String, deaths: u32) {
        let mut command = Command::new(program_file());
        // Each pool gets the options of this command.
        command.args(std::env::args_os().skip(1).filter(|argument| argument != "--"));
        command.arg(format!("--pool={name}"));
        if self.add_keep_pid {
            command.arg("--keep-pid");
        }
        OWN_VARIABLES.iter().for_each(|variable| {
            command.env_remove(variable);
        });
        command.env(PARENT, std::process::id().to_string());
        // It may receive signals before it handles them.
        let started = block_signals_until_served(&mut command).spawn();
        // `reap` waits for all children by process id, so the handle is not needed.
        let pid = started.map(|child| Pid::from_raw(child.id().cast_signed()));
        match pid {
            Ok(Some(pid)) => {
                let since = Instant::now();
                self.running.insert(pid, Running { name, since, deaths, is_removed: false });
            }
            Ok(None) => {}
            Err(error) => {
                let program = command.get_program().display();
                self.schedule_restart(
                    name,
                    deaths,
                    &format!("cannot be started by {program}: {error}"),
                );
            }
        }
    }

    fn schedule_restart(&mut self, name: String, deaths: u32, why: &str) {
        let delay = MIN_RESTART_DELAY.saturating_mul(1 << deaths.min(20)).min(MAX_RESTART_DELAY);
        tracing::error!("pool `{name}` {why}; it is started again in {} s", delay.as_secs_f64());
        self.pending_restarts
            .insert(name, PendingRestart { until: Instant::now() + delay, deaths: deaths + 1 });
    }

    /// When the next pool is due for a restart.
    fn next_restart(&self) -> Option<Instant> {
        self.pending_restarts.values().map(|restart| restart.until).min()
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let due = self.pending_restarts.extract_if(.., |_, restart| restart.until <= now);
        for (name, restart) in due.collect::<Vec<_>>() {
            self.start(name, restart.deaths);
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = waitpid(None, WaitOptions::NOHANG) {
            let Some(ended) = self.running.remove(&pid) else { continue };
            let Running { name, since, deaths, is_removed } = ended;
            let how = failure_of(status);
            if self.is_shutting_down {
                if let Some(how) = how.filter(|_| self.failure.is_none()) {
                    let failure = CommandError::fatal(format!("pool `{name}` {how}"));
                    self.failure = Some(failure.hint("its own message stands above"));
                }
            } else if is_removed {
                tracing::info!("pool `{name}` has ended");
            } else {
                let deaths = if since.elapsed() > STABLE_AFTER { 0 } else { deaths };
                self.schedule_restart(name, deaths, how.as_deref().unwrap_or("has ended"));
            }
        }
    }

    /// Reads the file again. An invalid file changes nothing.
    fn reload(&mut self) {
        if self.is_shutting_down {
            return;
        }
        let pools = match config::read(&self.file) {
            Ok(pools) => pools,
            Err(error) => {
                tracing::error!("all pools go on as they are: {error}");
                return;
            }
        };
        self.pending_restarts.retain(|name, _| pools.contains_key(name));
        for (&pid, running) in &mut self.running {
            let is_there = pools.contains_key(&running.name);
            if !is_there && !running.is_removed {
                let name = &running.name;
                tracing::info!("pool `{name}` is not in {} any more", self.file.display());
                running.is_removed = true;
                send_signal(pid, Signal::TERM);
            }
        }
        for name in pools.into_keys() {
            let mut running = self.running.iter();
            match running.find(|(_, running)| running.name == name && !running.is_removed) {
                Some((&pid, _)) => send_signal(pid, Signal::HUP),
                None => {
                    self.pending_restarts.remove(&name);
                    self.start(name, 0);
                }
            }
        }
    }

    fn shut_down(&mut self, signal: Signal) {
        if !self.is_shutting_down {
            self.manager.notify_stopping();
        }
        self.is_shutting_down = true;
        self.pending_restarts.clear();
        self.forward(signal);
    }

    fn forward(&self, signal: Signal) {
        self.running.keys().for_each(|&pid| send_signal(pid, signal));
    }

    fn is_active(&self) -> bool {
        !self.is_shutting_down || !self.running.is_empty()
    }
}

fn send_signal(pid: Pid, signal: Signal) {
    // The process may just have ended.
    let _ = kill_process(pid, signal);
}

/// How a pool has failed. `None` for exit status 0.
fn failure_of(status: WaitStatus) -> Option<String> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exited with status {code}")),
        (None, signal) => Some(format!("was killed by signal {}", signal.unwrap_or(0))),
    }
}

/// In the process of a pool: requests SIGTERM at the end of the command that has started it.
pub(crate) fn end_with_parent() -> io::Result<()> {
    let parent = std::env::var(PARENT).ok().and_then(|pid| pid.parse().ok());
    if parent.is_some() && parent == getppid().map(|parent| parent.as_raw_nonzero().get()) {
        set_parent_process_death_signal(Some(Signal::TERM))?;
    }
    Ok(())
}
