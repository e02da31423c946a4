//! Forking, starting programs and exiting.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid};
use rustix::fs::{Mode, OFlags};

/// The process in which a fork has returned.
#[derive(Debug)]
pub(crate) enum Forked {
    Parent { child: Pid },
    Child,
}

/// Why there was no fork.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForkError {
    #[error("this process has {threads} threads and can only be forked while it has one")]
    Threads { threads: u64 },
    #[error("fork failed: {0}")]
    Kernel(#[from] io::Error),
}

/// Counts this process's threads.
#[derive(Debug)]
pub(crate) struct ThreadCount {
    /// `/proc/self/task`, which has one entry for each thread. It stays open, because opening it takes longer
    /// than the rest.
    tasks: OwnedFd,
}

impl ThreadCount {
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { tasks: rustix::fs::open("/proc/self/task", flags, Mode::empty())? })
    }

    pub(crate) fn get(&self) -> io::Result<u64> {
        // A directory has a link from its parent, one from itself and one from each directory in it.
        Ok(rustix::fs::fstat(&self.tasks)?.st_nlink.saturating_sub(2))
    }
}

impl AsFd for ThreadCount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tasks.as_fd()
    }
}

/// Returns the number of threads of this process.
pub(crate) fn thread_count() -> io::Result<u64> {
    ThreadCount::of_this_process()?.get()
}

/// Forks this process. It is an error if the process has more than one thread. Both processes write out text that is
/// buffered.
///
/// # Safety
/// The child must not write to shared memory or through inherited descriptors, except where the parent expects it.
pub(crate) unsafe fn fork(threads: &ThreadCount) -> Result<Forked, ForkError> {
    let threads = threads.get()?;
    if threads != 1 {
        return Err(ForkError::Threads { threads });
    }
    // SAFETY: the count above has found no other thread. So no lock, of the allocator or of stdio, is held by a
    // thread that does not exist in the child, and the child may call any function.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Parent { child }) => Ok(Forked::Parent { child }),
        Ok(ForkResult::Child) => Ok(Forked::Child),
        Err(errno) => Err(ForkError::Kernel(errno.into())),
    }
}

/// Returns a child of this process that has ended and has not been reaped, if there is one.
pub(crate) fn exited_child() -> Option<rustix::process::Pid> {
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let mut status = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes only to the local variable. With WNOWAIT it reaps no child.
    let looked = unsafe { libc::waitid(libc::P_ALL, 0, status.as_mut_ptr(), look) };
    // SAFETY: all zeros are a valid `siginfo_t`, and the kernel fills in the process id if a child has ended.
    let pid = unsafe { status.assume_init_ref().si_pid() };
    rustix::process::Pid::from_raw(pid).filter(|_| looked == 0)
}

/// Flushes the buffers of Rust's and C's standard output.
pub(crate) fn flush_stdio() {
    // If the output is closed or full, the text is lost.
    let _ = io::stdout().flush();
    // SAFETY: a null pointer means all streams, and the C library locks each of them.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Exits as a program that has done its work: what it has written to standard output goes out, and the profile of its
/// coverage, if it has one. It runs no `atexit` handlers.
pub(crate) fn exit_flushed(status: i32) -> ! {
    flush_stdio();
    super::coverage::write_profile();
    exit_now(status)
}

/// Exits at once, without `atexit` handlers, which belong to the process that was forked.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` accesses no memory and does not return.
    unsafe { libc::_exit(status) }
}

/// Starts a program, usually a new version of this one, with this program's arguments and the given descriptors
/// open. Sets and removes variables of its environment. Returns its process id.
pub(crate) fn spawn_with_own_arguments(
    program: &Path,
    with: &[(&str, String)],
    without: &[&str],
    keep: &[BorrowedFd<'_>],
) -> io::Result<u32> {
    use std::os::unix::process::CommandExt;

    let keep: Vec<i32> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    let path = terminated(program.as_os_str())?;
    let arguments = std::env::args_os().map(|argument| terminated(&argument));
    let arguments = arguments.collect::<io::Result<Vec<_>>>()?;
    let is_kept = |name: &OsStr| {
        !without.iter().chain(with.iter().map(|(name, _)| name)).any(|other| name == *other)
    };
    let inherited = std::env::vars_os().filter(|(name, _)| is_kept(name));
    let added = with.iter().map(|(name, value)| (name.into(), value.into()));
    let variables = inherited.chain(added).map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        terminated(&variable)
    });
    let variables = variables.collect::<io::Result<Vec<_>>>()?;
    let mut command = std::process::Command::new(program);
    // SAFETY: the descriptors in `keep` are borrowed until this function returns, so they are open in the child.
    // Apart from system calls, the closure only allocates the lists for execve(2). Only a server calls this
    // function, and a server has one thread, so no thread can hold the allocator's lock during the fork.
    unsafe {
        command.pre_exec(move || {
            for &number in &keep {
                let descriptor = BorrowedFd::borrow_raw(number);
                rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
            }
            // The server has its signals blocked, because it reads them from a descriptor.
            SigSet::empty().thread_set_mask()?;
            super::open_file_limit::restore();
            // The function that the standard library uses would run a file without a known format as a shell
            // script.
            let list = |texts: &[CString]| {
                texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
            };
            libc::execve(path.as_ptr(), list(&arguments).as_ptr(), list(&variables).as_ptr());
            Err(io::Error::last_os_error())
        });
    }
    Ok(command.spawn()?.id())
}

fn terminated(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(Into::into)
}

/// Removes a variable from the environment, so that programs started later do not have it. Does nothing if this
/// process has other threads.
pub(crate) fn take_variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    if thread_count().is_ok_and(|threads| threads == 1) {
        // SAFETY: this is the only thread, so no other reads the environment at the same time.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Sets a variable for all programs started later. Does nothing if this process has other threads.
pub(crate) fn set_variable(name: &str, value: &str) {
    if thread_count().is_ok_and(|threads| threads == 1) {
        // SAFETY: this is the only thread, so no other reads the environment at the same time.
        unsafe { std::env::set_var(name, value) };
    }
}

/// Removes variables from the environment of a forked process. Fails if the process has other threads.
#[taskfork_macros::startup_code]
pub(crate) fn remove_variables(names: &[OsString]) -> io::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    if thread_count().is_ok_and(|threads| threads != 1) {
        return Err(io::Error::other("variables cannot be removed: the process has other threads"));
    }
    for name in names {
        // SAFETY: this is the only thread, so no other reads the environment at the same time.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

/// Seeds the random generators of the C library anew, because a fork copies the parent's state into every
/// worker.
#[taskfork_macros::startup_code]
pub(crate) fn reseed_c_random() {
    let mut seed = [0; 4];
    if rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).is_err() {
        return;
    }
    let seed = u32::from_ne_bytes(seed);
    // SAFETY: the function writes only the generator's state, which no other thread uses. In glibc, `random`
    // has the same state.
    unsafe { libc::srand(seed) };
}
