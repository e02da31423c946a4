//! The actions of signals: those of a server while it runs, of a worker, and of programs that a worker starts.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{null, null_mut};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};

/// What service managers and terminals send to all processes of a service or a session. A worker ignores
/// it, as only its server ends it.
const TO_ALL: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// All that a worker ignores. A write to a client that is gone is an error and not a death, and a write
/// to a terminal does not stop the worker.
const IGNORED: [Signal; 6] = {
    let [hup, int, quit, term] = TO_ALL;
    [hup, int, quit, term, Signal::SIGPIPE, Signal::SIGTTOU]
};

/// Other signals that servers and runtimes take for themselves: a worker has the default actions. A
/// fault's own (SIGSEGV, SIGBUS) stay as they are, since Rust's handlers report stack overflow with them.
const DEFAULT: [Signal; 7] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCHLD,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGXFSZ,
];

/// What a worker does at this signal.
fn action_of_worker(number: Signal) -> libc::sighandler_t {
    if IGNORED.contains(&number) { libc::SIG_IGN } else { libc::SIG_DFL }
}

/// Those of them that have other actions now than a worker is to have.
pub(crate) fn signals_to_reset() -> Vec<Signal> {
    let is_changed = |number: &Signal| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: without a new action it only writes the present one.
        let known = unsafe { libc::sigaction(*number as i32, null(), action.as_mut_ptr()) } == 0;
        // SAFETY: zeroed before, which is a valid value, and written by the kernel's answer.
        !known || unsafe { action.assume_init() }.sa_sigaction != action_of_worker(*number)
    };
    IGNORED.into_iter().chain(DEFAULT).filter(is_changed).collect()
}

/// Whether this process ignores a signal.
pub(crate) fn is_ignored(number: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action it only writes the present one.
    let known = unsafe { libc::sigaction(number as i32, null(), action.as_mut_ptr()) } == 0;
    // SAFETY: zeroed before, which is a valid value, and written by the kernel's answer.
    known && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Gives these the actions that a worker has, and blocks nothing.
#[inline]
pub(crate) fn reset_for_worker(changed: &[Signal]) -> io::Result<()> {
    for &number in changed {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: zeroed, which is a valid value: default action, no flags, an empty mask.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = action_of_worker(number);
        // SAFETY: neither action is a handler, so no code of ours runs in signal context.
        Errno::result(unsafe { libc::sigaction(number as i32, action, null_mut()) })?;
    }
    let mask = 0_u64;
    // C's own function lies where a new worker has no page of it mapped yet, and this one where it has.
    // SAFETY: it reads as many bytes as the kernel's sets of signals have.
    let set = unsafe {
        let (mask, size) = (&raw const mask, size_of_val(&mask));
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, mask, null::<u64>(), size)
    };
    Errno::result(set).map(drop)?;
    Ok(())
}

/// Runs a signal handler's work, and puts back the `errno` of what the signal has interrupted: it may be between a
/// system call that failed and the look at why.
pub(super) fn preserving_errno(handle: impl FnOnce()) {
    // SAFETY: it gives the address of this thread's own variable, which lives as long as the thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; nobody else writes to it.
    let before = unsafe { *errno };
    handle();
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Starts a thread that no signal interrupts: they are for the threads that expect them.
pub(crate) fn spawn_without_signals(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    // The new thread takes the mask over, so that there is no instant without it.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    before.thread_set_mask()?;
    spawned.map(drop)
}

/// Runs something with this thread's signals blocked as they are in `mask`, if there is one.
pub(crate) fn with_mask<T>(
    mask: Option<&SigSet>,
    run: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let before = mask.map(|mask| mask.thread_swap_mask(SigmaskHow::SIG_SETMASK)).transpose()?;
    let result = run();
    before.map_or(Ok(()), |before| before.thread_set_mask())?;
    result
}

/// The action of a signal before a server changed it, put back when this is dropped.
#[derive(Debug)]
pub(crate) struct Disposition(Signal, SigAction);

impl Disposition {
    /// Has the deaths of children signalled: a process that ignores them is told of none.
    pub(crate) fn default_sigchld() -> io::Result<Self> {
        Self::set(Signal::SIGCHLD, SigHandler::SigDfl)
    }

    /// Has a write to the terminal go on where the terminal would stop a program in the background.
    pub(crate) fn ignore_sigttou() -> io::Result<Self> {
        Self::set(Signal::SIGTTOU, SigHandler::SigIgn)
    }

    /// Has a signal do nothing.
    pub(crate) fn ignore(number: Signal) -> io::Result<Self> {
        Self::set(number, SigHandler::SigIgn)
    }

    fn set(number: Signal, handler: SigHandler) -> io::Result<Self> {
        let action = SigAction::new(handler, SaFlags::SA_NOCLDSTOP, SigSet::empty());
        // SAFETY: it is no handler, so no code of ours runs in signal context.
        Ok(Self(number, unsafe { sigaction(number, &action) }?))
    }
}

impl Drop for Disposition {
    fn drop(&mut self) {
        // SAFETY: it is what stood there before.
        let _ = unsafe { sigaction(self.0, &self.1) };
    }
}

/// Has the program that `command` starts take the signals that workers ignore as any other program.
pub(crate) fn set_default_signals(command: &mut Command) {
    let reset = || {
        for number in IGNORED {
            let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: it is no handler, so no code of ours runs in signal context.
            unsafe { sigaction(number, &action) }?;
        }
        Ok(())
    };
    // SAFETY: between fork and execution it makes system calls only.
    unsafe { command.pre_exec(reset) };
}

/// Has the program that `command` starts begin with these signals blocked. The standard library unblocks all of them
/// before.
pub(crate) fn set_blocked_signals(
    command: &mut Command,
    signals: impl IntoIterator<Item = Signal>,
) {
    let signals: SigSet = signals.into_iter().collect();
    // SAFETY: between fork and execution it makes one system call.
    unsafe { command.pre_exec(move || block_signals(&signals).map(drop)) };
}

/// Blocks `signals`, so that a signalfd can take them; gives the mask that stood before.
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
            // SAFETY: the kernel refuses the number.
            unsafe { libc::close(-1) };
            assert_eq!(Errno::last(), Errno::EBADF);
        });
        assert_eq!(Errno::last(), Errno::EAGAIN);
    }
}
