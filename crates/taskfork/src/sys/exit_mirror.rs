//! Makes a process end in the same way as its child, when that ends.

use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

use libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::signal::preserving_errno;

/// The child, or 0 if there is none.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// Whether this process waits for the output of the child before it ends like it.
static IS_DEFERRED: AtomicBool = AtomicBool::new(false);
/// A duplicate of this process's end of the connection to the child, or a negative number if there is none.
static CONNECTION: AtomicI32 = AtomicI32::new(-1);

/// From now on, when `child` ends, this process ends in the same way. While that is [deferred](defer_mirroring), it only shuts
/// `connection` down: what the child has sent before can still be read, and the end is seen even if a
/// grandchild holds the other end.
pub(crate) fn mirror_exit_of(child: u32, connection: impl AsFd) -> io::Result<()> {
    CONNECTION.store(connection.as_fd().try_clone_to_owned()?.into_raw_fd(), SeqCst);
    CHILD.store(child.cast_signed(), SeqCst);
    let flags = SaFlags::SA_RESTART | SaFlags::SA_NOCLDSTOP;
    let action = SigAction::new(SigHandler::Handler(on_child), flags, SigSet::empty());
    // SAFETY: the handler only reads atomics and makes system calls, which are async-signal-safe.
    unsafe { sigaction(Signal::SIGCHLD, &action) }?;
    // The child may have ended before the handler was installed.
    exit_if_child_exited();
    Ok(())
}

/// Returns the child's process id, if there is one.
pub(crate) fn mirrored_child() -> Option<u32> {
    let child = CHILD.load(SeqCst).unsigned_abs();
    (child != 0).then_some(child)
}

/// Stops following the child, whose end is expected.
pub(crate) fn stop_mirroring() {
    CHILD.store(0, SeqCst);
    let connection = CONNECTION.swap(-1, SeqCst);
    if connection >= 0 {
        // SAFETY: this module made the duplicate, so no other value owns it. The swap above has taken the
        // number from the handler.
        drop(unsafe { OwnedFd::from_raw_fd(connection) });
    }
}

/// Sets whether this process outlives the child for a while. A process does so to read and pass on all that the
/// child has sent.
pub(crate) fn defer_mirroring(is_deferred: bool) {
    IS_DEFERRED.store(is_deferred, SeqCst);
    if !is_deferred {
        exit_if_child_exited();
    }
}

/// Returns how the child has ended, or `None` if it lives or there is none. `flags` are those of `waitid`.
fn exit_of_child(flags: c_int) -> Option<libc::siginfo_t> {
    let child = CHILD.load(SeqCst);
    if child == 0 {
        return None;
    }
    // SAFETY: all zeros are a valid `siginfo_t`, and the kernel writes only to that local variable.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let (id, flags) = (child.unsigned_abs(), flags | libc::WEXITED | libc::WNOHANG);
        let looked = libc::waitid(libc::P_PID, id, &raw mut info, flags);
        (looked == 0 && info.si_pid() != 0).then_some(info)
    }
}

/// Ends this process as the child has ended. Returns if the child lives.
pub(crate) fn exit_if_child_exited() {
    let Some(info) = exit_of_child(0) else { return };
    // SAFETY: `waitid` has filled the structure in for a child that has ended, so these fields are set.
    let status = unsafe { info.si_status() };
    if info.si_code == libc::CLD_EXITED {
        super::exit_now(status);
    }
    // SAFETY: the system calls concern this process alone: they end it, without a core file.
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
            // The process goes on if another child has ended, or if the child cannot be reaped yet.
            exit_if_child_exited();
        } else if exit_of_child(libc::WNOWAIT).is_some() {
            // A grandchild may hold the other end. Without a shutdown, a read would wait for it.
            // SAFETY: the call reads no memory. A negative descriptor only returns EBADF.
            unsafe { libc::shutdown(CONNECTION.load(SeqCst), libc::SHUT_RDWR) };
        }
    });
}
