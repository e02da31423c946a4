//! A checkout's log: its calls as timers, and what its worker logs.

use std::time::Instant;

use log_defer::{Log, Timer};

use crate::wire::log;

/// The timer of one call.
#[derive(Debug, Default)]
pub(crate) enum Timing {
    /// Nobody wants to know.
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
        // The name that the first users know for a call without a method.
        let name = method.unwrap_or("->()").to_owned();
        Self::Waiting { log: log.clone(), name, since: Instant::now() }
    }

    /// The call's turn has come.
    pub(crate) fn begin(&mut self) {
        if let Self::Waiting { log, name, .. } = self {
            let timer = log.timer(std::mem::take(name));
            *self = Self::Running(timer);
        }
    }

    /// The call is over; one whose turn never came took all the time that it waited.
    pub(crate) fn end(&mut self) {
        match std::mem::take(self) {
            Self::Off => {}
            Self::Waiting { log, name, since } => log.timer_since(name, since).stop(),
            Self::Running(timer) => timer.stop(),
        }
    }
}

/// Adds what a worker has logged; where it cannot be read, a line that says so.
pub(crate) fn merge(into: &Log, encoded: &[u8]) {
    match log::read(encoded) {
        Ok(message) => into.merge(message),
        Err(reason) => into.warn(format!("what the worker logged cannot be read: {reason}")),
    }
}
