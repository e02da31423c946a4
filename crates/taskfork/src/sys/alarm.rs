//! SIGALRM in workers: the server sends it when a call's time is over, and when it wants to know what
//! a worker is doing. Either way the handler leaves the stack where the server finds it.

use std::ffi::c_void;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering::SeqCst};

use nix::libc::{self, c_int, siginfo_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::forked::is_forked;
use super::signal::preserving_errno;

/// The most addresses of a stack.
pub(crate) const MAX_STACK_FRAMES: usize = 64;

/// Where a worker's stack goes: the addresses, innermost first, and one more than how many there are, once they are
/// there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StackSink {
    pub(crate) stack: &'static [AtomicU64; MAX_STACK_FRAMES],
    pub(crate) ready: &'static AtomicU64,
}

/// This worker's own, if it has one.
#[unsafe(link_section = "taskfork_worker")]
static STACK: AtomicPtr<[AtomicU64; MAX_STACK_FRAMES]> = AtomicPtr::new(null_mut());
#[unsafe(link_section = "taskfork_worker")]
static READY: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
/// Written to, to wake the server; less than 0 where there is none.
#[unsafe(link_section = "taskfork_worker")]
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// The stack is not told.
static HIDDEN: AtomicBool = AtomicBool::new(false);

/// Has SIGALRM tell `witness` of the stack, and wake the server. A system call that blocks ends with
/// `EINTR`.
pub(crate) fn install_stack_handler(witness: StackSink, wake: OwnedFd) -> io::Result<()> {
    STACK.store(ptr::from_ref(witness.stack).cast_mut(), SeqCst);
    READY.store(ptr::from_ref(witness.ready).cast_mut(), SeqCst);
    // It stays open for as long as the worker lives.
    WAKE.store(wake.into_raw_fd(), SeqCst);
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(on_alarm), flags, SigSet::empty());
    // SAFETY: the handler does only what is safe at any instant: see there.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    Ok(())
}

fn witness() -> Option<StackSink> {
    // SAFETY: what was stored, if anything was, lives as long as the process.
    let (stack, ready) = unsafe { (STACK.load(SeqCst).as_ref(), READY.load(SeqCst).as_ref()) };
    Some(StackSink { stack: stack?, ready: ready? })
}

extern "C" fn on_alarm(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    if is_forked() {
        // It would tell of itself where the worker does.
        return;
    }
    preserving_errno(|| {
        // SAFETY: the kernel gives a handler with SA_SIGINFO the interrupted state.
        unsafe { tell_stack(context.cast::<libc::ucontext_t>()) }
    });
}

/// It allocates nothing and takes no lock: it walks the stack by tables that the loader finds without
/// locks, stores to shared memory and writes to a descriptor.
///
/// # Safety
/// `context` is what the kernel gave to a handler.
unsafe fn tell_stack(context: *const libc::ucontext_t) {
    let Some(witness) = witness() else { return };
    if HIDDEN.load(SeqCst) {
        witness.ready.store(1, SeqCst);
        wake_server();
        return;
    }
    // SAFETY: the caller's promise.
    let at = unsafe { interrupted_at(context) };
    let (mut count, mut found) = (0, false);
    // SAFETY: unsynchronised only as to the crate's own lock, which nothing else here takes.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            let address = frame.ip().addr() as u64;
            // What comes before is this handler.
            found |= address == at;
            if found && count < witness.stack.len() {
                witness.stack[count].store(address, SeqCst);
                count += 1;
            }
            count < witness.stack.len()
        });
    }
    if count == 0 && at != 0 {
        witness.stack[0].store(at, SeqCst);
        count = 1;
    }
    witness.ready.store(count as u64 + 1, SeqCst);
    wake_server();
}

/// The address of the instruction at which a signal came; 0 where that is not known how to find.
///
/// # Safety
/// `context` is what the kernel gave to a handler.
unsafe fn interrupted_at(context: *const libc::ucontext_t) -> u64 {
    // SAFETY: the caller's promise.
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

/// From now on this process's own stack says nothing of where its work hangs.
pub(crate) fn disable_stack_capture() {
    HIDDEN.store(true, SeqCst);
}

/// In a worker: has the server look at the scoreboard. It never waits, whatever other workers have done to the
/// pipe that they share: have it filled, or set to wait.
pub(crate) fn wake_server() {
    let pipe = WAKE.load(SeqCst);
    let byte = 1_u8;
    let piece = libc::iovec { iov_base: (&raw const byte).cast_mut().cast(), iov_len: 1 };
    // SAFETY: it reads one byte that is there; a number below 0 is refused.
    let sent = unsafe { libc::pwritev2(pipe, &raw const piece, 1, -1, libc::RWF_NOWAIT) };
    // SAFETY: the address is that of this thread's own variable.
    if sent < 0 && unsafe { *libc::__errno_location() } == libc::EOPNOTSUPP {
        // A kernel before 6.4. The pipe may have been set to wait, and filled: then the server wakes anyway.
        let mut ready = libc::pollfd { fd: pipe, events: libc::POLLOUT, revents: 0 };
        // SAFETY: it reads and writes one entry that is there.
        if unsafe { libc::poll(&raw mut ready, 1, 0) } < 1 {
            return;
        }
        // SAFETY: as above.
        unsafe { libc::write(pipe, (&raw const byte).cast(), 1) };
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn the_handler_leaves_errno_as_it_was() {
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
        }
    }
}
