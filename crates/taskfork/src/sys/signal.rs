//! The actions of signals: those of a server while it runs, of a worker, and of programs that a worker starts.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{null, null_mut};

use nix::errno::Errno;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};

/// Signals that service managers and terminals send to all processes of a service or a session. A worker
/// ignores them, because its server decides when it ends.
const TO_ALL: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// All signals that a worker ignores. Without SIGPIPE, a write to a closed connection is an error.
/// Without SIGTTOU, a write to the terminal does not stop a background process.
const IGNORED: [Signal; 6] = {
    let [hup, int, quit, term] = TO_ALL;
    [hup, int, quit, term, Signal::SIGPIPE, Signal::SIGTTOU]
};

/// Signals for which servers and runtimes install handlers. A worker has the default actions. SIGSEGV and
/// SIGBUS are left alone, because Rust's handlers for them report a stack overflow.
const DEFAULT: [Signal; 7] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCHLD,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGXFSZ,
];

/// The action that a worker has for this signal.
fn action_of_worker(number: Signal) -> libc::sighandler_t {
    if IGNORED.contains(&number) { libc::SIG_IGN } else { libc::SIG_DFL }
}

/// Returns the signals whose action in this process differs from the one that a worker has.
pub(crate) fn signals_to_reset() -> Vec<Signal> {
    let is_changed = |number: &Signal| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the new action is null, so the call only writes the present action to the local variable.
        let known = unsafe { libc::sigaction(*number as i32, null(), action.as_mut_ptr()) } == 0;
        // SAFETY: all zeros are a valid `sigaction`, and a successful call has overwritten them with another.
        !known || unsafe { action.assume_init() }.sa_sigaction != action_of_worker(*number)
    };
    IGNORED.into_iter().chain(DEFAULT).filter(is_changed).collect()
}

/// Whether this process ignores a signal.
pub(crate) fn is_ignored(number: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the new action is null, so the call only writes the present action to the local variable.
    let known = unsafe { libc::sigaction(number as i32, null(), action.as_mut_ptr()) } == 0;
    // SAFETY: all zeros are a valid `sigaction`, and a successful call has overwritten them with another.
    known && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Sets the actions that a worker has for these signals, and unblocks all signals.
#[inline]
pub(crate) fn reset_for_worker(changed: &[Signal]) -> io::Result<()> {
    for &number in changed {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros are a valid `sigaction`: default action, no flags, an empty mask.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = action_of_worker(number);
        // SAFETY: the action is to ignore or the default, so no handler can run.
        Errno::result(unsafe { libc::sigaction(number as i32, action, null_mut()) })?;
    }
    let mask = 0_u64;
    // The function of the C library would cause a page fault in a new worker, and `syscall` is mapped already.
    // SAFETY: the kernel reads `size` bytes, all of which belong to `mask`; 8 is the size of its signal sets.
    let set = unsafe {
        let (mask, size) = (&raw const mask, size_of_val(&mask));
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, mask, null::<u64>(), size)
    };
    Errno::result(set).map(drop)?;
    Ok(())
}

/// Runs the work of a signal handler and restores `errno` afterwards. The interrupted code may have made a system call
/// that failed, and not have read `errno` yet.
pub(super) fn preserving_errno(handle: impl FnOnce()) {
    // SAFETY: the function returns the address of a variable of this thread, which exists as long as the thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is valid, and only this thread accesses the variable.
    let before = unsafe { *errno };
    handle();
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Starts a thread that has all signals blocked, so that the kernel delivers them to other threads.
pub(crate) fn spawn_without_signals(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    // A thread inherits the mask of its creator, so the new one has it from its start.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    before.thread_set_mask()?;
    spawned.map(drop)
}

/// Runs `run` with this signal mask, or with the present one if `mask` is `None`.
pub(crate) fn with_mask<T>(
    mask: Option<&SigSet>,
    run: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let before = mask.map(|mask| mask.thread_swap_mask(SigmaskHow::SIG_SETMASK)).transpose()?;
    let result = run();
    before.map_or(Ok(()), |before| before.thread_set_mask())?;
    result
}

/// The action of a signal before a server changed it. Dropping this restores it.
#[derive(Debug)]
pub(crate) struct Disposition(Signal, SigAction);

impl Disposition {
    /// Sets the default action for SIGCHLD. In a process that ignores SIGCHLD, the kernel reaps children itself, and
    /// `wait` does not return how they ended.
    pub(crate) fn default_sigchld() -> io::Result<Self> {
        Self::set(Signal::SIGCHLD, SigHandler::SigDfl)
    }

    /// Ignores SIGTTOU, which would stop a background process that writes to the terminal.
    pub(crate) fn ignore_sigttou() -> io::Result<Self> {
        Self::set(Signal::SIGTTOU, SigHandler::SigIgn)
    }

    /// Ignores a signal.
    pub(crate) fn ignore(number: Signal) -> io::Result<Self> {
        Self::set(number, SigHandler::SigIgn)
    }

    fn set(number: Signal, handler: SigHandler) -> io::Result<Self> {
        let action = SigAction::new(handler, SaFlags::SA_NOCLDSTOP, SigSet::empty());
        // SAFETY: the callers pass `SigIgn` or `SigDfl`, so no handler can run.
        Ok(Self(number, unsafe { sigaction(number, &action) }?))
    }
}

impl Drop for Disposition {
    fn drop(&mut self) {
        // SAFETY: the action was in force before `set`, so its handler, if it has one, is still valid.
        let _ = unsafe { sigaction(self.0, &self.1) };
    }
}

/// Starts the program of `command` with the default actions for the signals that workers ignore.
pub(crate) fn set_default_signals(command: &mut Command) {
    let reset = || {
        for number in IGNORED {
            let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: the action is the default, so no handler can run.
            unsafe { sigaction(number, &action) }?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only calls sigaction(2), which is async-signal-safe.
    unsafe { command.pre_exec(reset) };
}

/// Runs `prepare` in the process of `command`, right before it executes the program.
pub(crate) fn before_exec(
    command: &mut Command,
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the caller's closure makes system calls and allocates. The C library's `fork` leaves its
    // allocator usable in the child, and no other lock is taken.
    unsafe { command.pre_exec(prepare) };
}

/// Starts the program of `command` with these signals blocked. The standard library unblocks all signals before it
/// runs the closure.
pub(crate) fn set_blocked_signals(
    command: &mut Command,
    signals: impl IntoIterator<Item = Signal>,
) {
    let signals: SigSet = signals.into_iter().collect();
    // SAFETY: between fork and exec the closure only calls sigprocmask(2), which is async-signal-safe.
    unsafe { command.pre_exec(move || block_signals(&signals).map(drop)) };
}

/// Blocks `signals`, so that a signalfd can receive them. Returns the mask from before.
pub(crate) fn block_signals(signals: &SigSet) -> io::Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(signals), Some(&mut before))?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_leaves_errno_as_it_was() {
        Errno::set_raw(libc::EAGAIN);
        preserving_errno(|| {
            // SAFETY: -1 is never an open descriptor, so the call only sets `errno`.
            unsafe { libc::close(-1) };
            assert_eq!(Errno::last(), Errno::EBADF);
        });
        assert_eq!(Errno::last(), Errno::EAGAIN);
    }
}
