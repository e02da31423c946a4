//! What runs in a worker process: it reads a call, runs it, answers, and blocks until the next one.
//!
//! [`Methods`] and [`Function`] are untyped interfaces; [`interface`](macro@crate::interface) makes a
//! typed one of a trait. [`Executable`] is a program in any language that serves as a worker. Code of
//! a worker logs with [`logger`], and learns about its call from [`context`].

mod connection;
pub(crate) mod executable;
mod fault;
pub(crate) mod function;
mod init;
pub(crate) mod interface;
pub(crate) mod logger;
pub(crate) mod methods;
mod panic;
mod perl;
mod phase;
mod pipeline;
mod presetup;
#[cfg(feature = "spans")]
mod records;
mod rings;
pub(crate) mod scoreboard;
mod serve;
mod shared_memory;
mod subprocess;
mod telemetry;
#[cfg_attr(not(feature = "spans"), path = "tracer_disabled.rs")]
pub(crate) mod tracer;

pub use executable::Executable;
pub use function::Function;
pub use interface::{BoxError, Interface};
pub use logger::logger;
pub use methods::{Method, Methods, Stateless};
pub use rmpv::Value;
pub use subprocess::default_signals;
#[cfg(feature = "spans")]
pub use tracer::tracing_layer;

pub use crate::context::{Context, Peer, context};
pub use crate::wire::arguments::{Arguments, ArgumentsError, FromArguments};

pub(crate) use init::{AcceptedClient, ClientSource, IoBuffers, WorkerConfig, WorkerInit};
pub(crate) use serve::{Handlers, prepare, serve};
