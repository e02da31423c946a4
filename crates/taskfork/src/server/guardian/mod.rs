//! A process that outlives the server by a moment. A server that is killed can end nothing any more:
//! its workers are killed by the kernel, but not what they have started. The guardian sees the
//! server's end by that of a line, and ends all of that.

mod process_groups;
mod records;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
use crate::sys::{self, Forked, MappedFile, ThreadCount};
use crate::worker::scoreboard::Scoreboard;

/// What is started in a worker has this variable, with the server's own value.

/// How soon another is tried if one could not be forked.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// How often to look for more, at most: what is killed may just have started something.
const MAX_ROUNDS: u32 = 200;
const ROUND_PAUSE: Duration = Duration::from_millis(5);
/// So many times in a row nothing is found at the end.
const EMPTY_ROUNDS: u32 = 3;

/// How long the server's end is waited for once it has closed its end of the line.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// The server's hold on its guardian.
#[derive(Debug)]
pub(crate) struct Guardian {
    pid: Pid,
    pidfd: OwnedFd,
    line: OwnedFd,
    records: RecordWriter,
}

impl Guardian {
    /// Forks it, and waits until it is on guard.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(crate) fn start(
        name: &str,
        mark: &Mark,
        workers: impl Iterator<Item = Pid>,
        threads: &ThreadCount,
    ) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let (reader, records) = records::pipe()?;
        let server = getpid();
        // SAFETY: the child closes all that it has but its line, and only reads what it shares with the server.
        match unsafe { sys::fork(threads) }.map_err(io::Error::other)? {
            Forked::Parent { child } => {
                // Which leaves room for the descriptor of the process.
                drop((theirs, reader));
                let pid = Pid::from_raw(child.as_raw()).ok_or(io::ErrorKind::NotFound)?;
                let started = wait_until_ready(&ours)
                    .and_then(|()| Ok(pidfd_open(pid, PidfdFlags::empty())?));
                match started {
                    Ok(pidfd) => Ok(Self { pid, pidfd, line: ours, records }),
                    Err(error) => {
                        let _ = kill_process(pid, Signal::KILL);
                        let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
                        Err(error)
                    }
                }
            }
            Forked::Child => {
                // It is 0 where the group's leader is outside of this namespace of processes.
                let group = Pid::from_raw(nix::unistd::getpgrp().as_raw());
                let refused = [Some(server), group, Some(getpid())];
                let groups = ProcessGroups::new(workers, refused);
                let status = match guardian_main(name, [theirs, reader], server, mark, groups) {
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

    /// A worker has been forked. Tells whether the guardian takes note of it.
    pub(crate) fn record_fork(&mut self, worker: Pid) -> bool {
        let outcome = self.records.record_fork(worker);
        self.is_recorded(outcome)
    }

    /// A worker is about to be reaped. Tells whether the guardian takes note of it.
    pub(crate) fn record_reap(&mut self, worker: Pid) -> bool {
        let outcome = self.records.record_reap(worker);
        self.is_recorded(outcome)
    }

    fn is_recorded(&self, outcome: WriteOutcome) -> bool {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match outcome {
            WriteOutcome::Written => true,
            WriteOutcome::AskToRead => send(&self.line, b"r", flags).is_ok(),
            WriteOutcome::Full => false,
        }
    }

    /// It has nothing to do where the server ends by itself.
    pub(crate) fn stop(self) {
        // It may be dead already, and it may be stopped.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
    }

    /// What a new worker closes.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.pidfd.as_fd(), self.line.as_fd(), self.records.as_fd()]
    }
}

impl AsFd for Guardian {
    /// Readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Waits until the guardian is on guard.
fn wait_until_ready(line: &OwnedFd) -> io::Result<()> {
    match retry_on_intr(|| recv(line, &mut [0; 1], RecvFlags::empty())) {
        Ok((_, 1)) => Ok(()),
        _ => Err(io::Error::other("it did not come up")),
    }
}

/// In the guardian: waits for the server's end.
#[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
fn guardian_main(
    name: &str,
    descriptors: [OwnedFd; 2],
    server: Pid,
    mark: &Mark,
    mut groups: ProcessGroups,
) -> io::Result<()> {
    let _ = setpgid(None, None);
    sys::block_signals(&nix::sys::signal::SigSet::all())?;
    // SAFETY: the guardian never returns into the server's code, and leaves by `exit_now`.
    let [line, records] = unsafe { sys::close_all_except(descriptors) }?;
    sys::set_title(&format!("taskfork-guardian:{name}"));
    send(&line, b"r", SendFlags::NOSIGNAL)?;
    // The server asks for room in the pipe, and its end is that of the line. One that ends by itself ends this
    // process first.
    while let Ok((_, 1)) = retry_on_intr(|| recv(&line, &mut [0; 1], RecvFlags::empty())) {
        groups.read(&records);
    }
    groups.read(&records);
    // A process that ends closes its descriptors a moment before its children lose it. One that
    // lives has only let go of this guardian, and must not be harmed.
    let patience = Instant::now() + EXIT_TIMEOUT;
    while Instant::now() < patience {
        if !is_child_of(server) {
            kill_all_workers(mark, &groups, process_groups::now());
            break;
        }
        std::thread::sleep(ROUND_PAUSE);
    }
    Ok(())
}

fn kill_all_workers(mark: &Mark, groups: &ProcessGroups, ended: process_groups::Ticks) {
    let members = process_groups::members();
    for group in groups.iter() {
        // As long as the server lived, the number was this group's. After that it may have become another's.
        let mut own = members.iter().filter(|member| member.group == group);
        if own.any(|member| member.started <= ended || mark.is_marked(member.pid)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
    // One that executes a program at this instant bears no mark that can be read.
    let mut empty = 0;
    for _ in 0..MAX_ROUNDS {
        empty = if mark.kill_all() { 0 } else { empty + 1 };
        if empty == EMPTY_ROUNDS {
            return;
        }
        std::thread::sleep(ROUND_PAUSE);
    }
}

/// By what a process is known to come from a worker of this server.
#[derive(Debug)]
pub(crate) struct Mark {
    /// If it runs another program: what stands in its environment.
    variable: String,
    /// If it was only forked: the line in its list of mappings of memory that only this server's descendants have.
    mapping: Option<MappedFile>,
}

impl Mark {
    /// Marks what is forked and started by this process from here on.
    pub(crate) fn set(scoreboard: &Scoreboard) -> Self {
        let mapping = MappedFile::at(scoreboard.published_address());
        // No two mappings of one machine have the same name, and no two processes at one time the
        // same number.
        let unique = mapping.as_ref().map(ToString::to_string).unwrap_or_default();
        let value = format!("{}-{unique}", std::process::id());
        sys::set_variable(environment::SERVER_ID, &value);
        Self { variable: format!("{}={value}", environment::SERVER_ID), mapping }
    }

    /// Kills all that there are; tells whether there were any.
    fn kill_all(&self) -> bool {
        let mut any = false;
        let listed = std::fs::read_dir("/proc").into_iter().flatten();
        let names = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        for pid in names.filter_map(Pid::from_raw).filter(|&pid| pid != getpid()) {
            // From here on the number can mean no other process.
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

    /// Whether a process has the mark. The mappings come first: a copy of a worker that executes a program
    /// meanwhile has the mark in its environment then.
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
    /// It cannot be read: it is another user's, it has no environment, or it is about to execute a program.
    Unknown,
}
