//! `taskfork serve --config`: the pools of a file, and a server with a gateway. Each server and each gateway has a
//! process of its own. This process starts them, starts those again that end, forwards signals, and reads the file
//! again at SIGHUP.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process, set_child_subreaper,
    set_parent_process_death_signal, test_kill_process, wait,
};
use taskfork::__private::{
    Hangup, ServiceManager, block_signals_until_served, handle_all_kept_signals,
    keep_signals_until_handled, program_file, service_manager,
};
use taskfork::server::LogWriter;
use tokio::time::{Instant, sleep_until};

use crate::config::{self, PoolOptions};
use crate::error::CommandError;
use crate::gateway_options::GatewayOptions;
use crate::name_servers::{self, NameServers};
use crate::node_options::NodeOptions;
use crate::pool_signals::{Event, Signals};
use crate::replacement::Replacement;
use crate::serve::{OptionSource, Part};

/// The variable with the id of the process that forwards signals to the process of a pool.
const PARENT: &str = "TASKFORK_PARENT";

/// The variable with what a gateway that is checked has like the one that it is to replace.
pub(crate) const REPLACES: &str = "TASKFORK_REPLACES";

/// The delays before a process that has ended is started again: the first one, and the limit of its doubling.
const MIN_RESTART_DELAY: Duration = Duration::from_millis(100);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);

/// After this time without an end, the next delay of a process is the first one again.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// How often this process looks whether the file with the name servers is another one.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The variables by which the service manager addresses this process only.
const OWN_VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Where the pools come from.
pub(crate) enum PoolSource {
    /// The pools of a file, or only one of them.
    File { file: PathBuf, only: Option<String> },
    /// The options of this command. The pool has no name.
    CommandLine(Box<PoolOptions>),
}

/// The gateways of pools, by the names of all pools.
type Gateways = BTreeMap<Option<String>, Option<GatewayOptions>>;

impl PoolSource {
    /// Reads which pools there are, and their gateways.
    fn read(&self) -> Result<Gateways, CommandError> {
        match self {
            Self::CommandLine(pool) => {
                Ok(BTreeMap::from([(None, pool.gateway(&OptionSource::CommandLine)?)]))
            }
            Self::File { file, only } => {
                let mut pools = config::read(file)?;
                pools.retain(|name, _| only.as_ref().is_none_or(|only| only == name));
                let gateways = pools.into_iter().map(|(name, pool)| {
                    let gateway = pool.gateway(&OptionSource::File);
                    let gateway = gateway.map_err(|error| error.within(&format!("pool.{name}")))?;
                    Ok((Some(name), gateway))
                });
                gateways.collect()
            }
        }
    }
}

/// Serves pools until SIGTERM or SIGINT arrives.
pub(crate) fn serve(
    source: PoolSource,
    hangup: Hangup,
    add_keep_pid: bool,
    log_file: Option<PathBuf>,
) -> Result<(), CommandError> {
    // The path is resolved before a new version replaces the file, so that later pools run the new version.
    program_file();
    // If the process of a pool is killed, this process adopts and reaps its server.
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let gateways = source.read()?;
    let mut pools = Pools {
        source,
        add_keep_pid,
        gateways,
        replaced: BTreeMap::new(),
        running: HashMap::new(),
        pending_restarts: BTreeMap::new(),
        is_shutting_down: false,
        are_servers_ending: false,
        failure: None,
        manager: service_manager(),
        name_servers: NameServers::of(Path::new(name_servers::FILE)),
        next_look: Instant::now() + LOOK_INTERVAL,
    };
    runtime.block_on(async {
        // Before the checks, which take as long as NATS does. By default, these signals end a process.
        let mut signals = Signals::new(hangup)?;
        handle_all_kept_signals()?;
        let Checked { is_ended, reads_again } =
            pools.check_gateways(&mut signals, log_file.as_deref()).await?;
        if is_ended {
            return Ok(());
        }
        pools.start_all();
        if reads_again {
            pools.reload();
        }
        pools.manager.notify_ready();
        while pools.is_active() {
            let again = pools.manager.keep_alive().map(|left| Instant::now() + left);
            let next = pools.next_restart().into_iter().chain(again).chain(pools.next_look()).min();
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
            if pools.next_look().is_some_and(|next| next <= Instant::now()) {
                pools.follow_name_servers();
            }
        }
        pools.failure.map_or(Ok(()), Err)
    })
}

