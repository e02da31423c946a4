//! A checkout's log: its calls as timers, and what its worker logs.

use std::time::Instant;

use log_defer::{Log, Message, Timer};
use serde::Deserialize;

/// A worker's log that is longer than this is not read: small values take many times as much memory
/// as bytes.
const MAX_LOG: usize = 4 << 20;

/// Values nested deeper than this break a worker's log.
const MAX_DEPTH: usize = 128;

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
pub(crate) fn merge(log: &Log, encoded: &[u8]) {
    match read(encoded) {
        Ok(message) => log.merge(message),
        Err(reason) => log.warn(format!("what the worker logged cannot be read: {reason}")),
    }
}

fn read(encoded: &[u8]) -> Result<Message, String> {
    if encoded.len() > MAX_LOG {
        return Err(format!("it takes {} bytes, and the limit is {MAX_LOG}", encoded.len()));
    }
    let mut reader = rmp_serde::Deserializer::from_read_ref(encoded);
    reader.set_max_depth(MAX_DEPTH);
    Message::deserialize(&mut reader).map_err(|error| error.to_string())
}
