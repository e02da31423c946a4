//! The server's one thread. It handles connections, exits of workers, signals and timers, one event
//! after the other. Submodules handle the kinds of events; the types outside of this directory do
//! not know the loop.

mod accept;
mod capacity;
mod carry_out;
mod children;
mod client_id;
mod clients;
mod fork_worker;
mod guard;
mod helpers;
mod inspect;
mod log_summary;
mod partial_forks;
mod reaper;
mod rebind;
mod restart;
mod shutdown;
mod state;
mod status;
mod stderr;
mod timers;

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use self::children::Children;
use self::client_id::ClientIds;
use self::clients::WaitingClients;
use self::partial_forks::PartialForks;
use self::rebind::SocketFiles;
pub(crate) use self::state::Program;
use self::state::{
    Connections, Descendants, Logs, ServerProcess, StatusService, Surroundings, Takeover,
    WorkerTemplate,
};
use self::status::open_status;
use self::stderr::LimitedStderr;
use crate::clock::now;
use crate::log_output;
use crate::server::counters::Counters;
use crate::server::delayed_check::DelayedCheck;
use crate::server::error::ServerError;
use crate::server::guardian::Mark;
use crate::server::handshakes::Handshakes;
use crate::server::hangup::Hangup;
use crate::server::initial_listener::InitialListener;
use crate::server::listener::Listener;
use crate::server::log;
use crate::server::log_limit::LogLimits;
use crate::server::oom::OomKills;
use crate::server::options::Options;
use crate::server::orphans::Orphans;
use crate::server::parent::Parent;
use crate::server::privileges::WorkerPrivileges;
use crate::server::restart::Predecessor;
use crate::server::sandbox::prepare_sandbox;
use crate::server::scratch::{self, ScratchFolder};
use crate::server::service_manager::ServiceManager;
use crate::server::signals::Signals;
use crate::server::socket_file::Identity;
use crate::server::status_requests::StatusRequests;
use crate::server::stderr::StderrOutput;
use crate::server::supervisor::{self, Supervisor};
use crate::server::titles::printable_name;
use crate::server::wake_pipe::WakePipe;
use crate::server::worker_groups::{WorkerGroups, remove_groups};
use crate::sys::{self, OpenFileLimit, ThreadCount, Title};
use crate::time_limit::timespec;
use crate::worker::scoreboard::Scoreboard;
use crate::worker::{self, IoBuffers};

const GUARDIAN: u64 = 0;
const LISTENER: u64 = 1;
const CONTROL: u64 = 2;
const WAKE: u64 = 3;
const STATUS: u64 = 4;
const SUCCESSOR: u64 = 5;
const STATUS_REQUESTS: u64 = 6;
const HANDSHAKES: u64 = 7;
const QUEUE: u64 = 8;
/// After all events of workers that are running, and before those of new ones.
const SIGNALS: u64 = 9;
const PARENT: u64 = 10;
/// The first token of a worker. A worker has two: its client's connection, and its standard error.
const CHILDREN: u64 = 11;
const TOKENS: u64 = 2;

/// The token of one of a worker's descriptors.
fn token(worker: u64, what: u64) -> u64 {
    CHILDREN + TOKENS * worker + what
}

pub(crate) struct EventLoop {
    supervisor: Supervisor,
    options: Options,
    children: Children,
    scoreboard: Scoreboard,
    /// When all slots were read last, on the clock of the scoreboard, and how long that took.
    scanned_at: Duration,
    scan_time: Duration,
    process: ServerProcess,
    connections: Connections,
    template: WorkerTemplate,
    surroundings: Surroundings,
    descendants: Descendants,
    logs: Logs,
    status: StatusService,
    takeover: Takeover,
    service_manager: ServiceManager,
}

