//! The server's one thread: connections, deaths, signals and time, one event after the other.

mod capacity;
mod fork_worker;
mod inspect;
mod reaper;
mod timers;

use std::collections::BTreeMap;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::log_output;
use crate::server::access::{Origin, Rules};
use crate::server::builder::Program;
use crate::server::child::Child;
use crate::server::client_queue::ClientQueue;
use crate::server::control::ControlRequest;
use crate::server::error::ServerError;
use crate::server::guardian::{Guardian, Mark};
use crate::server::handshakes::Handshakes;
use crate::server::hangup::{Hangup, explain_shutdown};
use crate::server::initial_listener::InitialListener;
use crate::server::listener::Listener;
use crate::server::log;
use crate::server::log_limit::LogLimits;
use crate::server::oom::OomKills;
use crate::server::options::Options;
use crate::server::orphans::Orphans;
use crate::server::parent::Parent;
use crate::server::rebind::Files;
use crate::server::restart::{Predecessor, ServiceManager, Successor};
use crate::server::signals::Signals;
use crate::server::socket_file::Identity;
use crate::server::spares::Spares;
use crate::server::status::{Counters, open_status};
use crate::server::status_requests::StatusRequests;
use crate::server::stderr::{Paused, StderrOutput};
use crate::server::wake_pipe::WakePipe;
use crate::sys::{self, OpenFileLimit, ThreadCount, Title};
use crate::time_limit::timespec;
use crate::worker::scoreboard::{Retirement, Scoreboard, now};
use crate::worker::{self, IoBuffers};

const GUARDIAN: u64 = 0;
pub(super) const LISTENER: u64 = 1;
const CONTROL: u64 = 2;
const WAKE: u64 = 3;
pub(super) const STATUS: u64 = 4;
pub(super) const SUCCESSOR: u64 = 5;
pub(super) const STATUS_REQUESTS: u64 = 6;
const HANDSHAKES: u64 = 7;
const QUEUE: u64 = 8;
/// After all that is of workers, and before new ones.
const SIGNALS: u64 = 9;
const PARENT: u64 = 10;
/// A worker's tokens start here: its client's end, and what it writes to standard error.
const CHILDREN: u64 = 11;
const TOKENS: u64 = 2;

/// The token of one of what is watched of a worker.
pub(super) fn token(worker: u64, what: u64) -> u64 {
    CHILDREN + TOKENS * worker + what
}

/// For how long nothing is accepted after descriptors or processes have run out.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct EventLoop {
    pub(super) options: Options,
    pub(super) program: Program,
    pub(super) epoll: OwnedFd,
    pub(super) signals: Signals,
    /// How many descriptors the server may have.
    pub(super) open_files: OpenFileLimit,
    /// What workers get as standard input.
    pub(super) nothing: OwnedFd,
    pub(super) threads: ThreadCount,
    /// Where what workers write to standard error is shown.
    pub(super) shown: StderrOutput,
    pub(super) paused: Paused,
    pub(super) listener: Option<Listener>,
    /// Who may connect.
    pub(super) rules: Rules,
    pub(super) handshakes: Handshakes,
    pub(super) queue: ClientQueue,
    pub(super) log_limits: LogLimits,
    pub(super) scoreboard: Scoreboard,
    /// By the worker's number, which no other worker ever has.
    pub(super) children: BTreeMap<u64, Child>,
    /// How many workers have been forked.
    pub(super) born: u64,
    pub(super) mode: Mode,
    pub(super) accept_again: Option<Instant>,
    pub(super) orphans: Orphans,
    pub(super) spares: Spares,
    pub(super) mark: Mark,
    /// Nobody, if it could not be had.
    pub(super) guardian: Option<Guardian>,
    /// That there is none has been said.
    guardian_failure_logged: bool,
    /// How many workers had to be killed at the end.
    pub(super) killed: usize,
    pub(super) out_of_memory: OomKills,
    /// Written to by workers whose time is over, or who have told where they are.
    pub(super) wake: WakePipe,
    /// Where the server tells of itself.
    pub(super) status: Option<Listener>,
    pub(super) status_requests: StatusRequests,
    pub(super) files: Files,
    pub(super) tally: Counters,
    /// How long the last look at all workers took.
    pub(super) took: Duration,
    pub(super) manager: ServiceManager,
    /// The listener is the one of the server before this one.
    is_listener_inherited: bool,
    /// Where the new server that is to take over says that it is ready.
    pub(super) successor: Option<Successor>,
    /// The new server that has taken over.
    pub(super) successor_pid: Option<Pid>,
    /// For each worker.
    pub(super) buffers: IoBuffers,
    /// What the next worker is called.
    pub(super) title: Title,
    pub(super) pid: u32,
    /// How many cores there are for it.
    pub(super) cores: usize,
    /// When it started, on the clock of the scoreboard.
    pub(super) since: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Serving,
    /// Nothing new begins; what runs may go on until then, or for as long as it takes.
    Draining(Option<Instant>),
    /// Everything has been killed.
    Killing,
}

