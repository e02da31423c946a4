//! What each worker does, in memory that it shares with the server alone. A worker moves its slot from
//! phase to phase. The server reads the slot, and kills a worker only in the phase and call that it has
//! judged. So a late kill cannot hit the next call.
//!
//! A worker can write any value to its slot at any time. So the server reads the state in one place,
//! [`ServerSlot::read`], and rejects impossible values there. No value in a slot names another slot, or a process for
//! anything but texts.

mod board;
mod layout;
mod method_table;
mod program_stage;
mod server_slot;
mod stop;
#[cfg(test)]
mod tests;
mod worker_slot;

pub(crate) use super::phase::Phase;
pub(crate) use board::Scoreboard;
pub(crate) use layout::{MAX_COUNT, METHOD_BYTES};
pub(crate) use method_table::{CountedCalls, UNKNOWN_METHOD};
pub(crate) use program_stage::ProgramStage;
pub(crate) use server_slot::{Corruption, ServerSlot, SlotView};
pub(crate) use stop::{Retirement, StopRequest};
pub(crate) use worker_slot::WorkerSlot;
