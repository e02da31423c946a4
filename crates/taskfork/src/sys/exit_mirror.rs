//! A process that stands for another: when that one ends, it ends in the same way.

use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

use nix::libc::{self, c_int};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::signal::preserving_errno;

/// The process that this one stands for; 0 for none.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// Its end is not followed at once.
static IS_DEFERRED: AtomicBool = AtomicBool::new(false);
/// A copy of this process's end of a connection to it; less than 0 for none.
static CONNECTION: AtomicI32 = AtomicI32::new(-1);

/// From now on this process ends as `child` does, at once when that happens. While it [waits](waits), that ends
/// `connection` instead, whoever else holds the other end: what the child has said can still be read there.
pub(crate) fn mirror_exit_of(child: u32, connection: impl AsFd) -> io::Result<()> {
    CONNECTION.store(connection.as_fd().try_clone_to_owned()?.into_raw_fd(), SeqCst);
    CHILD.store(child.cast_signed(), SeqCst);
    let flags = SaFlags::SA_RESTART | SaFlags::SA_NOCLDSTOP;
    let action = SigAction::new(SigHandler::Handler(on_child), flags, SigSet::empty());
    // SAFETY: the handler makes system calls only.
    unsafe { sigaction(Signal::SIGCHLD, &action) }?;
    // It may have ended before.
    exit_if_child_exited();
    Ok(())
}

/// The process that this one stands for.
pub(crate) fn mirrored_child() -> Option<u32> {
    let child = CHILD.load(SeqCst).unsigned_abs();
    (child != 0).then_some(child)
}

/// The child's end is expected, and of no importance.
pub(crate) fn stop_mirroring() {
    CHILD.store(0, SeqCst);
    let connection = CONNECTION.swap(-1, SeqCst);
    if connection >= 0 {
        // SAFETY: the number is that of a copy made here, which nobody else closes. Only the handler uses it, which
        // cannot get it any more.
        drop(unsafe { OwnedFd::from_raw_fd(connection) });
    }
}

/// Begins or ends a time in which the child's end is seen by whoever waits for what it says, once all
/// of that has been read and passed on.
pub(crate) fn defer_mirroring(is_deferred: bool) {
    IS_DEFERRED.store(is_deferred, SeqCst);
    if !is_deferred {
        exit_if_child_exited();
    }
}

/// How the child has ended; nothing if it lives, or if there is none. `flags` are those of `waitid`.
fn exit_of_child(flags: c_int) -> Option<libc::siginfo_t> {
    let child = CHILD.load(SeqCst);
    if child == 0 {
        return None;
    }
    // SAFETY: the kernel writes to the structure, all of whose bytes may be zero.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let (id, flags) = (child.unsigned_abs(), flags | libc::WEXITED | libc::WNOHANG);
        let looked = libc::waitid(libc::P_PID, id, &raw mut info, flags);
        (looked == 0 && info.si_pid() != 0).then_some(info)
    }
}

/// Ends this process as the child has ended; nothing if that lives.
pub(crate) fn exit_if_child_exited() {
    let Some(info) = exit_of_child(0) else { return };
    // SAFETY: it was filled in for a child that has ended.
    let status = unsafe { info.si_status() };
    if info.si_code == libc::CLD_EXITED {
        super::exit_now(status);
    }
    // SAFETY: system calls on this process alone. The signal ends it, and leaves no file.
    unsafe {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::signal(status, libc::SIG_DFL);
        let mut only: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, status);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const only, std::ptr::null_mut());
        libc::kill(libc::getpid(), status);
    }
    super::exit_now(128 + status)
}

extern "C" fn on_child(_: c_int) {
    preserving_errno(|| {
        if !IS_DEFERRED.load(SeqCst) {
            // It goes on here if another child has ended, or if this one has only been looked at too early.
            exit_if_child_exited();
        } else if exit_of_child(libc::WNOWAIT).is_some() {
            // Something that the child has started may hold the other end, and whoever reads would wait for it.
            // SAFETY: a system call on a descriptor of this module's own; a number below 0 is refused.
            unsafe { libc::shutdown(CONNECTION.load(SeqCst), libc::SHUT_RDWR) };
        }
    });
}