impl EventLoop {
    /// `inherited` is the listener of the server before this one.
    pub(crate) fn start(
        options: Options,
        program: Program,
        inherited: Option<(OwnedFd, Option<Identity>)>,
    ) -> Result<Self, ServerError> {
        let open_files = OpenFileLimit::raise();
        let rules = options.access.rules()?;
        let handshakes = Handshakes::new(&options.handshakes, &rules)?;
        let uncounted = "cannot count this process's threads";
        let thread_count =
            ThreadCount::of_this_process().map_err(ServerError::system(uncounted))?;
        let threads = thread_count.get().map_err(ServerError::system(uncounted))?;
        if threads > 1 {
            return Err(ServerError::Threads { threads });
        }
        log_output::lock().take_over();
        options.limits.probe(&thread_count)?;
        let hangup = Hangup::of_this_process(options.restart_on_hangup);
        if hangup == Hangup::Ignored {
            log::info!("SIGHUP is ignored, as whoever started this server has set that");
        }
        let signals = Signals::take_over(hangup, options.parent.as_ref().map(Parent::pid))
            .map_err(ServerError::system("cannot take signals over"))?;
        let InitialListener { listener, is_inherited } = InitialListener::new(&options, inherited)?;
        let status = open_status(&options, listener.as_ref())?;
        let status_requests = StatusRequests::new()
            .map_err(ServerError::system("cannot make an epoll instance for the status socket"))?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(ServerError::system("cannot make an epoll instance"))?;
        let nothing =
            File::open("/dev/null").map_err(ServerError::system("cannot open /dev/null"))?;
        let scoreboard = Scoreboard::new()
            .map_err(ServerError::system("cannot map memory to share with workers"))?;
        let wake = WakePipe::new().map_err(ServerError::system(
            "cannot make the pipe through which workers wake the server",
        ))?;
        let manager = ServiceManager::find(&options);
        let shown = StderrOutput::new(options.stderr);
        let mut server = Self {
            options,
            program,
            epoll,
            signals,
            open_files,
            nothing: nothing.into(),
            threads: thread_count,
            shown,
            paused: Paused::default(),
            listener,
            rules,
            handshakes,
            queue: ClientQueue::new()?,
            log_limits: LogLimits::default(),
            children: BTreeMap::new(),
            born: 0,
            mode: Mode::Serving,
            accept_again: None,
            orphans: Orphans::adopt(),
            spares: Spares::default(),
            mark: Mark::set(&scoreboard),
            scoreboard,
            guardian: None,
            guardian_failure_logged: false,
            killed: 0,
            out_of_memory: OomKills::default(),
            wake,
            status,
            status_requests,
            files: Files::default(),
            tally: Counters::default(),
            took: Duration::ZERO,
            manager,
            is_listener_inherited: is_inherited,
            successor: None,
            successor_pid: None,
            buffers: IoBuffers::new(),
            title: Title::new(""),
            pid: std::process::id(),
            cores: sys::available_cores(),
            since: now(),
        };
        if let Some(status) = &server.status {
            server.watch(status.as_fd(), STATUS, EventFlags::IN)?;
        }
        server.watch(server.status_requests.as_fd(), STATUS_REQUESTS, EventFlags::IN)?;
        let cannot_watch = "cannot watch the pipe through which workers wake the server";
        server.wake.watch(&server.epoll, WAKE).map_err(ServerError::system(cannot_watch))?;
        server.watch(server.signals.as_fd(), SIGNALS, EventFlags::IN)?;
        server.watch(server.handshakes.as_fd(), HANDSHAKES, EventFlags::IN)?;
        server.watch(server.queue.as_fd(), QUEUE, EventFlags::IN)?;
        if let Some(listener) = &server.listener {
            server.watch(listener.as_fd(), LISTENER, EventFlags::IN)?;
        }
        if let Some(control) = &server.options.control {
            server.watch(control.as_fd(), CONTROL, EventFlags::IN | EventFlags::RDHUP)?;
        }
        if let Some(line) = server.options.parent.as_ref().and_then(Parent::line) {
            server.watch(line, PARENT, EventFlags::RDHUP)?;
        }
        let name = plain(&server.options.name);
        sys::set_title(&format!("taskfork-server:{name}"));
        server.title = Title::new(&format!("taskfork-worker:{name}"));
        server.start_guardian();
        Ok(server)
    }

