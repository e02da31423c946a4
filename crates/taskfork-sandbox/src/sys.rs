//! The system calls of this crate that no other crate wraps, and all of its `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Returns the version of Landlock that the kernel has.
pub(crate) fn landlock_abi() -> io::Result<u32> {
    /// `LANDLOCK_CREATE_RULESET_VERSION`.
    const VERSION: u32 = 1;
    // SAFETY: with this flag and no attributes, the call only returns a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0_usize, VERSION)
    };
    u32::try_from(version).map_err(|_| io::Error::last_os_error())
}

/// Whether the kernel knows this action of seccomp filters, `SECCOMP_RET_…`.
pub(crate) fn knows_seccomp_action(action: u32) -> bool {
    let known = &raw const action;
    // SAFETY: the kernel reads one number of a local variable.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0_u32, known) == 0 }
}

/// Whether this process has one thread, and shares its memory with no other process.
///
/// Some sandboxes around this one, such as the default of Docker, refuse to say whether memory is shared. Then
/// only threads are counted.
pub(crate) fn is_single_threaded() -> io::Result<bool> {
    // SAFETY: the kernel has nothing to do for a process that shares no memory, and otherwise refuses.
    if unsafe { libc::unshare(libc::CLONE_VM) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EINVAL) => Ok(false),
        _ => Ok(std::fs::read_dir("/proc/self/task")?.count() == 1),
    }
}

/// The function that records a forbidden system call.
static RECORD: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Installs a handler of SIGSYS that passes the number of the forbidden system call to `record`, and then
/// ends the process by the same signal.
///
/// `record` runs in a signal handler: see [`PreparedSandbox::on_violation`](crate::PreparedSandbox::on_violation).
pub(crate) fn install_violation_handler(record: Option<fn(i32)>) -> io::Result<()> {
    RECORD.store(record.map_or(ptr::null_mut(), |record| record as *mut ()), Ordering::SeqCst);
    // SAFETY: a `sigaction` of zeros is one with the default disposition and no flags.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_violation as *const () as usize;
    // The default disposition is back, and the signal not blocked, when the handler raises it again.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND | libc::SA_NODEFER;
    // SAFETY: the handler makes system calls and loads an atomic, both of which signal handlers may do.
    let done = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `siginfo_t` of SIGSYS. libc has no access to these fields.
#[repr(C)]
struct ViolationInfo {
    signal: i32,
    error: i32,
    code: i32,
    padding: i32,
    address: usize,
    system_call: i32,
}

extern "C" fn on_violation(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// `SYS_SECCOMP`: the signal comes from a filter, not from a process.
    const FROM_FILTER: i32 = 1;
    // SAFETY: the kernel passes a `siginfo_t` of SIGSYS, which begins with these fields.
    let info = unsafe { &*info.cast::<ViolationInfo>() };
    let record = RECORD.load(Ordering::SeqCst);
    if info.code == FROM_FILTER && !record.is_null() {
        // SAFETY: the pointer was made of a function of this type.
        let record = unsafe { std::mem::transmute::<*mut (), fn(i32)>(record) };
        record(info.system_call);
    }
    // SAFETY: a signal to the own thread.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGSYS);
        libc::_exit(1);
    }
}

/// Private pages that the kernel fills with zeros in a forked process.
pub(crate) struct WipedPages {
    start: *mut u8,
    length: usize,
}

// SAFETY: the pages belong to the value alone, and it is used as a slice of bytes would be.
unsafe impl Send for WipedPages {}
// SAFETY: as above.
unsafe impl Sync for WipedPages {}

impl WipedPages {
    /// Maps pages of zeros for `length` bytes, which must not be 0.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the kernel chooses the address of a new mapping.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let pages = Self { start: start.cast(), length };
        for advice in [libc::MADV_WIPEONFORK, libc::MADV_DONTDUMP] {
            // SAFETY: the advice is for the pages of this value, and changes nothing in them.
            if unsafe { libc::madvise(start, length, advice) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(pages)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the pages are mapped and initialized, and `bytes_mut` borrows the value exclusively.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the value is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl Drop for WipedPages {
    fn drop(&mut self) {
        // The kernel fills pages with zeros before another process gets them.
        // SAFETY: nothing can use the pages any more. An error would only leave them mapped.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}
