//! What the fuzz targets in `fuzz/` call: one function for each target. Each checks properties of what it is
//! given, and panics where one does not hold. It is built with `--cfg fuzzing` only.
#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod json;
mod memory;
mod messages;
mod records;
mod texts;

pub use json::{json, json_scan};
pub use memory::{arguments, lending, parts, rings};
pub use messages::{errors, frames, from_client, from_worker, hellos};
pub use records::{log_messages, notes, traces};
pub use texts::{addresses, status};

/// Reads numbers off the front of an input. Behind its end there are zeros.
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
