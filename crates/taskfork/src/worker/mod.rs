//! What runs in a worker process: interfaces, and what code in a worker can use.
//!
//! A worker waits for a call, runs it on its only thread, and sends the answer.
//!
//! - Interfaces: [`interface`](macro@crate::interface) defines a typed one for a trait. [`Methods`] and
//!   [`Function`] are untyped ones. An [`Executable`] is a program in any language that serves as worker.
//! - In a call: [`context`] returns its deadline and its client, and [`logger`] the log that travels to
//!   the caller. With the feature `spans`, `tracing_layer` does the same for `tracing`.

pub(crate) mod binding;
mod call;
mod confinement;
mod connection;
pub(crate) mod error_reply;
pub(crate) mod executable;
pub(crate) mod function;
mod functions;
mod handlers;
mod handshake;
mod inherited_state;
mod init;
mod input;
pub(crate) mod interface;
mod log_frames;
pub(crate) mod logger;
pub(crate) mod methods;
pub(crate) mod on_thread;
mod panic;
mod perl;
mod phase;
mod pipeline;
mod presetup;
mod progress;
#[cfg_attr(not(feature = "spans"), path = "records_disabled.rs")]
mod records;
mod replace_after;
mod rings;
mod sandbox;
pub(crate) mod scoreboard;
mod serve;
mod several;
mod shared_memory;
mod state;
mod streaming;
mod subprocess;
mod successor;
pub(crate) mod takeover;
mod telemetry;
#[cfg(feature = "spans")]
pub(crate) mod tracer;
mod user_code;

pub use executable::Executable;
pub use function::Function;
pub use functions::{Method, Stateless, StreamMethod, StreamStateless};
pub use interface::Interface;
pub use logger::logger;
pub use methods::Methods;
pub use replace_after::ReplaceAfter;
/// A value of any type, as serde can decode it from a call or a result.
///
/// ```
/// use taskfork::Methods;
/// use taskfork::worker::Value;
///
/// let echo = Methods::<()>::new().function("echo", |value: Value| Ok(value));
/// # let _ = echo;
/// ```
#[doc(inline)]
pub use rmpv::Value;
pub use subprocess::default_signals;
#[cfg(feature = "spans")]
pub use tracer::tracing_layer;

pub use crate::context::{Context, context};
pub use crate::emitter::{EmitError, Emitter};
pub use crate::peer::Peer;
pub use crate::receiver::ReceiveError;
pub use crate::wire::arguments::{Arguments, ArgumentsError, FromArguments};

pub(crate) use executable::Made;
pub(crate) use handlers::Handlers;
pub(crate) use init::{
    AcceptedClient, ClientSource, IoBuffers, TakeoverFiles, WorkerConfig, WorkerInit,
};
pub(crate) use panic::load_symbols;
pub(crate) use sandbox::WorkerSandbox;
pub(crate) use serve::{prepare, serve};
