//! What runs in a worker process: it reads a call, runs it, answers, and blocks until the next one.
//!
//! [`Methods`] and [`Function`] are untyped interfaces; [`interface`](macro@crate::interface) makes a
//! typed one of a trait. [`Executable`] is a program in any language that serves as a worker. Code of
//! a worker logs with [`logger`], and learns about its call from [`context`].

mod call;
mod connection;
mod error_reply;
pub(crate) mod executable;
pub(crate) mod function;
mod handlers;
mod handshake;
mod init;
pub(crate) mod interface;
mod log_frames;
pub(crate) mod logger;
pub(crate) mod methods;
mod panic;
mod perl;
mod phase;
mod pipeline;
mod presetup;
#[cfg_attr(not(feature = "spans"), path = "records_disabled.rs")]
mod records;
mod rings;
pub(crate) mod scoreboard;
mod serve;
mod shared_memory;
mod state;
mod subprocess;
mod telemetry;
#[cfg(feature = "spans")]
pub(crate) mod tracer;
mod user_code;

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

pub(crate) use handlers::Handlers;
pub(crate) use init::{AcceptedClient, ClientSource, IoBuffers, WorkerConfig, WorkerInit};
pub(crate) use serve::{prepare, serve};
