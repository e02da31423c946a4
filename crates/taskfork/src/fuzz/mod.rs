//! The functions of the fuzz targets in `fuzz/`, one for each target. Each checks properties of its input, and panics if
//! one does not hold. This module exists only in builds with `--cfg fuzzing`.
#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]
#![allow(missing_docs, reason = "users do not call these functions")]

mod json;
mod memory;
mod messages;
mod records;
mod relay;
mod texts;

pub use json::{json, json_scan};
pub use memory::{arguments, gather_frame, rings, shm};
pub use messages::{errors, frames, from_client, from_worker, hellos};
pub use records::{log_messages, telemetry, traces};
pub use relay::{relayed_hellos, relayed_streams};
pub use texts::{addresses, status};

/// Reads numbers from the front of an input, and zeros after its end.
#[derive(Debug)]
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