/// Opens the log file again. A failure leaves the old one in use.
pub(crate) fn reopen(log_file: Option<&Path>) {
    if let Some(Err(error)) = log_file.map(LogWriter::open) {
        tracing::error!("cannot open the log file again, and still write to the old one: {error}");
    }
}

/// Names a process: its pool, and what it does for the pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pool: Option<String>,
    part: Part,
}

impl Process {
    fn server(pool: &Option<String>) -> Self {
        Self { pool: pool.clone(), part: Part::Server }
    }

    fn gateway(pool: &Option<String>) -> Self {
        Self { pool: pool.clone(), part: Part::Gateway }
    }

    fn gateway_check(pool: &Option<String>) -> Self {
        Self { pool: pool.clone(), part: Part::GatewayCheck }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.pool, self.part) {
            (Some(pool), Part::Server) => write!(out, "pool `{pool}`"),
            (Some(pool), _) => write!(out, "the gateway of pool `{pool}`"),
            (None, Part::Server) => out.write_str("the server"),
            (None, _) => out.write_str("the gateway"),
        }
    }
}

struct Pools {
    source: PoolSource,
    /// Whether to add `--keep-pid` for each server, as the command line does not have it.
    add_keep_pid: bool,
    /// All pools, with their gateways.
    gateways: Gateways,
    /// The options of gateways that run while those that the file has now are checked.
    replaced: BTreeMap<Option<String>, Option<GatewayOptions>>,
    /// The running processes by process id.
    running: HashMap<Pid, Running>,
    /// The processes that have ended.
    pending_restarts: BTreeMap<Process, PendingRestart>,
    is_shutting_down: bool,
    /// The servers have got the signal to end. Before that, their gateways end.
    are_servers_ending: bool,
    /// The first failure of a server that ends this command.
    failure: Option<CommandError>,
    manager: ServiceManager,
    /// What gateways that look names up may read.
    name_servers: Option<NameServers>,
    /// When this process looks whether that is still enough.
    next_look: Instant,
}

struct Running {
    process: Process,
    since: Instant,
    /// How often in a row the process has ended.
    deaths: u32,
    /// It has received SIGTERM, because it is not wanted any more or because another is to take its place.
    is_ending: bool,
}

/// What has happened while gateways were checked at the start.
struct Checked {
    /// A signal has ended it.
    is_ended: bool,
    /// The file is to be read again.
    reads_again: bool,
}

struct PendingRestart {
    until: Instant,
    deaths: u32,
}

impl Pools {
    /// Has each gateway checked by a process that is what the gateway will be, before anything serves. All at the same
    /// time, since each may have to wait for NATS.
    async fn check_gateways(
        &self,
        signals: &mut Signals,
        log_file: Option<&Path>,
    ) -> Result<Checked, CommandError> {
        let pools = self.gateways.iter().filter(|(_, it)| it.is_some()).map(|(pool, _)| pool);
        let (mut checks, mut failures) = (Vec::new(), Vec::new());
        for gateway in pools.map(Process::gateway_check) {
            match self.command(&gateway).spawn() {
                Ok(check) => checks.push((gateway, check)),
                Err(error) => failures.push(error.into()),
            }
        }
        let mut checked = Checked { is_ended: false, reads_again: false };
        // None of them is left behind.
        loop {
            checks.retain_mut(|(gateway, check)| match check.try_wait() {
                Ok(None) => true,
                Ok(Some(status)) => {
                    if !status.success() {
                        failures.push(
                            CommandError::usage(format!("{gateway} cannot start"))
                                .hint("its own message stands above"),
                        );
                    }
                    false
                }
                Err(error) => {
                    failures.push(error.into());
                    false
                }
            });
            if checks.is_empty() {
                break;
            }
            match signals.next().await {
                Event::Shutdown(_) => {
                    checked.is_ended = true;
                    let pids = checks.iter().map(|(_, check)| check.id().cast_signed());
                    pids.filter_map(Pid::from_raw).for_each(|pid| send_signal(pid, Signal::TERM));
                }
                Event::Restart => checked.reads_again = true,
                Event::Forward(Signal::USR1) => reopen(log_file),
                Event::Child | Event::Forward(_) => {}
            }
        }
        // The others have messages of their own.
        match failures.into_iter().next() {
            Some(failure) if !checked.is_ended => Err(failure),
            _ => Ok(checked),
        }
    }

    fn start_all(&mut self) {
        for pool in self.gateways.keys().cloned().collect::<Vec<_>>() {
            self.start_server(&pool, 0);
        }
    }

