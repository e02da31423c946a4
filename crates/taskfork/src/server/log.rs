//! The log lines of a server, which go to the program's subscriber. A subscriber that panics does
//! not end the server: one that cannot write to standard error may do so. A subscriber that does
//! not write through a [`LogWriter`](crate::server::LogWriter) gets no lines while standard error
//! takes none, because it would block.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::log_output;

/// The number of lines that could not be logged.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Defines macros like those of the crate `tracing`.
macro_rules! levels {
    ($dollar:tt $($level:ident as $name:ident),*) => {$(
        macro_rules! $name {
            ($dollar($dollar what:tt)*) => {
                $crate::server::log::write(|| ::tracing::$level!($dollar($dollar what)*))
            };
        }
        pub(crate) use $name as $level;
    )*};
}

levels!($ error as log_error, warn as log_warn, info as log_info, debug as log_debug);

/// Passes a line to the subscriber.
pub(crate) fn write(log: impl FnOnce()) {
    if log_output::has_subscriber() {
        // A [`LogWriter`](crate::server::LogWriter) can neither fail nor block.
        log();
    } else if !is_stderr_ready() {
        LOST.fetch_add(1, Relaxed);
    } else {
        // A write copies the page after each fork, so there is one only where there is something to report.
        let lost = if LOST.load(Relaxed) == 0 { 0 } else { LOST.swap(0, Relaxed) };
        let report = || {
            if lost > 0 {
                tracing::error!(lost, "lines of the log were lost, as it could not be written");
            }
        };
        if !is_done(report) {
            LOST.fetch_add(lost + 1, Relaxed);
        } else if !is_done(log) {
            LOST.fetch_add(1, Relaxed);
        }
    }
}

fn is_done(log: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(log)).is_ok()
}

fn is_stderr_ready() -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut watched = [PollFd::from_borrowed_fd(rustix::stdio::stderr(), PollFlags::OUT)];
    poll(&mut watched, Some(&now)) != Ok(0)
}