    /// Serves until told to stop. Takes over from `predecessor` first.
    pub(crate) fn run(mut self, predecessor: Option<Predecessor>) -> Result<(), ServerError> {
        let address = self.listener.as_ref().map(Listener::address);
        if let Some(address) = address {
            log::info!(name = self.options.name, "listening at {address}");
        }
        self.warn_of_few_open_files();
        if let Some(control) = &self.options.control {
            control.report_ready(address);
        }
        self.manager.notify_ready();
        if let Some(predecessor) = predecessor {
            predecessor.take_over(self.is_listener_inherited);
        }
        self.signals.cache_changed_signals();
        worker::prepare();
        sys::flush_stdio();
        let mut room = [MaybeUninit::uninit(); 64];
        while !self.is_over() {
            let planned = self.plan();
            let timeout = planned.into_iter().chain(self.wake.pause()).min();
            let timeout = timeout.map(timespec);
            if let Err(errno) = self.wake.rest_is_over(&self.epoll, WAKE)
                && self.log_limits.workers.allows(Instant::now())
            {
                log::error!("workers cannot wake the server any more: {errno}");
            }
            if self.orphans.is_pending() {
                self.reap_orphans();
            }
            let events = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => &mut [],
                Err(errno) => {
                    return Err(ServerError::System { what: "epoll failed", source: errno.into() });
                }
            };
            let woken = Instant::now();
            // Deaths come before births, so that no event of a dead worker meets a new one that
            // took its place.
            events.sort_by_key(|event| std::cmp::Reverse(event.data.u64()));
            for event in events.iter() {
                match event.data.u64() {
                    // What there is to do shows in the scoreboard, which is looked at before the next wait.
                    WAKE => self.wake.heard(woken),
                    token => self.handle(token),
                }
            }
            let is_busy = !events.is_empty();
            self.assign_free_workers();
            self.fork_due_spare(is_busy);
        }
        if let Some(guardian) = self.guardian.take() {
            guardian.dismiss();
        }
        self.report_all_omitted();
        log_output::lock().finish();
        match self.killed {
            0 => Ok(()),
            workers => Err(ServerError::Killed { workers }),
        }
    }

    fn is_over(&self) -> bool {
        self.mode != Mode::Serving && self.children.is_empty() && !self.orphans.is_pending()
    }

    fn handle(&mut self, token: u64) {
        match token {
            SIGNALS => {
                while let Some(signal) = self.signals.next() {
                    let is_own = self.options.control.is_none()
                        && self.listener.is_some()
                        && self.signals.asks_for_restart();
                    match self.mode {
                        _ if signal == Signal::SIGCHLD => self.reap_workers(),
                        _ if signal == Signal::SIGUSR1 => self.reopen_log(),
                        _ if signal == Signal::SIGUSR2 => self.log_workers(),
                        Mode::Serving if signal == Signal::SIGHUP && is_own => self.start_restart(),
                        Mode::Serving => {
                            if signal == Signal::SIGHUP && self.options.control.is_none() {
                                explain_shutdown();
                            }
                            self.stop();
                        }
                        _ if signal == Signal::SIGHUP => self.forward_restart(),
                        // It may have begun to end for another reason, such as a new server.
                        _ if !self.signals.is_second_request() => {}
                        _ => self.kill_all("the server was told to end at once"),
                    }
                }
            }
            LISTENER => self.accept(),
            HANDSHAKES => self.read_handshakes(),
            QUEUE => self.remove_disconnected(),
            CONTROL => self.handle_control(),
            SUCCESSOR => self.read_successor(),
            PARENT => self.handle_parent_exit(),
            STATUS => self.accept_status(),
            STATUS_REQUESTS => self.answer_status_requests(),
            GUARDIAN => self.handle_guardian_exit(),
            token => {
                let number = (token - CHILDREN) / TOKENS;
                match ((token - CHILDREN) % TOKENS, self.children.get_mut(&number)) {
                    (0, Some(child)) => child.handle_client_gone(),
                    (_, Some(_)) => self.read_stderr(number),
                    (_, None) => {}
                }
            }
        }
    }

    fn handle_control(&mut self) {
        let Some(control) = &self.options.control else { return };
        match control.next() {
            Ok(Some(ControlRequest::Serve(connection))) if self.mode == Mode::Serving => {
                self.admit(connection, Origin::Local);
            }
            Ok(None | Some(ControlRequest::Serve(_))) => {}
            Ok(Some(ControlRequest::Tell(connection))) => self.add_status_request(connection),
            Ok(Some(ControlRequest::ShutDown)) => {
                self.close_control();
                self.drain();
            }
            Err(error) => {
                log::error!("the line to the parent process failed: {error}");
                self.close_control();
                self.drain();
            }
        }
    }

    /// Shuts down gracefully.
    fn stop(&mut self) {
        self.cancel_successor();
        self.manager.notify_stopping();
        self.drain();
    }

    /// The parent process has been killed, which would pass on a wish to end.
    fn handle_parent_exit(&mut self) {
        if let Some(line) = self.options.parent.as_ref().and_then(Parent::line) {
            let _ = epoll::delete(&self.epoll, line);
        }
        if self.mode == Mode::Serving {
            log::error!("the parent process has ended, and so does this server");
            self.stop();
        }
    }

    /// There is nobody at the other end any more.
    fn close_control(&mut self) {
        if let Some(control) = self.options.control.take() {
            let _ = epoll::delete(&self.epoll, &control);
        }
    }

    pub(super) fn drain(&mut self) {
        log::info!(name = self.options.name, workers = self.children.len(), "shutting down");
        self.listener = None;
        self.handshakes.close_all();
        self.queue.close_all();
        self.mode = Mode::Draining(self.options.shutdown_grace.after(Instant::now()));
        for child in self.children.values_mut() {
            child.retire(Retirement::Shutdown);
        }
    }

    pub(super) fn kill_all(&mut self, reason: &str) {
        if self.mode != Mode::Killing {
            self.killed = self.children.len();
        }
        self.mode = Mode::Killing;
        for child in self.children.values_mut() {
            child.execute(reason);
        }
    }

    pub(super) fn watch(
        &self,
        what: BorrowedFd<'_>,
        token: u64,
        flags: EventFlags,
    ) -> Result<(), ServerError> {
        epoll::add(&self.epoll, what, EventData::new_u64(token), flags)
            .map_err(ServerError::system("cannot watch a descriptor"))
    }

    /// Has a process see to what this one could not end if it were killed.
    pub(super) fn start_guardian(&mut self) {
        let name = plain(&self.options.name);
        let posted = Guardian::start(
            &name,
            &self.mark,
            self.children.values().map(|it| it.pid),
            &self.threads,
        )
        .map_err(ServerError::system("it cannot be forked"))
        .and_then(|guardian| {
            self.watch(guardian.as_fd(), GUARDIAN, EventFlags::IN)?;
            Ok(guardian)
        });
        match posted {
            Ok(guardian) => {
                self.orphans.exclude(guardian.pid());
                self.guardian = Some(guardian);
                self.guardian_failure_logged = false;
            }
            Err(error) if !self.guardian_failure_logged => {
                self.guardian_failure_logged = true;
                log::error!(
                    "without a guardian for now, what workers start outlives a killed server: {error}"
                );
            }
            Err(_) => {}
        }
    }

    /// The guardian has died.
    fn handle_guardian_exit(&mut self) {
        let Some(guardian) = self.guardian.take() else { return };
        let _ = epoll::delete(&self.epoll, &guardian);
        self.orphans.forget(guardian.pid());
        if self.log_limits.guardians.allows(Instant::now()) {
            log::warn!(name = self.options.name, "the guardian has died, and is replaced");
        }
    }

    /// The guardian does not take note of workers any more. The next one knows those that live when it is forked.
    pub(super) fn replace_guardian(&mut self) {
        let Some(guardian) = self.guardian.take() else { return };
        let _ = epoll::delete(&self.epoll, &guardian);
        if self.log_limits.guardians.allows(Instant::now()) {
            let name = &self.options.name;
            log::warn!(name, "the guardian does not answer, and is replaced");
        }
        self.orphans.forget(guardian.pid());
        guardian.dismiss();
    }

    pub(super) fn worker_limit(&self) -> usize {
        self.options.max_workers.min(Scoreboard::CAPACITY)
    }

    pub(super) fn set_listener_paused(&self, pause: bool) {
        let Some(listener) = &self.listener else { return };
        let flags = if pause { EventFlags::empty() } else { EventFlags::IN };
        if let Err(errno) =
            epoll::modify(&self.epoll, listener, EventData::new_u64(LISTENER), flags)
        {
            log::error!("cannot change the watch on the listener: {errno}");
        }
    }
}

/// The name without what would disturb a terminal or a line, in at most 64 bytes.
pub(super) fn plain(name: &str) -> String {
    let name = &name[..name.floor_char_boundary(64)];
    name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}
