//! What runs inside a worker process: read a call, run it, answer, blocking, until the client goes.
//! It knows `wire` and `error`; it never sees the server that forked it but for its own slot of the
//! scoreboard.

mod ahead;
mod connection;
mod early;
pub(crate) mod executable;
mod fault;
pub(crate) mod function;
pub(crate) mod interface;
mod lending;
pub(crate) mod logger;
pub(crate) mod methods;
mod notes;
mod panic;
mod perl;
mod phase;
pub(crate) mod programs;
#[cfg(feature = "tracing")]
mod records;
mod rings;
pub(crate) mod scoreboard;
mod seat;
mod serve;
#[cfg_attr(not(feature = "tracing"), path = "tracer_off.rs")]
pub(crate) mod tracer;

pub(crate) use seat::{Buffers, Connected, Limits, Seat, Socket};
pub(crate) use serve::{Handlers, prepare, serve};
