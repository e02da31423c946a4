//! The guardian: a process that outlives a killed server by a moment. The kernel kills the workers
//! of a killed server, but not the processes that they have started. The guardian sees the server's
//! end by the end of its channel, kills these processes, and removes what the
//! server has made for its workers.

mod process_groups;
mod records;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, kill_process_group, pidfd_open,
    pidfd_send_signal, setpgid, waitpid,
};

use self::records::{ProcessGroups, RecordWriter, WriteOutcome};
use crate::server::environment;
use crate::server::process::is_child_of;
use crate::server::scratch::{REMOVAL_TIMEOUT, remove_folder};
use crate::server::worker_groups::remove_groups;
use crate::sys::{self, Forked, MappedFile, ThreadCount};
use crate::worker::scoreboard::Scoreboard;

/// How soon a guardian that could not be forked is tried again.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The maximum number of searches for processes. A killed process may have started another right
/// before.
const MAX_ROUNDS: u32 = 200;
const ROUND_PAUSE: Duration = Duration::from_millis(5);
/// The search ends after this many searches in a row without a result.
const EMPTY_ROUNDS: u32 = 3;

/// How long the guardian waits for the server's end after the channel has been closed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether the guardian is being forked.
static IS_FORKING: AtomicBool = AtomicBool::new(false);

/// Whether the fork that happens now is that of the guardian. Handlers of forks may ask: it never runs code of the program.
pub(crate) fn is_forking() -> bool {
    IS_FORKING.load(Relaxed)
}

/// What a server has made for its workers, and the guardian removes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Folders<'a> {
    /// The folder of scratch directories.
    pub(crate) scratch: Option<&'a Path>,
    /// The group in which the control groups of workers are.
    pub(crate) groups: Option<&'a Path>,
}

/// The server's view of its guardian.
#[derive(Debug)]
pub(crate) struct Guardian {
    pid: Pid,
    pidfd: OwnedFd,
    channel: OwnedFd,
    records: RecordWriter,
    /// It has said that it is ready.
    is_ready: bool,
}

impl Guardian {
    /// Forks the guardian. It becomes ready while the server goes on.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(crate) fn start(
        name: &str,
        mark: &Mark,
        workers: impl Iterator<Item = Pid>,
        threads: &ThreadCount,
        folders: Folders<'_>,
    ) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let (reader, records) = records::pipe()?;
        let server = getpid();
        IS_FORKING.store(true, Relaxed);
        // SAFETY: the child closes everything but its channel and pipe, only reads shared memory,
        // and leaves by `exit_now`.
        let forked = unsafe { sys::fork(threads) };
        IS_FORKING.store(false, Relaxed);
        match forked.map_err(io::Error::other)? {
            Forked::Parent { child } => {
                // This leaves room for the descriptor of the process.
                drop((theirs, reader));
                let pid = Pid::from_raw(child.as_raw()).ok_or(io::ErrorKind::NotFound)?;
                match pidfd_open(pid, PidfdFlags::empty()) {
                    Ok(pidfd) => Ok(Self { pid, pidfd, channel: ours, records, is_ready: false }),
                    Err(error) => {
                        let _ = kill_process(pid, Signal::KILL);
                        let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
                        Err(error.into())
                    }
                }
            }
            Forked::Child => {
                // The id is 0 if the group's leader is outside of this PID namespace.
                let group = Pid::from_raw(nix::unistd::getpgrp().as_raw());
                let refused = [Some(server), group, Some(getpid())];
                let groups = ProcessGroups::new(workers, refused);
                let status =
                    match guardian_main(name, [theirs, reader], server, mark, groups, folders) {
                        Ok(()) => 0,
                        Err(_) => 1,
                    };
                sys::exit_now(status)
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until the guardian is ready. Returns false if it has ended before.
    pub(crate) fn await_ready(&mut self) -> bool {
        let receive = || recv(&self.channel, &mut [0; 1], RecvFlags::empty());
        self.is_ready = self.is_ready || matches!(retry_on_intr(receive), Ok((_, 1)));
        self.is_ready
    }

    /// Records that a worker has been forked. Returns false if the guardian does not read records
    /// any more.
    pub(crate) fn record_fork(&mut self, worker: Pid) -> bool {
        if !self.await_ready() {
            return false;
        }
        let outcome = self.records.record_fork(worker);
        self.is_recorded(outcome)
    }

    /// Records that a worker is about to be reaped. Returns false if the guardian does not read
    /// records any more.
    pub(crate) fn record_reap(&mut self, worker: Pid) -> bool {
        let outcome = self.records.record_reap(worker);
        self.is_recorded(outcome)
    }

    fn is_recorded(&self, outcome: WriteOutcome) -> bool {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match outcome {
            WriteOutcome::Written => true,
            WriteOutcome::AskToRead => send(&self.channel, b"r", flags).is_ok(),
            WriteOutcome::Full => false,
        }
    }

    /// Kills the guardian of a server that ends regularly.
    pub(crate) fn stop(self) {
        // It may have died, and it may be stopped by SIGSTOP, so SIGKILL is the only signal that
        // always works.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
    }

    /// The descriptors that a worker must close.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.pidfd.as_fd(), self.channel.as_fd(), self.records.as_fd()]
    }
}