impl EventLoop {
    /// Opens the listener and everything else that the server needs. `inherited` is the listener of
    /// the server before this one.
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
        let service_manager = ServiceManager::find(&options);
        let privileges = WorkerPrivileges::new(
            &options.privileges,
            &options.limits,
            service_manager.variables(),
            &thread_count,
        )?;
        let groups = WorkerGroups::open(&options.limits)?;
        let sandbox = prepare_sandbox(&options.sandbox, &privileges, &thread_count)?;
        let hangup = Hangup::of_this_process(options.restart_on_hangup);
        if hangup == Hangup::Ignored {
            log::info!("SIGHUP is ignored, as whoever started this server has set that");
        }
        let signals = Signals::take_over(hangup, options.parent.as_ref().map(Parent::pid))
            .map_err(ServerError::system("cannot take signals over"))?;
        let InitialListener { listener, is_inherited } =
            InitialListener::acquire(&options, inherited)?;
        let status = open_status(&options, listener.as_ref())?;
        let status_requests = StatusRequests::new()
            .map_err(ServerError::system("cannot make an epoll instance for the status socket"))?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(ServerError::system("cannot make an epoll instance"))?;
        let dev_null =
            File::open("/dev/null").map_err(ServerError::system("cannot open /dev/null"))?;
        let scoreboard = Scoreboard::new(options.programs_may_take_over)
            .map_err(ServerError::system("cannot map memory to share with workers"))?;
        let wake = WakePipe::new().map_err(ServerError::system(
            "cannot make the pipe through which workers wake the server",
        ))?;
        let stderr_output = StderrOutput::new(options.stderr);
        let mut server = Self {
            supervisor: Supervisor::new(supervisor::Config {
                max_workers: options.max_workers.min(Scoreboard::CAPACITY),
                spare_workers: options.spare_workers,
                max_waiting: handshakes.limit(),
                max_handshakes: handshakes.limit(),
                handshake_timeout: handshakes.timeout().get(),
                hung_worker_timeout: options.hung_worker_timeout.get(),
                shutdown_grace: options.shutdown_grace.get(),
                recycling: options.recycling,
            }),
            options,
            children: Children::default(),
            scanned_at: Duration::ZERO,
            scan_time: Duration::ZERO,
            process: ServerProcess {
                pid: std::process::id(),
                epoll,
                signals,
                wake,
                threads: thread_count,
                open_files,
                partial_forks: PartialForks::default(),
            },
            connections: Connections {
                listener,
                is_listener_inherited: is_inherited,
                files: SocketFiles::default(),
                rules,
                client_ids: ClientIds::default(),
                handshakes,
                waiting: WaitingClients::new()?,
            },
            template: WorkerTemplate {
                program,
                dev_null: dev_null.into(),
                buffers: IoBuffers::new(),
                title: Title::new(""),
                cores: sys::available_cores(),
                privileges,
                sandbox,
            },
            surroundings: Surroundings { scratch: None, groups },
            descendants: Descendants {
                mark: Mark::set(&scoreboard),
                orphans: Orphans::new(),
                unnamed_exits: DelayedCheck::default(),
                guardian: None,
                guardian_failure_logged: false,
                gate: None,
                oom_kills: OomKills::default(),
            },
            scoreboard,
            logs: Logs {
                stderr: stderr_output,
                limited_stderr: LimitedStderr::default(),
                limits: LogLimits::default(),
            },
            status: StatusService {
                listener: status,
                requests: status_requests,
                counters: Counters::default(),
                started_at: now(),
            },
            takeover: Takeover::default(),
            service_manager,
        };
        if let Some(status) = &server.status.listener {
            server.watch(status.as_fd(), STATUS, EventFlags::IN)?;
        }
        server.watch(server.status.requests.as_fd(), STATUS_REQUESTS, EventFlags::IN)?;
        let cannot_watch = "cannot watch the pipe through which workers wake the server";
        server
            .process
            .wake
            .watch(&server.process.epoll, WAKE)
            .map_err(ServerError::system(cannot_watch))?;
        server.watch(server.process.signals.as_fd(), SIGNALS, EventFlags::IN)?;
        server.watch(server.connections.handshakes.as_fd(), HANDSHAKES, EventFlags::IN)?;
        server.watch(server.connections.waiting.as_fd(), QUEUE, EventFlags::IN)?;
        if let Some(listener) = &server.connections.listener {
            server.watch(listener.as_fd(), LISTENER, EventFlags::IN)?;
        }
        if let Some(control) = &server.options.control {
            server.watch(control.as_fd(), CONTROL, EventFlags::IN | EventFlags::RDHUP)?;
        }
        if let Some(channel) = server.options.parent.as_ref().and_then(Parent::channel) {
            server.watch(channel, PARENT, EventFlags::RDHUP)?;
        }
        // Last, so that no folder is left if the server cannot start.
        let identity = server.template.privileges.identity();
        server.surroundings.scratch = ScratchFolder::create(&server.options.scratch, identity)?;
        let name = printable_name(&server.options.name);
        sys::set_title(&format!("taskfork-server:{name}"));
        server.template.title = Title::new(&format!("taskfork-worker:{name}"));
        Ok(server)
    }

    /// Serves until the shutdown is complete. Takes over from `predecessor` first.
    pub(crate) fn run(mut self, predecessor: Option<Predecessor>) -> Result<(), ServerError> {
        if let Some(listener) = &self.connections.listener {
            log::info!(name = self.options.name, "listening at {}", listener.address());
        }
        self.warn_of_few_open_files();
        self.process.signals.cache_signals_to_reset();
        worker::prepare();
        // If this fails, the first fork tries again and reports why.
        let _ = self.scoreboard.reserve();
        // Before the first fork of a worker.
        sys::flush_stdio();
        if predecessor.is_none() {
            self.serve_first_client();
        }
        self.start_guardian();
        self.await_guardian();
        let address = self.connections.listener.as_ref().map(Listener::address);
        if let Some(control) = &self.options.control {
            control.report_ready(address);
        }
        self.service_manager.notify_ready();
        if let Some(predecessor) = predecessor {
            predecessor.take_over(self.connections.is_listener_inherited);
        }
        let mut room = [MaybeUninit::uninit(); 64];
        while !self.is_finished() {
            let planned = self.run_timers();
            let timeout = planned.into_iter().chain(self.process.wake.finish_wakeup()).min();
            let timeout = timeout.map(timespec);
            if let Err(errno) = self.process.wake.resume_if_due(&self.process.epoll, WAKE)
                && self.logs.limits.workers.acquire(Instant::now())
            {
                log::error!("workers cannot wake the server any more: {errno}");
            }
            self.check_children();
            let events = match epoll::wait(&self.process.epoll, &mut room, timeout.as_ref()) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => &mut [],
                Err(errno) => {
                    return Err(ServerError::System { what: "epoll failed", source: errno.into() });
                }
            };
            let woken = Instant::now();
            // Exits come before connections. So no event of a dead worker is taken for one of a new
            // worker that has the same descriptor.
            events.sort_by_key(|event| std::cmp::Reverse(event.data.u64()));
            for event in events.iter() {
                match event.data.u64() {
                    // The next run of the timers reads the scoreboard, so the pipe's content does
                    // not matter.
                    WAKE => self.process.wake.drain(woken),
                    token => self.dispatch(token),
                }
            }
            let is_busy = !events.is_empty();
            self.supervisor.end_turn(is_busy, now());
            self.carry_out_actions();
        }
        if let Some(guardian) = self.descendants.guardian.take() {
            guardian.stop();
        }
        if let Some(scratch) = self.surroundings.scratch.take() {
            scratch::remove_folder(scratch.path(), scratch::WAITING_TIMEOUT);
        }
        if let Some(groups) = self.surroundings.groups.take() {
            remove_groups(groups.path(), self.process.pid);
        }
        self.report_all_omitted();
        log_output::lock().finish();
        match self.supervisor.killed() {
            0 => Ok(()),
            workers => Err(ServerError::Killed { workers }),
        }
    }

    fn is_finished(&self) -> bool {
        self.supervisor.is_finished() && !self.descendants.orphans.are_pending()
    }

    fn dispatch(&mut self, token: u64) {
        match token {
            SIGNALS => {
                while let Some(signal) = self.process.signals.next() {
                    self.handle_signal(signal);
                    self.carry_out_actions();
                }
            }
            LISTENER => self.accept(),
            HANDSHAKES => self.read_handshakes(),
            QUEUE => self.remove_closed_clients(),
            CONTROL => self.handle_control(),
            SUCCESSOR => self.read_successor(),
            PARENT => self.handle_parent_exit(),
            STATUS => self.accept_status(),
            STATUS_REQUESTS => self.answer_status_requests(),
            GUARDIAN => self.handle_guardian_exit(),
            token => {
                let number = (token - CHILDREN) / TOKENS;
                match ((token - CHILDREN) % TOKENS, self.children.get_mut(number)) {
                    (0, Some(child)) => {
                        let observed = child.mark_client_gone();
                        self.supervisor.handle_client_gone(number, &observed, now());
                    }
                    (_, Some(_)) => self.read_stderr(number),
                    (_, None) => {}
                }
            }
        }
        self.carry_out_actions();
    }

    fn handle_signal(&mut self, signal: Signal) {
        match signal {
            Signal::SIGCHLD => self.reap_named(self.process.signals.sender()),
            Signal::SIGUSR1 => self.reopen_log(),
            Signal::SIGUSR2 => self.log_workers(),
            Signal::SIGHUP => self.handle_hangup(),
            _ => {
                let is_repeated = self.process.signals.is_second_request();
                self.supervisor.handle_end_request(is_repeated, now());
            }
        }
    }

    pub(super) fn watch(
        &self,
        what: BorrowedFd<'_>,
        token: u64,
        flags: EventFlags,
    ) -> Result<(), ServerError> {
        epoll::add(&self.process.epoll, what, EventData::new_u64(token), flags)
            .map_err(ServerError::system("cannot watch a descriptor"))
    }

    pub(super) fn set_listener_paused(&self, pause: bool) {
        let Some(listener) = &self.connections.listener else { return };
        let flags = if pause { EventFlags::empty() } else { EventFlags::IN };
        if let Err(errno) =
            epoll::modify(&self.process.epoll, listener, EventData::new_u64(LISTENER), flags)
        {
            log::error!("cannot change the watch on the listener: {errno}");
        }
    }
}
