//! The log of the current call, which is created when it is first used.

use std::cell::RefCell;

use log_defer::{Level, Log};

use super::log_frames;
use super::telemetry::{self, RecorderState};

/// About how many bytes of a log are kept until they are sent.
const MAX_BYTES: usize = 1 << 20;

/// Returns the log of this worker's current call. Its lines, timers and data arrive in the log that the
/// caller has passed to [`Checkout::log`](crate::Checkout::log), with the times at which they were
/// recorded here. They arrive even if the call fails.
///
/// The log has the verbosity of the caller's log. It records nothing if the caller has none, and outside
/// of workers. A handle that is kept after the call records nothing either. `setup` and `checkout_done`
/// log to the next call.
///
/// While a call runs, its log is sent about every 50 milliseconds, so that it arrives even if the worker
/// is killed. A line of more than about 4 KiB is sent with the answer. About 1 MiB is kept until it is
/// sent; a further line says how much was left out.
///
/// The first use in a call whose caller has a log starts a thread, which blocks all signals.
///
/// ```
/// use taskfork::worker::logger;
/// use taskfork::Methods;
///
/// let methods = Methods::new().function("compute", |number: u64| {
///     logger().info(("about to compute", number));
///     let _timer = logger().timer("computing");
///     Ok(number * 2)
/// });
/// # let _: Methods<()> = methods;
/// ```
pub fn logger() -> Log {
    if let Some(log) = ON_THREAD.with_borrow(Option::clone) {
        return log;
    }
    let mut recorder = telemetry::lock();
    if let Some(log) = &recorder.log {
        return log.clone();
    }
    let verbosity = match recorder.state {
        RecorderState::Inactive => None,
        // The next call filters them.
        RecorderState::BetweenCalls => Some(Level::ALL),
        RecorderState::InCall(requested) => requested.log,
    };
    let Some(verbosity) = verbosity else {
        let log = Log::builder().verbosity(Level::new(0)).start(drop);
        log.close();
        // Later uses in this call return the same handle.
        recorder.log = matches!(recorder.state, RecorderState::InCall(_)).then(|| log.clone());
        return log;
    };
    let log = Log::builder().verbosity(verbosity).max_bytes(MAX_BYTES).start(drop);
    recorder.log = Some(log.clone());
    recorder.schedule_send();
    log
}

thread_local! {
    /// The log of the call that this thread runs, if it is a worker in the process of its client.
    static ON_THREAD: RefCell<Option<Log>> = const { RefCell::new(None) };
}

/// The log of a call that a thread of its client's process runs.
pub(super) struct ThreadLog(());

impl ThreadLog {
    /// Begins the log, with the level that the caller wants. Without one, nothing is recorded.
    pub(super) fn begin(level: Option<Level>) -> Self {
        let log =
            level.map(|level| Log::builder().verbosity(level).max_bytes(MAX_BYTES).start(drop));
        ON_THREAD.set(log);
        Self(())
    }

    /// Ends the log, and appends frames with it.
    pub(super) fn end(self, out: &mut Vec<u8>, limit: usize) {
        let Some(log) = ON_THREAD.take() else { return };
        let message = log.close();
        if !log_frames::is_empty(&message) {
            log_frames::write(out, limit, vec![message]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::log_frames;

    #[test]
    fn outside_of_workers_nothing_is_recorded() {
        let log = logger();
        log.error("this is not recorded");
        assert!(log_frames::is_empty(&log.message()));
    }
}
