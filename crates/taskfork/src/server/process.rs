//! Facts about other processes: how a child ended, and whether a process is this one's parent.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, WaitStatus, getppid, waitid};

use crate::error::End;

/// How a process ended, by the status of `waitid`.
pub(super) fn end_of(status: &WaitIdStatus) -> End {
    end(status.exit_status(), status.terminating_signal())
}

/// How a process ended, by the status of `waitpid`.
pub(super) fn end_of_wait(status: WaitStatus) -> End {
    end(status.exit_status(), status.terminating_signal())
}

fn end(exit_status: Option<i32>, signal: Option<i32>) -> End {
    match (exit_status, signal) {
        (Some(code), _) => End::Exited(code),
        (None, Some(signal)) => End::Signaled(signal),
        (None, None) => End::Unknown,
    }
}

/// Reaps a child of this process, and returns how it ended. Waits for its end, unless `options` has
/// `NOHANG`.
pub(super) fn reap(pidfd: &OwnedFd, options: WaitIdOptions) -> Option<End> {
    match retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), options)) {
        Ok(Some(status)) => Some(end_of(&status)),
        Ok(None) => None,
        // The program has reaped the child itself, or ignores SIGCHLD.
        Err(_) => has_ended(pidfd).then_some(End::Unknown),
    }
}

/// Describes how a process ended. The end is unknown if the program has reaped the process itself.
pub(super) fn describe_end(end: End) -> String {
    match end {
        End::Unknown => "has ended".to_owned(),
        end => end.to_string(),
    }
}

/// Whether a process has ended, whether or not it has been reaped.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
    retry_on_intr(|| poll(&mut watched, Some(&now))).is_ok_and(|count| count > 0)
}

/// Waits until a process has ended.
pub(super) fn wait_for(pidfd: &OwnedFd) {
    while !has_ended(pidfd) {
        // A signal may interrupt the wait.
        let _ = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None);
    }
}

/// Whether `parent` is still the parent of this process.
pub(super) fn is_child_of(parent: Pid) -> bool {
    getppid() == Some(parent)
}

/// Whether this process id is that of the parent of this process.
pub(super) fn is_parent(pid: u32) -> bool {
    getppid().is_some_and(|parent| parent.as_raw_nonzero().get().unsigned_abs() == pid)
}
