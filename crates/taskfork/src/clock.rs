//! The clock that a server and its workers share.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Returns the time of `CLOCK_MONOTONIC`.
///
/// Every process on the machine reads the same value, so workers can publish instants in shared memory. The type is
/// `Duration` because an `Instant` cannot be written there.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