    /// Starts a server, and its gateway if it has one.
    fn start_server(&mut self, pool: &Option<String>, deaths: u32) {
        self.start(Process::server(pool), deaths);
        if self.wants_gateway(pool) {
            self.start(Process::gateway(pool), 0);
        }
    }

    /// The command of this process for a part of a pool. The part gets the options of this command.
    fn command(&self, process: &Process) -> Command {
        let Process { pool, part } = process;
        let mut more = vec![format!("--part={}", part.name())];
        if let (Some(pool), PoolSource::File { only: None, .. }) = (pool, &self.source) {
            more.push(format!("--pool={pool}"));
        }
        if self.add_keep_pid && *part == Part::Server {
            more.push("--keep-pid".to_owned());
        }
        let mut command = Command::new(program_file());
        // The program of a pool and its arguments stand behind this argument.
        let mut arguments = std::env::args_os().skip(1);
        command.args(arguments.by_ref().take_while(|argument| argument != "--")).args(more);
        if let PoolSource::CommandLine(_) = self.source {
            command.arg("--").args(arguments);
        }
        OWN_VARIABLES.iter().for_each(|variable| {
            command.env_remove(variable);
        });
        command.env(PARENT, std::process::id().to_string());
        if let Some(replaced) = self.replaced.get(pool).filter(|_| *part == Part::GatewayCheck) {
            let new = self.gateways.get(pool).and_then(Option::as_ref);
            let process = self.pid(&Process::gateway(pool));
            let process = process.map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
            command.env(REPLACES, Replacement::new(process, replaced.as_ref(), new).to_text());
        }
        match part {
            Part::Server => block_signals_until_served(&mut command),
            Part::Gateway | Part::GatewayCheck => keep_signals_until_handled(&mut command),
        };
        if *part != Part::Server {
            // In its sandbox it can ask name servers by TCP only.
            let options = std::env::var("RES_OPTIONS").unwrap_or_default();
            command.env("RES_OPTIONS", format!("{options} use-vc").trim_start());
        }
        if *part == Part::Gateway {
            // A terminal signals this process, which passes the signal on in the right order.
            command.process_group(0);
        }
        command
    }

    fn start(&mut self, process: Process, deaths: u32) {
        if self.is_running(&process) {
            return;
        }
        let mut command = self.command(&process);
        let started = command.spawn();
        // `reap` waits for all children by process id, so the handle is not needed.
        let pid = started.map(|child| Pid::from_raw(child.id().cast_signed()));
        match pid {
            Ok(Some(pid)) => {
                let since = Instant::now();
                self.running.insert(pid, Running { process, since, deaths, is_ending: false });
            }
            Ok(None) => {}
            Err(error) => {
                let program = command.get_program().display();
                let why = format!("cannot be started by {program}: {error}");
                self.schedule_restart(process, deaths, &why);
            }
        }
    }

    fn schedule_restart(&mut self, process: Process, deaths: u32, why: &str) {
        let delay = MIN_RESTART_DELAY.saturating_mul(1 << deaths.min(20)).min(MAX_RESTART_DELAY);
        tracing::error!("{process} {why}; it is started again in {} s", delay.as_secs_f64());
        self.pending_restarts
            .insert(process, PendingRestart { until: Instant::now() + delay, deaths: deaths + 1 });
    }

    /// When the next process is due for a restart.
    fn next_restart(&self) -> Option<Instant> {
        self.pending_restarts.values().map(|restart| restart.until).min()
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let due = self.pending_restarts.extract_if(.., |_, restart| restart.until <= now);
        for (process, restart) in due.collect::<Vec<_>>() {
            match process.part {
                Part::Server => self.start_server(&process.pool, restart.deaths),
                _ => self.start(process, restart.deaths),
            }
        }
    }

    /// When to look at the file with the name servers, if that matters to a gateway.
    fn next_look(&self) -> Option<Instant> {
        let matters = self.gateways.values().flatten().any(looks_names_up);
        matters.then_some(self.next_look)
    }

    fn wants_gateway(&self, pool: &Option<String>) -> bool {
        self.gateways.get(pool).is_some_and(Option::is_some)
    }

    fn is_running(&self, process: &Process) -> bool {
        self.pid(process).is_some()
    }

