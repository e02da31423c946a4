//! The log of the current call, which is created when it is first used.

use log_defer::{Level, Log};

use super::telemetry::{self, RecorderState};

/// About how many bytes of logs are kept until they are sent.
const MAX_BYTES: usize = 1 << 20;

/// The log of the call that runs in this worker. What is written to it arrives in the log that the
/// caller gave to [`Checkout::log`](crate::Checkout::log), with the times at which it happened here,
/// also if the call fails. Calls that run for long send it on the way, about every 50 milliseconds,
/// so that it is not lost when they are killed; a line of more than about 4 KiB goes with the answer.
///
/// It is made on demand, with the verbosity of the caller's log; where the caller has none it takes
/// nothing. `setup` and `checkout_done` log to the call that comes next, which takes what its caller wants. About 1 MiB is kept until
/// it is sent, and a line says what was left out. Handles kept beyond the call take nothing.
///
/// The first use in a call whose caller has a log starts a thread in the worker, which blocks all
/// signals.
///
/// Outside of a worker what it gives takes nothing.
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
    let mut recorder = telemetry::lock();
    if let Some(log) = &recorder.log {
        return log.clone();
    }
    let verbosity = match recorder.state {
        RecorderState::Inactive => None,
        // The call that gets them filters them.
        RecorderState::BetweenCalls => Some(Level::ALL),
        RecorderState::InCall(wanted) => wanted.log,
    };
    let Some(verbosity) = verbosity else {
        let log = Log::builder().verbosity(Level::new(0)).start(drop);
        log.close();
        // Made once for this call.
        recorder.log = matches!(recorder.state, RecorderState::InCall(_)).then(|| log.clone());
        return log;
    };
    let log = Log::builder().verbosity(verbosity).max_bytes(MAX_BYTES).start(drop);
    recorder.log = Some(log.clone());
    recorder.schedule_send();
    log
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::log_frames;

    #[test]
    fn outside_of_a_worker_nothing_is_taken() {
        let log = logger();
        log.error("nobody hears this");
        assert!(log_frames::is_empty(&log.message()));
    }
}
