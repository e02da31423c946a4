//! System calls by number, as code makes them that has taken a worker over.

use std::ffi::{CString, c_long};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Makes a system call. Its result is an error if it is -1.
pub(crate) fn system_call(number: c_long, arguments: &[usize]) -> io::Result<usize> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: the attempts pass numbers, and addresses of values that live until the call returns and that are as
    // large as the kernel expects.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result.cast_unsigned() as usize) }
}

/// Makes a system call that returns a new descriptor.
pub(crate) fn open_by(number: c_long, arguments: &[usize]) -> io::Result<OwnedFd> {
    let descriptor = system_call(number, arguments)?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    #[allow(unsafe_code)]
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    Ok(descriptor)
}

/// The address of a value, as an argument of a system call.
pub(crate) fn address<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).addr()
}

/// The address of a value that the kernel writes to.
pub(crate) fn address_mut<T: ?Sized>(value: &mut T) -> usize {
    std::ptr::from_mut(value).addr()
}

/// A path or a name as the kernel reads it.
pub(crate) fn text(text: impl AsRef<str>) -> CString {
    CString::new(text.as_ref()).unwrap()
}

/// Counts an error as success that the kernel returns after it has checked the permission.
pub(crate) fn permitted<T>(result: io::Result<T>, harmless: &[i32]) -> io::Result<()> {
    match result {
        Err(error) if !error.raw_os_error().is_some_and(|number| harmless.contains(&number)) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Forks. Returns the process id of the child, which does nothing but wait for its end.
pub(crate) fn fork_sleeper() -> io::Result<i32> {
    // SAFETY: the child makes two system calls and ends.
    #[allow(unsafe_code)]
    unsafe {
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
                libc::_exit(0)
            }
            child => Ok(child),
        }
    }
}

/// Ends a child of this process, and reaps it.
pub(crate) fn end_child(child: i32) {
    // SAFETY: these have no preconditions.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), libc::__WALL);
    }
}

/// Makes a child by `clone` with these flags, which have no `CLONE_VM`. The child ends at once.
pub(crate) fn clone_child(flags: i32) -> io::Result<()> {
    let flags = flags | libc::SIGCHLD;
    match system_call(libc::SYS_clone, &[flags as usize])? {
        // SAFETY: it ends the child, which has its own memory.
        #[allow(unsafe_code)]
        0 => unsafe { libc::_exit(0) },
        child => {
            // SAFETY: it has no precondition. A child of another parent is not waited for.
            #[allow(unsafe_code)]
            unsafe {
                libc::waitpid(child as i32, std::ptr::null_mut(), libc::__WALL)
            };
            Ok(())
        }
    }
}

/// A system call of 32-bit programs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn system_call_32(number: u32, arguments: [u32; 3]) -> io::Result<usize> {
    let [b, c, d] = arguments;
    let mut result = number;
    // SAFETY: the attempts pass numbers, and addresses below 4 GiB of values that live until the call returns. The
    // compiler reserves `rbx`, which is restored.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!(
            "mov {saved}, rbx",
            "mov ebx, {b:e}",
            "int 0x80",
            "mov rbx, {saved}",
            saved = out(reg) _,
            b = in(reg) b,
            inlateout("eax") result,
            in("ecx") c,
            in("edx") d,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    match result.cast_signed() {
        error @ -4095..0 => Err(io::Error::from_raw_os_error(-error)),
        result => Ok(result as usize),
    }
}

/// A copy of `bytes` below 4 GiB, for calls of 32-bit programs. It stays for as long as the process.
#[cfg(target_arch = "x86_64")]
pub(crate) fn copy_below_4_gib(bytes: &[u8]) -> io::Result<u32> {
    // SAFETY: the kernel chooses the place of the new mapping, which is large enough and written before it is used.
    #[allow(unsafe_code)]
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            bytes.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        );
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.cast(), bytes.len());
        Ok(start.addr() as u32)
    }
}
