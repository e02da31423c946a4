//! A checkout's log: its calls as timers, and what its worker logs.

use std::time::Instant;

use log_defer::{Log, Timer};

use crate::wire::log;

/// The timer of one call.
#[derive(Debug, Default)]
pub(crate) enum Timing {
    /// The checkout has no log.
    #[default]
    Off,
    /// The call waits for its turn.
    Waiting { log: Log, name: String, since: Instant },
    /// The call has been handed to its worker.
    Running(Timer),
}

impl Timing {
    pub(crate) fn new(log: Option<&Log>, method: Option<&str>) -> Self {
        let Some(log) = log else { return Self::Off };
        // AnyEvent::Task names a call without a method like this.
        let name = method.unwrap_or("->()").to_owned();
        Self::Waiting { log: log.clone(), name, since: Instant::now() }
    }

    /// Records that the call is handed to its worker.
    pub(crate) fn begin(&mut self) {
        if let Self::Waiting { log, name, .. } = self {
            let timer = log.timer(std::mem::take(name));
            *self = Self::Running(timer);
        }
    }

    /// Records the end of the call. If it was never sent, its timer covers the time that it waited.
    pub(crate) fn end(&mut self) {
        match std::mem::take(self) {
            Self::Off => {}
            Self::Waiting { log, name, since } => log.timer_since(name, since).stop(),
            Self::Running(timer) => timer.stop(),
        }
    }
}

/// Merges a worker's log, or adds a warning if it cannot be read.
pub(crate) fn merge(into: &Log, encoded: &[u8]) {
    match log::read(encoded) {
        Ok(message) => into.merge(message),
        Err(reason) => into.warn(format!("what the worker logged cannot be read: {reason}")),
    }
}
