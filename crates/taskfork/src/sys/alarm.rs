//! SIGALRM and SIGURG in workers. The server sends SIGALRM at the deadline of a call, and before it kills a worker that
//! hangs. It sends SIGURG if somebody wants to see where a call is. The handlers store the stack in shared memory, where
//! the server reads it.

use std::ffi::c_void;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::ptr::{self, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering::SeqCst};

use libc::{c_int, siginfo_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::forked::is_forked;
use super::signal::preserving_errno;

/// The most addresses of a stack.
pub(crate) const MAX_STACK_FRAMES: usize = 64;

/// Where the handler stores a worker's stack: the addresses, innermost first, and then their number plus one in
/// `ready`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StackSink {
    pub(crate) stack: &'static [AtomicU64; MAX_STACK_FRAMES],
    pub(crate) ready: &'static AtomicU64,
}

/// The parts of this worker's [`StackSink`]. Null before [`install_stack_handlers`].
#[unsafe(link_section = "taskfork_worker")]
static STACK: AtomicPtr<[AtomicU64; MAX_STACK_FRAMES]> = AtomicPtr::new(null_mut());
#[unsafe(link_section = "taskfork_worker")]
static READY: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
/// The parts of the sink of samples.
#[unsafe(link_section = "taskfork_worker")]
static SAMPLE: AtomicPtr<[AtomicU64; MAX_STACK_FRAMES]> = AtomicPtr::new(null_mut());
#[unsafe(link_section = "taskfork_worker")]
static SAMPLE_READY: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
/// The pipe that wakes the server, or a negative number if there is none.
#[unsafe(link_section = "taskfork_worker")]
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Runs after the handler, if it is set: the handler of an interpreter in this process, which interrupts the call.
static NEXT: OnceLock<extern "C" fn(c_int)> = OnceLock::new();

/// Whether the handler stores an empty stack.
static HIDDEN: AtomicBool = AtomicBool::new(false);

/// Installs a handler for SIGALRM that stores the stack in the first sink and wakes the server. A blocking system
/// call fails with `EINTR`, because the handler is installed without SA_RESTART.
///
/// A handler for SIGURG stores the stack in the second sink. It is installed with SA_RESTART, so most system calls go on.
/// By default, SIGURG is ignored, so it does no harm to a program that has been executed.
#[taskfork_macros::startup_code]
pub(crate) fn install_stack_handlers(
    (sink, sample): (StackSink, StackSink),
    wake: OwnedFd,
) -> io::Result<()> {
    STACK.store(ptr::from_ref(sink.stack).cast_mut(), SeqCst);
    READY.store(ptr::from_ref(sink.ready).cast_mut(), SeqCst);
    SAMPLE.store(ptr::from_ref(sample.stack).cast_mut(), SeqCst);
    SAMPLE_READY.store(ptr::from_ref(sample.ready).cast_mut(), SeqCst);
    // The handler uses the descriptor until the process ends.
    WAKE.store(wake.into_raw_fd(), SeqCst);
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(on_alarm), flags, SigSet::empty());
    // SAFETY: the handler takes no lock and allocates nothing, see `store_stack`; it keeps `errno`.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    let flags = flags | SaFlags::SA_RESTART;
    let action = SigAction::new(SigHandler::SigAction(on_sample), flags, SigSet::empty());
    // SAFETY: as above.
    unsafe { sigaction(Signal::SIGURG, &action) }?;
    Ok(())
}

/// Makes workers that are forked from now on run another handler after their own. Only the first call has an effect.
///
/// # Safety
/// The handler must be safe in a signal handler, at any point of the program.
pub(crate) unsafe fn set_next_alarm_handler(handler: extern "C" fn(c_int)) {
    let _ = NEXT.set(handler);
}

fn stack_sink() -> Option<StackSink> {
    // SAFETY: each pointer is null, or was made of a `'static` reference.
    let (stack, ready) = unsafe { (STACK.load(SeqCst).as_ref(), READY.load(SeqCst).as_ref()) };
    Some(StackSink { stack: stack?, ready: ready? })
}

fn sample_sink() -> Option<StackSink> {
    // SAFETY: each pointer is null, or was made of a `'static` reference.
    let parts = unsafe { (SAMPLE.load(SeqCst).as_ref(), SAMPLE_READY.load(SeqCst).as_ref()) };
    Some(StackSink { stack: parts.0?, ready: parts.1? })
}

extern "C" fn on_alarm(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    if is_forked() {
        // The stack would be that of a child process, in the slot of the worker.
        return;
    }
    preserving_errno(|| {
        if let Some(sink) = stack_sink() {
            // SAFETY: the kernel passes the interrupted context to a handler with SA_SIGINFO.
            unsafe { store_stack(context.cast::<libc::ucontext_t>(), sink) }
            wake_server();
        }
        if let Some(next) = NEXT.get() {
            next(signal);
        }
    });
}

extern "C" fn on_sample(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    if is_forked() {
        return;
    }
    preserving_errno(|| {
        let Some(sink) = sample_sink() else { return };
        // SAFETY: the kernel passes the interrupted context to a handler with SA_SIGINFO.
        unsafe { store_stack(context.cast::<libc::ucontext_t>(), sink) }
    });
}

