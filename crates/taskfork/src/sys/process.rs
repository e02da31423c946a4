//! Forking and leaving.

use std::ffi::{CString, OsStr};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid};
use rustix::fs::{Mode, OFlags};

/// Which of the two processes a fork returned in.
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
    /// The directory that has one entry a thread, kept open as looking it up takes longer than all
    /// the rest.
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

/// How many threads this process has.
pub(crate) fn thread_count() -> io::Result<u64> {
    ThreadCount::of_this_process()?.get()
}

/// How many cores this process may use.
pub(crate) fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Forks this process, which must have one thread only; more are an error. Text that waits in a buffer is written by
/// both processes.
///
/// # Safety
/// The child uses nothing that only one process may use at a time: it does not write to memory that is shared with
/// others, nor through descriptors, but where the parent is meant to see that.
pub(crate) unsafe fn fork(threads: &ThreadCount) -> Result<Forked, ForkError> {
    let threads = threads.get()?;
    if threads != 1 {
        return Err(ForkError::Threads { threads });
    }
    // SAFETY: this is the only thread, as was just counted, so no lock of the allocator, of stdio
    // or of anything else can be held by a thread that does not exist in the child. The child may
    // therefore go on as any program does.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Parent { child }) => Ok(Forked::Parent { child }),
        Ok(ForkResult::Child) => Ok(Forked::Child),
        Err(errno) => Err(ForkError::Kernel(errno.into())),
    }
}

/// A child of this process that has died and has not been reaped, if there is any.
pub(crate) fn exited_child() -> Option<rustix::process::Pid> {
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let mut status = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: it writes the status, and takes nothing away.
    let looked = unsafe { libc::waitid(libc::P_ALL, 0, status.as_mut_ptr(), look) };
    // SAFETY: zeroed before, which is a valid value, and of a child if there is one.
    let pid = unsafe { status.assume_init_ref().si_pid() };
    rustix::process::Pid::from_raw(pid).filter(|_| looked == 0)
}

/// Writes out what Rust's and C's standard output hold back.
pub(crate) fn flush_stdio() {
    // A closed or full output is no reason to fail: nobody is left to read it.
    let _ = io::stdout().flush();
    // SAFETY: a null stream means all streams; C's own locks guard them.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Leaves at once: no `atexit` handler runs, as those belong to the process that was forked.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` touches nothing of this process's memory.
    unsafe { libc::_exit(status) }
}

/// Starts a program, this one or a new version of it, with the arguments that this one got, some more variables,
/// some less, and these descriptors left open; gives its process id.
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
    // SAFETY: between fork and execution it makes system calls only, on descriptors that the
    // parent has open, and builds the lists for the last of them, which one thread may do.
    unsafe {
        command.pre_exec(move || {
            for &number in &keep {
                let descriptor = BorrowedFd::borrow_raw(number);
                rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
            }
            // The server reads its signals from a descriptor, and so holds them back.
            SigSet::empty().thread_set_mask()?;
            super::open_file_limit::restore();
            // What the standard library calls has a shell read whatever the kernel takes for no program.
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

/// Takes a variable out of the environment, so that no program started from here on finds it. With
/// other threads about it stays where it is.
pub(crate) fn take_variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    if thread_count().is_ok_and(|threads| threads == 1) {
        // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Sets a variable that all processes started from here on have. With other threads about it is left alone.
pub(crate) fn set_variable(name: &str, value: &str) {
    if thread_count().is_ok_and(|threads| threads == 1) {
        // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(name, value) };
    }
}

/// Takes variables out of the environment of a process that was forked. With other threads about they stay where
/// they are.
pub(crate) fn remove_variables(names: &[&str]) {
    if names.is_empty() || thread_count().is_ok_and(|threads| threads != 1) {
        return;
    }
    for name in names {
        // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
}

/// Gives C's generators a state of their own, as fork has copied the parent's into every worker.
pub(crate) fn reseed_c_random() {
    let mut seed = [0; 4];
    if rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).is_err() {
        return;
    }
    let seed = u32::from_ne_bytes(seed);
    // SAFETY: it writes only C's own generator state, which no other thread uses; in glibc it is
    // that of `random` as well.
    unsafe { libc::srand(seed) };
}
