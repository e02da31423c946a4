//! Forking with only the descriptors below a number.
//!
//! `fork(2)` copies all descriptors, and the new process has to close those that it must not have. With thousands of
//! them, this takes longer than everything else. `close_range(2)` gives a process that shares the descriptors of
//! another a copy of the low ones alone, but the C library forks only with a copy of all. So a process in between
//! shares memory and descriptors with this one, gets a copy of the low descriptors, forks, and exits at once. This
//! process is a subreaper, and becomes the parent of the new process.
//!
//! The process in between runs on this process's stack, as after `vfork(2)`: the kernel lets this process continue when
//! the other has ended. The new process has copies of all memory, and returns like a child of `fork(2)`.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "a process forks partially on this architecture alone")
)]

use std::ffi::c_uint;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::ptr::null_mut;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::SeqCst;

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::Pid;
use rustix::process::getpid;

use super::process::{ForkError, Forked, ThreadCount};
use super::restartable::RestartableSequences;

/// The lowest number from which descriptors are left out. `select(2)` takes only lower ones.
const LOWEST: RawFd = 1024;

/// How the process of the trial exits if it is as it should be.
const AS_EXPECTED: i32 = 42;

/// Forks without the descriptors from a number on.
#[derive(Debug)]
pub(crate) struct PartialFork {
    limit: RawFd,
    sequences: RestartableSequences,
}

/// What the process in between needs, and what it reports.
struct Request {
    limit: RawFd,
    sequences: RestartableSequences,
    /// The new process, or a negative error number. Zero if the process in between was killed.
    result: AtomicI32,
}

impl PartialFork {
    /// Finds a number above all open descriptors, and forks once to see whether everything holds that [`fork`](Self::fork)
    /// promises. Returns `None` if something does not: on other architectures, with few permitted open files, if this
    /// process is no subreaper, or if the kernel or a filter of system calls refuses a step.
    pub(crate) fn prepare(threads: &ThreadCount) -> Option<Self> {
        if !cfg!(target_arch = "x86_64") || rustix::process::child_subreaper().ok()?.is_none() {
            return None;
        }
        let numbers = std::fs::read_dir("/proc/self/fd").ok()?;
        let highest = numbers
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok())
            .max()?;
        let limit = (highest / LOWEST).checked_add(1)?.checked_mul(LOWEST)?;
        let fork = Self { limit, sequences: RestartableSequences::of_this_thread()? };
        fork.holds(threads).then_some(fork)
    }

    /// The lowest number of a descriptor that the new process does not have.
    pub(crate) fn limit(&self) -> RawFd {
        self.limit
    }

    /// Forks this process like [`fork`](super::fork), but the new process has only the descriptors below
    /// [`limit`](Self::limit). It leads a process group, and is a child of this process when this returns in it. Returns `None` if there is no new
    /// process, but `fork` may still succeed.
    ///
    /// After an error there may be a new process whose id is unknown, if the process in between was killed.
    ///
    /// # Safety
    /// As for [`fork`](super::fork). In addition, the new process must not use or drop a value that owns a descriptor from
    /// the limit on.
    pub(crate) unsafe fn fork(&self, threads: &ThreadCount) -> Result<Option<Forked>, ForkError> {
        let threads = threads.get()?;
        if threads != 1 {
            return Err(ForkError::Threads { threads });
        }
        let Self { limit, sequences } = *self;
        let request = Request { limit, sequences, result: AtomicI32::new(0) };
        // A handler must not run in the process in between, which shares this memory.
        let signals = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        // SAFETY: there is no other thread, and the caller has promised the rest.
        let returned = unsafe { share_and_run(&request) };
        // The mask is one that the process had before, so the call succeeds.
        let _ = signals.and_then(|before| before.thread_set_mask());
        let between = match returned {
            0 => return Ok(Some(Forked::Child)),
            error if error < 0 => return Ok(None),
            between => between,
        };
        // The kernel makes the new process a child of this one before a wait for the other succeeds. Only a wait with
        // `__WALL` finds a process that ends without a signal.
        // SAFETY: a null pointer means that the status is not wanted.
        while unsafe { libc::waitpid(between, null_mut(), libc::__WALL) } < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
        match request.result.load(SeqCst) {
            0 => {
                Err(ForkError::Kernel(io::Error::other("the process that was to fork was killed")))
            }
            error if error < 0 => Ok(None),
            child => Ok(Some(Forked::Parent { child: Pid::from_raw(child) })),
        }
    }

    /// Closes all descriptors from the limit on, in a new process of either kind of fork.
    ///
    /// # Safety
    /// After the call, this process must neither use nor drop a value that owns one of these descriptors.
    pub(crate) unsafe fn close_from_limit(&self) {
        let first = self.limit.unsigned_abs();
        // SAFETY: the call accesses no memory, and the caller has promised that no value uses the descriptors again.
        // It cannot fail: the trial has made the same call.
        unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, 0) };
    }

    /// Forks once. Returns whether the new process was as promised, and this process has kept its descriptors.
    fn holds(&self, threads: &ThreadCount) -> bool {
        let Ok(high) = rustix::io::fcntl_dupfd_cloexec(threads.as_fd(), self.limit) else {
            return false;
        };
        let parent = getpid();
        // SAFETY: the new process makes system calls and exits.
        match unsafe { self.fork(threads) } {
            Ok(Some(Forked::Child)) => {
                let is_closed = rustix::io::fcntl_getfd(&high).is_err();
                let is_child = rustix::process::getppid() == Some(parent);
                let is_right = is_closed && is_child && threads.get().is_ok_and(|count| count == 1);
                super::exit_now(if is_right { AS_EXPECTED } else { 1 })
            }
            Ok(Some(Forked::Parent { child })) => {
                let mut status = 0;
                // SAFETY: the kernel writes one `int`, to a local variable.
                let ended = unsafe { libc::waitpid(child.as_raw(), &raw mut status, 0) };
                ended == child.as_raw()
                    && libc::WIFEXITED(status)
                    && libc::WEXITSTATUS(status) == AS_EXPECTED
                    && rustix::io::fcntl_getfd(&high).is_ok()
            }
            _ => false,
        }
    }
}