/// Stores the interrupted stack.
///
/// This is safe in a signal handler. It allocates nothing and takes no lock: the unwinder finds its tables
/// without locks, and the rest are atomic stores and system calls.
///
/// # Safety
/// `context` must be the third argument of a handler with SA_SIGINFO.
unsafe fn store_stack(context: *const libc::ucontext_t, sink: StackSink) {
    if HIDDEN.load(SeqCst) {
        sink.ready.store(1, SeqCst);
        return;
    }
    // SAFETY: the caller has promised that `context` is that of a handler.
    let at = unsafe { interrupted_at(context) };
    let (mut count, mut found) = (0, false);
    // SAFETY: the lock that this function omits protects the lookup of symbols, and Windows' debug library. Here only
    // addresses are collected, by `_Unwind_Backtrace`, which keeps no state between calls.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            let address = frame.ip().addr() as u64;
            // The frames before this address are those of the handler.
            found |= address == at;
            if found && count < sink.stack.len() {
                sink.stack[count].store(address, SeqCst);
                count += 1;
            }
            count < sink.stack.len()
        });
    }
    if count == 0 && at != 0 {
        sink.stack[0].store(at, SeqCst);
        count = 1;
    }
    sink.ready.store(count as u64 + 1, SeqCst);
}

/// Returns the address of the interrupted instruction, or 0 on other architectures than these two.
///
/// # Safety
/// `context` must be the third argument of a handler with SA_SIGINFO.
unsafe fn interrupted_at(context: *const libc::ucontext_t) -> u64 {
    // SAFETY: the caller has promised that `context` is that of a handler, so it points to a `ucontext_t`.
    let machine = unsafe { &(*context).uc_mcontext };
    #[cfg(target_arch = "x86_64")]
    return machine.gregs[libc::REG_RIP as usize] as u64;
    #[cfg(target_arch = "aarch64")]
    return machine.pc;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = machine;
        0
    }
}

/// Makes the handler store an empty stack from now on. For a process whose work runs elsewhere, so that its own stack
/// does not show where that hangs.
pub(crate) fn disable_stack_capture() {
    HIDDEN.store(true, SeqCst);
}

/// In a worker: wakes the server, which then reads the scoreboard. It never blocks, even if another worker has filled
/// the shared pipe or set it to blocking mode.
pub(crate) fn wake_server() {
    let pipe = WAKE.load(SeqCst);
    let byte = 1_u8;
    let piece = libc::iovec { iov_base: (&raw const byte).cast_mut().cast(), iov_len: 1 };
    // SAFETY: the kernel reads one byte of a local variable. A negative descriptor only returns EBADF.
    let sent = unsafe { libc::pwritev2(pipe, &raw const piece, 1, -1, libc::RWF_NOWAIT) };
    // SAFETY: the function returns the address of a variable of this thread.
    if sent < 0 && unsafe { *libc::__errno_location() } == libc::EOPNOTSUPP {
        // The kernel is older than 6.4. If the pipe is full, the server wakes anyway, so nothing needs to be written.
        let mut ready = libc::pollfd { fd: pipe, events: libc::POLLOUT, revents: 0 };
        // SAFETY: the kernel reads and writes one local `pollfd`.
        if unsafe { libc::poll(&raw mut ready, 1, 0) } < 1 {
            return;
        }
        // SAFETY: the kernel reads one byte of a local variable.
        unsafe { libc::write(pipe, (&raw const byte).cast(), 1) };
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    static NEXT_RAN: AtomicU64 = AtomicU64::new(0);

    extern "C" fn next(_: c_int) {
        NEXT_RAN.fetch_add(1, SeqCst);
        Errno::set_raw(libc::EINTR);
    }

    #[test]
    fn the_handler_leaves_errno_as_it_was_and_runs_the_next_one() {
        // SAFETY: the handler adds to a number, and sets `errno`.
        unsafe { set_next_alarm_handler(next) };
        static TOLD: [AtomicU64; MAX_STACK_FRAMES] =
            [const { AtomicU64::new(0) }; MAX_STACK_FRAMES];
        static COUNT: AtomicU64 = AtomicU64::new(0);
        STACK.store(ptr::from_ref(&TOLD).cast_mut(), SeqCst);
        READY.store(ptr::from_ref(&COUNT).cast_mut(), SeqCst);
        for hidden in [true, false] {
            HIDDEN.store(hidden, SeqCst);
            // SAFETY: a context of zeros is one; only the address in it is read.
            let mut context: libc::ucontext_t = unsafe { std::mem::zeroed() };
            Errno::set_raw(libc::EAGAIN);
            // The write that wakes the server fails here, as there is none.
            on_alarm(libc::SIGALRM, null_mut(), (&raw mut context).cast());
            assert_eq!(Errno::last(), Errno::EAGAIN, "hidden: {hidden}");
            assert!(COUNT.swap(0, SeqCst) > 0);
            assert_eq!(NEXT_RAN.swap(0, SeqCst), 1);
        }
    }
}
