//! The clock of a client.

use std::time::Instant;

/// The present time by the clock of tokio's timers. Tests can pause that clock.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
