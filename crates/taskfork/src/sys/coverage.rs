//! Coverage of code in workers and servers. They leave by `_exit`, which runs no `atexit` handler, so the profile is
//! written here. It is compiled with `--cfg coverage` only, which `cargo llvm-cov` sets.

unsafe extern "C" {
    fn __llvm_profile_initialize_file();
    fn __llvm_profile_write_file() -> i32;
}

/// Writes the profile of this process to the file that `LLVM_PROFILE_FILE` names.
pub(crate) fn write_profile() {
    // SAFETY: both functions are in every program that is compiled for coverage, take nothing, and may be called at any
    // time. The first reads the name again, so that this process need not share a file with its parent.
    unsafe {
        __llvm_profile_initialize_file();
        // If it fails, it has written why to standard error.
        let _ = __llvm_profile_write_file();
    }
}