    fn reap(&mut self) {
        // Any child: a gateway is in a process group of its own.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(ended) = self.running.remove(&pid) else { continue };
            let how = failure_of(status);
            match ended.process.part {
                Part::Server => self.handle_server_end(ended, status, how),
                Part::GatewayCheck => self.handle_check_end(ended, how),
                Part::Gateway => self.handle_gateway_end(ended, how),
            }
        }
        let has_gateway = self.running.values().any(|it| it.process.part == Part::Gateway);
        if self.is_shutting_down && !self.are_servers_ending && !has_gateway {
            self.are_servers_ending = true;
            self.forward(Signal::TERM);
        }
    }

    fn handle_server_end(&mut self, ended: Running, status: WaitStatus, how: Option<String>) {
        let Running { process, since, deaths, is_ending } = ended;
        let is_alone = matches!(self.source, PoolSource::CommandLine(_));
        let gateway = Process::gateway(&process.pool);
        self.pending_restarts.remove(&gateway);
        self.end(|process| *process == gateway);
        if self.is_shutting_down || is_alone {
            if let Some(how) = how.filter(|_| self.failure.is_none()) {
                let what = format!("{process} {how}");
                // A mistake in the options of the server is one in those of this command.
                let failure = match status.exit_status() {
                    Some(CommandError::USAGE) => CommandError::usage(what),
                    _ => CommandError::fatal(what),
                };
                self.failure = Some(failure.hint("its own message stands above"));
            }
            // The server of a command that has no other ends with it, as it does without a gateway.
            self.is_shutting_down = true;
        } else if is_ending {
            tracing::info!("{process} has ended");
        } else {
            let deaths = if since.elapsed() > STABLE_AFTER { 0 } else { deaths };
            self.schedule_restart(process, deaths, how.as_deref().unwrap_or("has ended"));
        }
    }

    fn handle_gateway_end(&mut self, ended: Running, how: Option<String>) {
        let Running { process, since, deaths, is_ending } = ended;
        let is_wanted = !self.is_shutting_down
            && self.wants_gateway(&process.pool)
            && self.is_running(&Process::server(&process.pool));
        // Otherwise it starts with its server, or another has taken its place.
        if is_wanted && !is_ending {
            let deaths = if since.elapsed() > STABLE_AFTER { 0 } else { deaths };
            self.schedule_restart(process, deaths, how.as_deref().unwrap_or("has ended"));
        }
    }

    /// Replaces a gateway whose new options work. Otherwise it goes on with the old ones.
    fn handle_check_end(&mut self, ended: Running, how: Option<String>) {
        let Running { process, is_ending, .. } = ended;
        if is_ending || self.is_shutting_down {
            return;
        }
        let Process { pool, .. } = &process;
        let gateway = Process::gateway(pool);
        let replaced = self.replaced.remove(pool);
        let Some(how) = how else { return self.replace(gateway) };
        tracing::error!(
            "{gateway} goes on as it is: one with the new options {how}, and its own message stands above"
        );
        // The next change is one of these options.
        if let (Some(replaced), Some(options)) = (replaced, self.gateways.get_mut(pool)) {
            *options = replaced;
        }
    }

    /// Ends a gateway, and starts another one if the pool still has one.
    fn replace(&mut self, gateway: Process) {
        self.end(|process| *process == gateway);
        self.pending_restarts.remove(&gateway);
        if self.wants_gateway(&gateway.pool) {
            // The old one has stopped listening by then.
            let until = Instant::now() + MIN_RESTART_DELAY;
            self.pending_restarts.insert(gateway, PendingRestart { until, deaths: 0 });
        }
    }

    /// Reads the file again. An invalid file changes nothing.
    fn reload(&mut self) {
        if self.is_shutting_down {
            return;
        }
        let gateways = match self.source.read() {
            Ok(gateways) => gateways,
            Err(error) => {
                tracing::error!("all pools go on as they are: {error}");
                return;
            }
        };
        let before = std::mem::replace(&mut self.gateways, gateways);
        self.pending_restarts.retain(|process, _| self.gateways.contains_key(&process.pool));
        self.replaced.retain(|pool, _| self.gateways.contains_key(pool));
        let removed: Vec<_> =
            before.keys().filter(|pool| !self.gateways.contains_key(*pool)).cloned().collect();
        for pool in removed.into_iter().flatten() {
            tracing::info!("pool `{pool}` is not in the file any more");
            self.end(|process| process.pool.as_ref() == Some(&pool));
        }
        for pool in self.gateways.keys().cloned().collect::<Vec<_>>() {
            if !self.signal(&Process::server(&pool), Signal::HUP) {
                self.pending_restarts.remove(&Process::server(&pool));
                self.start_server(&pool, 0);
                continue;
            }
            let gateway = Process::gateway(&pool);
            if before.get(&pool) == self.gateways.get(&pool) {
                // It reads its certificates again.
                self.signal(&gateway, Signal::HUP);
            } else {
                self.change_gateway(&pool, before.get(&pool).cloned().flatten());
            }
        }
    }

    /// Replaces the gateway of a pool, which has had these options before, if another one can start.
    fn change_gateway(&mut self, pool: &Option<String>, before: Option<GatewayOptions>) {
        let (gateway, check) = (Process::gateway(pool), Process::gateway_check(pool));
        // It may have read an older file.
        self.end(|process| *process == check);
        if self.wants_gateway(pool) && self.is_running(&gateway) {
            self.replaced.entry(pool.clone()).or_insert(before);
            self.start(check, 0);
        } else {
            self.replaced.remove(pool);
            self.replace(gateway);
        }
    }

    /// Replaces gateways that look names up, if what they may read of the file with the name servers is no longer
    /// enough. While the file is away, nothing changes.
    fn follow_name_servers(&mut self) {
        self.next_look = Instant::now() + LOOK_INTERVAL;
        let now = NameServers::of(Path::new(name_servers::FILE));
        if now.is_none() || now == self.name_servers || self.is_shutting_down {
            return;
        }
        self.name_servers = now;
        for pool in self.gateways.keys().cloned().collect::<Vec<_>>() {
            let options = self.gateways.get(&pool).cloned().flatten();
            if options.as_ref().is_some_and(looks_names_up) {
                tracing::info!(
                    "{} is replaced, because it may not read the new {}",
                    Process::gateway(&pool),
                    name_servers::FILE
                );
                self.change_gateway(&pool, options);
            }
        }
    }

    fn shut_down(&mut self, signal: Signal) {
        if !self.is_shutting_down {
            self.manager.notify_stopping();
            self.is_shutting_down = true;
            self.pending_restarts.clear();
            self.end(|process| process.part == Part::Gateway);
            if self.running.values().any(|it| it.process.part == Part::Gateway) {
                // The servers follow when the gateways have ended.
                return;
            }
        }
        self.are_servers_ending = true;
        self.forward(signal);
    }

    /// Ends processes.
    fn end(&mut self, is_meant: impl Fn(&Process) -> bool) {
        for (&pid, running) in &mut self.running {
            if is_meant(&running.process) && !running.is_ending {
                running.is_ending = true;
                send_signal(pid, Signal::TERM);
            }
        }
    }

    /// Sends a signal to a process that runs. Returns whether it does.
    fn signal(&self, process: &Process, signal: Signal) -> bool {
        self.pid(process).inspect(|&pid| send_signal(pid, signal)).is_some()
    }

    fn pid(&self, process: &Process) -> Option<Pid> {
        let mut running = self.running.iter();
        running.find(|(_, it)| it.process == *process && !it.is_ending).map(|(&pid, _)| pid)
    }

    /// Sends a signal to all processes. A gateway keeps those that it does not handle, and a check keeps all but those that
    /// end it.
    fn forward(&self, signal: Signal) {
        self.running.keys().for_each(|&pid| send_signal(pid, signal));
    }

    fn is_active(&self) -> bool {
        !self.is_shutting_down || !self.running.is_empty()
    }
}