impl AsFd for Guardian {
    /// Readable when the guardian has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The main function of the guardian: waits for the server's end.
#[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
fn guardian_main(
    name: &str,
    descriptors: [OwnedFd; 2],
    server: Pid,
    mark: &Mark,
    mut groups: ProcessGroups,
    folders: Folders<'_>,
) -> io::Result<()> {
    let _ = setpgid(None, None);
    sys::block_signals(&nix::sys::signal::SigSet::all())?;
    // SAFETY: the guardian never returns into the server's code, and leaves by `exit_now`.
    let [channel, records] = unsafe { sys::close_all_except(descriptors) }?;
    sys::set_title(&format!("taskfork-guardian:{name}"));
    send(&channel, b"r", SendFlags::NOSIGNAL)?;
    // A message asks the guardian to read records. The end of the channel is the server's end. A
    // server that ends regularly kills the guardian first.
    while let Ok((_, 1)) = retry_on_intr(|| recv(&channel, &mut [0; 1], RecvFlags::empty())) {
        groups.read(&records);
    }
    groups.read(&records);
    // A process closes its descriptors a moment before its children lose their parent. A server
    // that still lives has only closed this channel, and its workers must not be killed.
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while Instant::now() < deadline {
        if !is_child_of(server) {
            kill_all_workers(mark, &groups, process_groups::now());
            if let Some(path) = folders.groups {
                remove_groups(path, server.as_raw_nonzero().get().unsigned_abs());
            }
            if let Some(path) = folders.scratch {
                remove_folder(path, REMOVAL_TIMEOUT);
            }
            break;
        }
        std::thread::sleep(ROUND_PAUSE);
    }
    Ok(())
}

fn kill_all_workers(mark: &Mark, groups: &ProcessGroups, ended: process_groups::Ticks) {
    let members = process_groups::members();
    for group in groups.iter() {
        // The group existed as long as the server lived. After that its number may have been
        // reused.
        let mut own = members.iter().filter(|member| member.group == group);
        if own.any(|member| member.started <= ended || mark.is_marked(member.pid)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
    // A process that is just executing a program has no readable mark for a moment.
    let mut empty = 0;
    for _ in 0..MAX_ROUNDS {
        empty = if mark.kill_all() { 0 } else { empty + 1 };
        if empty == EMPTY_ROUNDS {
            return;
        }
        std::thread::sleep(ROUND_PAUSE);
    }
}

/// The mark of processes that come from a worker of this server.
#[derive(Debug)]
pub(crate) struct Mark {
    /// The environment entry of processes that have executed another program.
    variable: String,
    /// The memory mapping of processes that were only forked. Only descendants of this server have
    /// it.
    mapping: Option<MappedFile>,
}

impl Mark {
    /// Marks all processes that this process forks and starts from now on.
    pub(crate) fn set(scoreboard: &Scoreboard) -> Self {
        let mapping = scoreboard.published_file().clone();
        // The name of a mapping is unique on one machine, and so is the id of a living process.
        let value = format!("{}-{mapping}", std::process::id());
        sys::set_variable(environment::SERVER_ID, &value);
        Self { variable: format!("{}={value}", environment::SERVER_ID), mapping: Some(mapping) }
    }

    #[cfg(test)]
    pub(crate) fn without_mapping(variable: &str) -> Self {
        Self { variable: variable.to_owned(), mapping: None }
    }

    /// Kills all marked processes. Returns whether there were any.
    fn kill_all(&self) -> bool {
        let mut any = false;
        let listed = std::fs::read_dir("/proc").into_iter().flatten();
        let names = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        for pid in names.filter_map(Pid::from_raw).filter(|&pid| pid != getpid()) {
            // With a descriptor of the process, the number cannot be reused.
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            if self.is_marked(pid) {
                any |= pidfd_send_signal(&pidfd, Signal::KILL).is_ok();
            }
        }
        any
    }

    fn is_marked(&self, pid: Pid) -> bool {
        self.check(pid) == MarkCheck::Yes
    }

    /// Checks whether a process has the mark. The mappings are read first: if a copy of a worker
    /// executes a program in between, its environment has the mark.
    pub(crate) fn check(&self, pid: Pid) -> MarkCheck {
        let read = |what| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let maps = read("maps");
        if self.mapping.as_ref().is_some_and(|it| it.is_in(&String::from_utf8_lossy(&maps))) {
            return MarkCheck::Yes;
        }
        let environment = read("environ");
        if environment.split(|&byte| byte == 0).any(|entry| entry == self.variable.as_bytes()) {
            return MarkCheck::Yes;
        }
        if maps.is_empty() || environment.is_empty() { MarkCheck::Unknown } else { MarkCheck::No }
    }
}

/// Whether a process has the mark of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MarkCheck {
    Yes,
    No,
    /// Neither can be read: the process belongs to another user, has no environment, or is
    /// executing a program.
    Unknown,
}
