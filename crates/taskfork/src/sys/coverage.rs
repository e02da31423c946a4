//! Profiles of code in workers and servers, for coverage. They leave by `_exit`, which runs no `atexit` handler, so the
//! profile is written here.
//!
//! Whether the program is compiled for coverage shows only when it is linked: `cargo llvm-cov` compiles the crates of the
//! user's workspace for it, and this crate as usual. Therefore the functions of LLVM's profiler are weak symbols, which
//! are null in a program without the profiler.

use std::ffi::c_int;

/// The address of a function of LLVM's profiler, or null. Linkers put null into the global offset table for a weak
/// symbol that nothing defines, in programs at a fixed address too.
macro_rules! profiler_function {
    ($name:literal) => {{
        let address: *const ();
        // SAFETY: it reads one word of the global offset table, which the linker has made for this symbol.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                concat!(".weak ", $name),
                concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                out(reg) address,
                options(nostack, preserves_flags, readonly)
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!(
                concat!(".weak ", $name),
                concat!("adrp {0}, :got:", $name),
                concat!("ldr {0}, [{0}, :got_lo12:", $name, "]"),
                out(reg) address,
                options(nostack, preserves_flags, readonly)
            );
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            address = std::ptr::null();
        }
        address
    }};
}

/// Writes the profile of this process to the file that `LLVM_PROFILE_FILE` names. Does nothing in a program without
/// LLVM's profiler, and on architectures other than x86-64 and AArch64.
pub(crate) fn write_profile() {
    let initialize = profiler_function!("__llvm_profile_initialize_file");
    let write = profiler_function!("__llvm_profile_write_file");
    if initialize.is_null() || write.is_null() {
        return;
    }
    // SAFETY: the profiler defines both functions with these types. They may be called at any time.
    unsafe {
        let initialize = std::mem::transmute::<*const (), extern "C" fn()>(initialize);
        let write = std::mem::transmute::<*const (), extern "C" fn() -> c_int>(write);
        // Reads the name again, so that this process need not share a file with its parent.
        initialize();
        // If it fails, it has written why to standard error.
        let _ = write();
    }
}
