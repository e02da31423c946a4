//! What the event loop holds, each part for one purpose.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::Pid;

use super::client_id::ClientIds;
use super::clients::WaitingClients;
use super::partial_forks::PartialForks;
use super::rebind::SocketFiles;
use super::stderr::LimitedStderr;
use crate::server::access::Rules;
use crate::server::counters::Counters;
use crate::server::delayed_check::DelayedCheck;
use crate::server::guardian::{Guardian, Mark};
use crate::server::handshakes::Handshakes;
use crate::server::listener::Listener;
use crate::server::log_limit::LogLimits;
use crate::server::oom::OomKills;
use crate::server::orphans::Orphans;
use crate::server::privileges::WorkerPrivileges;
use crate::server::restart::Successor;
use crate::server::scratch::ScratchFolder;
use crate::server::signals::Signals;
use crate::server::status_requests::StatusRequests;
use crate::server::stderr::StderrOutput;
use crate::server::wake_pipe::WakePipe;
use crate::server::worker_groups::WorkerGroups;
use crate::sys::{OpenFileLimit, ThreadCount, Title};
use crate::worker::{IoBuffers, WorkerInit, WorkerSandbox};

/// The code of a worker, with the types of its state and its interface erased. Returns the exit
/// status.
pub(crate) type Program = Box<dyn Fn(WorkerInit) -> i32>;

/// The server's own process, and what wakes it.
pub(super) struct ServerProcess {
    pub(super) pid: u32,
    pub(super) epoll: OwnedFd,
    pub(super) signals: Signals,
    /// Workers write to it when their deadline has passed, or when they have reported their stack.
    pub(super) wake: WakePipe,
    pub(super) threads: ThreadCount,
    /// The limit of the server's descriptors.
    pub(super) open_files: OpenFileLimit,
    pub(super) partial_forks: PartialForks,
}

/// The listener, and the connections without a worker.
pub(super) struct Connections {
    pub(super) listener: Option<Listener>,
    /// The listener comes from the server before this one.
    pub(super) is_listener_inherited: bool,
    pub(super) files: SocketFiles,
    pub(super) rules: Rules,
    pub(super) client_ids: ClientIds,
    pub(super) handshakes: Handshakes,
    pub(super) waiting: WaitingClients,
}

/// What each new worker gets a copy of, or applies to itself.
pub(super) struct WorkerTemplate {
    pub(super) program: Program,
    /// Its standard input.
    pub(super) dev_null: OwnedFd,
    pub(super) buffers: IoBuffers,
    /// The process title of the next worker.
    pub(super) title: Title,
    /// The number of CPUs that the server may use.
    pub(super) cores: usize,
    pub(super) privileges: WorkerPrivileges,
    pub(super) sandbox: Option<WorkerSandbox>,
}

/// Where workers have their scratch directories and control groups.
pub(super) struct Surroundings {
    pub(super) scratch: Option<ScratchFolder>,
    pub(super) groups: Option<WorkerGroups>,
}

/// How the server finds and ends processes that workers have started.
pub(super) struct Descendants {
    pub(super) mark: Mark,
    pub(super) orphans: Orphans,
    /// The next look for workers whose deaths no signal has named.
    pub(super) unnamed_exits: DelayedCheck,
    /// `None` if it could not be started.
    pub(super) guardian: Option<Guardian>,
    /// The last failure to start a guardian has been logged.
    pub(super) guardian_failure_logged: bool,
    /// What a worker waits for that is forked before the guardian. `None` from then on.
    pub(super) gate: Option<OwnedFd>,
    pub(super) oom_kills: OomKills,
}

/// What goes to the log, and how much of it.
pub(super) struct Logs {
    /// Where the standard error of workers goes.
    pub(super) stderr: StderrOutput,
    pub(super) limited_stderr: LimitedStderr,
    pub(super) limits: LogLimits,
}

/// The status socket, and what the status counts.
pub(super) struct StatusService {
    pub(super) listener: Option<Listener>,
    pub(super) requests: StatusRequests,
    pub(super) counters: Counters,
    /// When the server started, on the clock of the scoreboard.
    pub(super) started_at: Duration,
}

/// The new server that takes over.
#[derive(Default)]
pub(super) struct Takeover {
    /// It is not ready yet.
    pub(super) successor: Option<Successor>,
    /// It has taken over.
    pub(super) successor_pid: Option<Pid>,
}
