//! `taskfork serve --config`: the pools of a file. Each is a server of its own, in a process that keeps its id
//! when servers take over from one another. This process starts them, starts dead ones again, passes signals on,
//! and reads the file again at SIGHUP.

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
use crate::failure::Failure;

/// The variable that tells the process of a pool which process passes signals on to it.
const PARENT: &str = "TASKFORK_PARENT";

/// A pool that has died is started again after the first of these, which doubles each time up to the second.
const SOONEST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(30);

/// A pool that has lived for so long starts with the first again.
const STEADY: Duration = Duration::from_secs(60);

/// What the service manager tells this process and no other.
const OWN_VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Serves the pools of a file until told to end.
pub(crate) fn serve(
    file: PathBuf,
    hangup: Hangup,
    add_keep_pid: bool,
    log_file: Option<PathBuf>,
) -> Result<(), Failure> {
    // Before the file of this program is replaced: pools that are added later are of the new version.
    program_file();
    // A server whose pool's process has been killed is reaped here.
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let names = config::read(&file)?.into_keys();
    let mut pools = Pools {
        file,
        add_keep_pid,
        running: HashMap::new(),
        waiting: BTreeMap::new(),
        is_ending: false,
        failure: None,
        manager: service_manager(),
    };
    runtime.block_on(async {
        let mut signals = Signals::new(hangup)?;
        names.for_each(|name| pools.start(name, 0));
        pools.manager.notify_ready();
        while pools.are_left() {
            let again = pools.manager.keep_alive().map(|left| Instant::now() + left);
            let next = pools.next().into_iter().chain(again).min();
            let pause = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = pause => {}
                event = signals.next() => match event {
                    Event::Child => {}
                    Event::Restart => pools.reload(),
                    Event::End(signal) => pools.end(signal),
                    Event::PassOn(signal) => {
                        if signal == Signal::USR1 {
                            reopen(log_file.as_deref());
                        }
                        pools.pass_on(signal);
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

/// What comes to this process.
enum Event {
    /// A child has ended.
    Child,
    Restart,
    End(Signal),
    PassOn(Signal),
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// Nothing if it is ignored. To listen for it would end that.
    hangup: Option<tokio::signal::unix::Signal>,
    restarts: bool,
    child: tokio::signal::unix::Signal,
    first_of_user: tokio::signal::unix::Signal,
    second_of_user: tokio::signal::unix::Signal,
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
            first_of_user: signal(SignalKind::user_defined1())?,
            second_of_user: signal(SignalKind::user_defined2())?,
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
            _ = self.terminate.recv() => Event::End(Signal::TERM),
            _ = self.interrupt.recv() => Event::End(Signal::INT),
            _ = hangup => if *restarts { Event::Restart } else { Event::End(Signal::TERM) },
            _ = self.child.recv() => Event::Child,
            _ = self.first_of_user.recv() => Event::PassOn(Signal::USR1),
            _ = self.second_of_user.recv() => Event::PassOn(Signal::USR2),
        }
    }
}

struct Pools {
    file: PathBuf,
    /// The command line does not have the option yet.
    add_keep_pid: bool,
    /// By process id.
    running: HashMap<Pid, Running>,
    /// Those that have died, by name.
    waiting: BTreeMap<String, Waiting>,
    is_ending: bool,
    /// How a pool ended that did not end well when it was told to.
    failure: Option<Failure>,
    manager: ServiceManager,
}

struct Running {
    name: String,
    since: Instant,
    /// How often in a row it has died before.
    deaths: u32,
    /// It is in the file no longer, and has been told to end.
    is_removed: bool,
}

struct Waiting {
    until: Instant,
    deaths: u32,
}

impl Pools {
    fn start(&mut self, name: String, deaths: u32) {
        let mut command = Command::new(program_file());
        // The options of this command are those of each pool too.
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
        // It is reaped with all others.
        let pid = started.map(|child| Pid::from_raw(child.id().cast_signed()));
        match pid {
            Ok(Some(pid)) => {
                let since = Instant::now();
                self.running.insert(pid, Running { name, since, deaths, is_removed: false });
            }
            Ok(None) => {}
            Err(error) => {
                let program = command.get_program().display();
                self.put_off(name, deaths, &format!("cannot be started by {program}: {error}"));
            }
        }
    }

    fn put_off(&mut self, name: String, deaths: u32, why: &str) {
        let pause = SOONEST.saturating_mul(1 << deaths.min(20)).min(LATEST);
        tracing::error!("pool `{name}` {why}; it is started again in {} s", pause.as_secs_f64());
        self.waiting.insert(name, Waiting { until: Instant::now() + pause, deaths: deaths + 1 });
    }

    /// When the next dead one is to be started.
    fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let due = self.waiting.extract_if(.., |_, waiting| waiting.until <= now);
        for (name, waiting) in due.collect::<Vec<_>>() {
            self.start(name, waiting.deaths);
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = waitpid(None, WaitOptions::NOHANG) {
            let Some(ended) = self.running.remove(&pid) else { continue };
            let Running { name, since, deaths, is_removed } = ended;
            let how = how(status);
            if self.is_ending {
                if let Some(how) = how.filter(|_| self.failure.is_none()) {
                    let failure = Failure::fatal(format!("pool `{name}` {how}"));
                    self.failure = Some(failure.hint("its own message stands above"));
                }
            } else if is_removed {
                tracing::info!("pool `{name}` has ended");
            } else {
                let deaths = if since.elapsed() > STEADY { 0 } else { deaths };
                self.put_off(name, deaths, how.as_deref().unwrap_or("has ended"));
            }
        }
    }

    /// Reads the file again. What cannot be read changes nothing.
    fn reload(&mut self) {
        if self.is_ending {
            return;
        }
        let pools = match config::read(&self.file) {
            Ok(pools) => pools,
            Err(failure) => {
                tracing::error!("all pools go on as they are: {failure}");
                return;
            }
        };
        self.waiting.retain(|name, _| pools.contains_key(name));
        for (&pid, running) in &mut self.running {
            let is_there = pools.contains_key(&running.name);
            if !is_there && !running.is_removed {
                let name = &running.name;
                tracing::info!("pool `{name}` is not in {} any more", self.file.display());
                running.is_removed = true;
                tell(pid, Signal::TERM);
            }
        }
        for name in pools.into_keys() {
            let mut running = self.running.iter();
            match running.find(|(_, running)| running.name == name && !running.is_removed) {
                Some((&pid, _)) => tell(pid, Signal::HUP),
                None => {
                    self.waiting.remove(&name);
                    self.start(name, 0);
                }
            }
        }
    }

    fn end(&mut self, signal: Signal) {
        if !self.is_ending {
            self.manager.notify_stopping();
        }
        self.is_ending = true;
        self.waiting.clear();
        self.pass_on(signal);
    }

    fn pass_on(&self, signal: Signal) {
        self.running.keys().for_each(|&pid| tell(pid, signal));
    }

    fn are_left(&self) -> bool {
        !self.is_ending || !self.running.is_empty()
    }
}

fn tell(pid: Pid, signal: Signal) {
    // One that has just ended needs no signal.
    let _ = kill_process(pid, signal);
}

/// In what way a pool has ended, if not well.
fn how(status: WaitStatus) -> Option<String> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exited with status {code}")),
        (None, signal) => Some(format!("was killed by signal {}", signal.unwrap_or(0))),
    }
}

/// Has the process of a pool end with the command that has started it.
pub(crate) fn end_with_parent() -> io::Result<()> {
    let parent = std::env::var(PARENT).ok().and_then(|pid| pid.parse().ok());
    if parent.is_some() && parent == getppid().map(|parent| parent.as_raw_nonzero().get()) {
        set_parent_process_death_signal(Some(Signal::TERM))?;
    }
    Ok(())
}
