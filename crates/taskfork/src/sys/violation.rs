//! The system call for which a sandbox kills a worker. The handler of SIGSYS stores it in memory that the
//! worker shares with its server.

use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::SeqCst};

/// Where the number is stored. Null outside of confined workers.
static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());

/// Sets where [`record_violation`] stores the number.
#[taskfork_macros::startup_code]
pub(crate) fn set_violation_word(word: &'static AtomicU64) {
    WORD.store(ptr::from_ref(word).cast_mut(), SeqCst);
}

/// Stores the number of a system call, plus one. It is safe in a signal handler. It does nothing
/// in a process that the worker has forked.
pub(crate) fn record_violation(number: i32) {
    if super::is_forked() {
        return;
    }
    // SAFETY: the pointer is null, or was made of a `'static` reference.
    if let Some(word) = unsafe { WORD.load(SeqCst).as_ref() } {
        word.store(u64::from(number.cast_unsigned()) + 1, SeqCst);
    }
}
