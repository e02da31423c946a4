//! A process that stands for another: when that one ends, it ends in the same way.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

use nix::libc::{self, c_int};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::signal::keeping_errno;

/// The process that this one stands for; 0 for none.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// Its end is not followed at once.
static WAITS: AtomicBool = AtomicBool::new(false);

/// From now on this process ends as `child` does, at once when that happens.
pub(crate) fn follow(child: u32) -> io::Result<()> {
    CHILD.store(child.cast_signed(), SeqCst);
    let flags = SaFlags::SA_RESTART | SaFlags::SA_NOCLDSTOP;
    let action = SigAction::new(SigHandler::Handler(on_child), flags, SigSet::empty());
    // SAFETY: the handler makes system calls only.
    unsafe { sigaction(Signal::SIGCHLD, &action) }?;
    // It may have ended before.
    follow_if_dead();
    Ok(())
}

/// The process that this one stands for.
pub(crate) fn followed() -> Option<u32> {
    let child = CHILD.load(SeqCst).unsigned_abs();
    (child != 0).then_some(child)
}

/// The child's end is expected, and of no importance.
pub(crate) fn follow_no_more() {
    CHILD.store(0, SeqCst);
}

/// Begins or ends a time in which the child's end is seen by whoever waits for what it says, once all
/// of that has been read and passed on.
pub(crate) fn waits(waits: bool) {
    WAITS.store(waits, SeqCst);
    if !waits {
        follow_if_dead();
    }
}

/// Ends this process as the child has ended; nothing if that lives.
pub(crate) fn follow_if_dead() {
    let child = CHILD.load(SeqCst);
    if child == 0 {
        return;
    }
    // SAFETY: the kernel writes to the structure, all of whose bytes may be zero.
    let info = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG;
        let id = child.unsigned_abs();
        if libc::waitid(libc::P_PID, id, &raw mut info, flags) != 0 || info.si_pid() == 0 {
            return;
        }
        info
    };
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
    if !WAITS.load(SeqCst) {
        // It goes on here if another child has ended, or if this one has only been looked at too early.
        keeping_errno(follow_if_dead);
    }
}