fn looks_names_up(gateway: &GatewayOptions) -> bool {
    gateway.node.as_ref().is_some_and(NodeOptions::looks_names_up)
}

fn send_signal(pid: Pid, signal: Signal) {
    // The process may just have ended.
    let _ = kill_process(pid, signal);
}

/// How a process has failed. `None` for exit status 0.
fn failure_of(status: WaitStatus) -> Option<String> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exited with status {code}")),
        (None, signal) => Some(format!("was killed by signal {}", signal.unwrap_or(0))),
    }
}

/// In the process of a pool: requests SIGTERM at the end of the command that has started it. An error if that has ended
/// already.
pub(crate) fn end_with_parent(part: Part) -> Result<(), CommandError> {
    let parent = std::env::var(PARENT).ok().and_then(|pid| pid.parse().ok());
    let Some(parent) = parent.and_then(Pid::from_raw) else { return Ok(()) };
    if getppid() == Some(parent) {
        set_parent_process_death_signal(Some(Signal::TERM)).map_err(io::Error::from)?;
    }
    // Only now: before the request, the end of the parent sends no signal. The server of a pool may be a child of an
    // earlier version of itself.
    let is_grandchild = || part == Part::Server && test_kill_process(parent).is_ok();
    if getppid() == Some(parent) || is_grandchild() {
        return Ok(());
    }
    Err(CommandError::fatal("the command that has started this process has ended"))
}