/// Starts a process that shares memory, stack and descriptors with this one, and calls [`run_between`]. Returns in this
/// process when that process has ended, with its id or a negative error number. Returns zero in the new process.
///
/// # Safety
/// This process must have one thread.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn share_and_run(request: &Request) -> i32 {
    let result: i64;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
    // SAFETY: the process in between uses the stack below this frame, as `asm` without `nostack` allows. It never
    // leaves the block, so the code after it runs once in each memory: in this process and in the new one.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r12",
            "call {run}",
            "2:",
            run = sym run_between,
            inlateout("rax") libc::SYS_clone => result,
            inlateout("rdi") i64::from(flags) => _,
            inlateout("rsi") 0_i64 => _,
            inlateout("rdx") 0_i64 => _,
            inlateout("r10") 0_i64 => _,
            inlateout("r8") 0_i64 => _,
            in("r12") request,
            clobber_abi("C"),
        );
    }
    // Process ids and error numbers are `int`.
    result as i32
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn share_and_run(_: &Request) -> i32 {
    -libc::ENOSYS
}

/// What the process in between does. Returns zero, and only in the new process.
extern "C" fn run_between(request: &Request) -> i64 {
    let unshare = libc::CLOSE_RANGE_UNSHARE as c_uint;
    let first = request.limit.unsigned_abs();
    let between = getpid();
    // SAFETY: this process has descriptors of its own from then on, and uses none of those that it closes.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, unshare) };
    // SAFETY: the caller of `PartialFork::fork` has promised what a fork needs, and there is no other thread.
    let forked = if closed == 0 { unsafe { libc::fork() } } else { -1 };
    if forked != 0 {
        let error = || -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        request.result.store(if forked > 0 { forked } else { error() }, SeqCst);
        super::exit_now(0);
    }
    // The parent is about to exit. The signal at a parent's death, and the check of who the parent is, are about the
    // next one.
    while rustix::process::getppid() == Some(between) {
        std::thread::yield_now();
    }
    // The kernel changes the parent and sends that signal under a lock. The call takes the same lock, so a signal that
    // is asked for from now on cannot be sent for the old parent.
    let _ = rustix::process::setpgid(None, None);
    if !request.sequences.register() {
        super::exit_now(1);
    }
    0
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use std::sync::atomic::AtomicU32;

    use rustix::process::{
        Resource, Rlimit, Signal, set_child_subreaper, set_parent_process_death_signal, setrlimit,
    };

    use super::*;
    use crate::sys::test_support::{in_child, wait_for};

    /// Runs `run` in a process that a prepared fork has made, in a process of its own, which may be a subreaper. Returns
    /// the exit status.
    fn status_of(run: impl FnOnce() -> bool) -> i32 {
        in_child(|| {
            set_child_subreaper(Some(getpid())).unwrap();
            let threads = ThreadCount::of_this_process().unwrap();
            let Some(fork) = PartialFork::prepare(&threads) else { return 2 };
            // SAFETY: the new process makes system calls and exits.
            match unsafe { fork.fork(&threads) } {
                Ok(Some(Forked::Parent { child })) => wait_for(child.as_raw()),
                Ok(Some(Forked::Child)) => super::super::exit_now(i32::from(!run())),
                _ => 3,
            }
        })
    }

    #[test]
    fn a_signal_at_the_parents_death_is_not_sent_for_the_process_in_between() {
        let status = in_child(|| {
            set_child_subreaper(Some(getpid())).unwrap();
            let threads = ThreadCount::of_this_process().unwrap();
            let fork = PartialFork::prepare(&threads).unwrap();
            let server = getpid();
            let is_right = |_| {
                // SAFETY: the new process makes system calls and exits.
                match unsafe { fork.fork(&threads) } {
                    Ok(Some(Forked::Parent { child })) => {
                        let mut status = 0;
                        // SAFETY: the kernel writes one `int`, to a local variable.
                        unsafe { libc::waitpid(child.as_raw(), &raw mut status, 0) };
                        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == AS_EXPECTED
                    }
                    Ok(Some(Forked::Child)) => {
                        let _ = set_parent_process_death_signal(Some(Signal::KILL));
                        std::thread::yield_now();
                        let is_child = rustix::process::getppid() == Some(server);
                        super::super::exit_now(if is_child { AS_EXPECTED } else { 1 })
                    }
                    _ => false,
                }
            };
            i32::from(!(0..200).all(is_right))
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn handlers_of_forks_run() {
        static PREPARED: AtomicU32 = AtomicU32::new(0);
        static IN_CHILD: AtomicU32 = AtomicU32::new(0);
        unsafe extern "C" fn prepare() {
            PREPARED.fetch_add(1, SeqCst);
        }
        unsafe extern "C" fn child() {
            IN_CHILD.store(PREPARED.load(SeqCst), SeqCst);
        }
        // SAFETY: the handlers only access atomics.
        unsafe { libc::pthread_atfork(Some(prepare), None, Some(child)) };
        let status = status_of(|| {
            // They ran for the child of the test, for the trial, and for this process.
            PREPARED.load(SeqCst) >= 3 && IN_CHILD.load(SeqCst) == PREPARED.load(SeqCst)
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_process_that_is_no_subreaper_forks_otherwise() {
        let status = in_child(|| {
            let threads = ThreadCount::of_this_process().unwrap();
            i32::from(PartialFork::prepare(&threads).is_some())
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_process_that_may_open_few_files_forks_otherwise() {
        let status = in_child(|| {
            set_child_subreaper(Some(getpid())).unwrap();
            let few = Rlimit { current: Some(1000), maximum: Some(1000) };
            setrlimit(Resource::Nofile, few).unwrap();
            let threads = ThreadCount::of_this_process().unwrap();
            i32::from(PartialFork::prepare(&threads).is_some())
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn the_new_process_knows_its_thread_and_its_processor() {
        let status = status_of(|| {
            // SAFETY: the calls access no memory of this program.
            let (thread, processor) = unsafe { (libc::gettid(), libc::sched_getcpu()) };
            let is_registered = RestartableSequences::of_this_thread().is_some();
            // A mutex that checks its owner compares the number of the thread that the C library keeps.
            let owns = own_mutex();
            thread == getpid().as_raw_nonzero().get() && processor >= 0 && is_registered && owns
        });
        assert_eq!(status, 0);
    }

    /// Whether the kernel and the C library agree about the number of this thread.
    fn own_mutex() -> bool {
        // SAFETY: the calls access the local variables alone, which are initialized in order.
        unsafe {
            let mut attributes = std::mem::zeroed();
            libc::pthread_mutexattr_init(&raw mut attributes);
            libc::pthread_mutexattr_settype(&raw mut attributes, libc::PTHREAD_MUTEX_ERRORCHECK);
            let mut mutex = std::mem::zeroed::<libc::pthread_mutex_t>();
            libc::pthread_mutex_init(&raw mut mutex, &raw const attributes);
            libc::pthread_mutex_lock(&raw mut mutex);
            // In the C library of GNU, the owner is the third `int`.
            let owner = *(&raw const mutex).cast::<i32>().add(2);
            !cfg!(target_env = "gnu") || owner == libc::gettid()
        }
    }
}
