//! Running the user's code in a worker.

use std::panic::AssertUnwindSafe;

use super::panic::take_panic;
use crate::error::Panic;
use crate::sys;

/// Runs user code and returns its panic as an error. If the code has forked, the child exits here.
#[taskfork_macros::startup_code]
pub(super) fn catch_panic<T>(run: impl FnOnce() -> T) -> Result<T, Panic> {
    // Later calls of this checkout see state that the panic left half changed. The client replaces the
    // worker when the checkout ends, unless the server's option says otherwise (`ReplaceAfter`).
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(run));
    sys::exit_if_forked();
    outcome.map_err(take_panic)
}
