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
#[cfg(feature = "spans")]
mod records;
mod rings;
pub(crate) mod scoreboard;
mod seat;
mod serve;
#[cfg_attr(not(feature = "spans"), path = "tracer_off.rs")]
pub(crate) mod tracer;

pub use executable::Executable;
pub use function::Function;
pub use interface::{BoxError, Interface};
pub use logger::logger;
pub use methods::{Method, Methods, Stateless};
pub use programs::default_signals;
pub use rmpv::Value;
#[cfg(feature = "spans")]
pub use tracer::tracing_layer;

pub use crate::context::{Context, Peer, context};
pub use crate::wire::arguments::{Arguments, ArgumentsError, FromArguments};

pub(crate) use seat::{Buffers, Connected, Limits, Seat, Socket};
pub(crate) use serve::{Handlers, prepare, serve};
