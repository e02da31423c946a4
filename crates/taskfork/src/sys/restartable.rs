//! The registration of restartable sequences, by which the C library and allocators learn on which processor a thread
//! runs (`rseq(2)`). A process that shares memory with its parent has none, and neither has what it forks. The memory
//! of the registration would then keep the number of an earlier processor.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "a process forks partially on this architecture alone")
)]

use std::ffi::{CStr, c_int, c_uint};
use std::io;

/// The length of an area that every kernel takes.
const LENGTH: c_uint = 32;

/// What the C library registers with: code of such sequences begins with it.
const SIGNATURE: c_uint = 0x5305_3053;

const UNREGISTER: c_int = 1;

/// The registration of this process's only thread.
#[derive(Debug, Clone, Copy)]
pub(super) struct RestartableSequences {
    /// `None` if there is no registration.
    area: Option<usize>,
}

#[repr(C, align(32))]
struct Area([u8; LENGTH as usize]);

impl RestartableSequences {
    /// Finds out what this thread has registered. Returns `None` if that was not the C library.
    pub(super) fn of_this_thread() -> Option<Self> {
        if let Some(area) = area_of_c_library() {
            // The kernel refuses the same registration twice, with an error of its own.
            let again = rseq(area, 0);
            return again
                .is_err_and(|error| error == libc::EBUSY)
                .then_some(Self { area: Some(area) });
        }
        let own = Area([0; LENGTH as usize]);
        let area = (&raw const own).addr();
        match rseq(area, 0) {
            Ok(()) => rseq(area, UNREGISTER).ok().map(|()| Self { area: None }),
            Err(libc::ENOSYS) => Some(Self { area: None }),
            Err(_) => None,
        }
    }

    /// Registers the same in a process that was forked without. Returns whether that succeeded.
    pub(super) fn register(self) -> bool {
        self.area.is_none_or(|area| rseq(area, 0).is_ok())
    }
}

/// Registers an area, or ends its registration. Returns the error number.
fn rseq(area: usize, flags: c_int) -> Result<(), c_int> {
    // SAFETY: the kernel writes to the area of the C library, which exists for that, or to one that stays in place
    // until its registration has ended.
    match unsafe { libc::syscall(libc::SYS_rseq, area, LENGTH, flags, SIGNATURE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// The area that the C library has registered for this thread, if it has (`<sys/rseq.h>`).
#[cfg(target_arch = "x86_64")]
fn area_of_c_library() -> Option<usize> {
    let symbol = |name: &CStr| {
        // SAFETY: the name is terminated.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    };
    let (offset, size) = (symbol(c"__rseq_offset")?, symbol(c"__rseq_size")?);
    // SAFETY: the C library has constants of these types under these names.
    let (offset, size) = unsafe { (*offset.cast::<isize>(), *size.cast::<c_uint>()) };
    let pointer: usize;
    // SAFETY: the word that the thread's segment begins with is its own address.
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, preserves_flags, readonly));
    }
    (size > 0).then(|| pointer.wrapping_add_signed(offset))
}

#[cfg(not(target_arch = "x86_64"))]
fn area_of_c_library() -> Option<usize> {
    None
}
