//! The supervisor: one thread, an epoll loop, no runtime. It forks a worker for each connection,
//! watches them, buries them, and leaves nothing behind. It knows `worker`, into which it forks,
//! and no client.

mod access;
mod adoption;
mod aftermath;
mod birth;
mod builder;
mod burial;
mod capacity;
mod check;
mod children;
mod control;
mod end_requests;
mod entry;
mod error;
mod event_loop;
mod group;
mod guardian;
mod guardian_list;
mod handle;
mod handshake;
mod hangup;
mod inspect;
mod limits;
mod limits_check;
mod line_limit;
mod link;
mod listener;
mod log;
#[cfg(feature = "metrics")]
mod metrics;
mod notify;
mod oom;
mod options;
mod orphans;
mod parent;
mod plan;
mod preload;
pub(crate) mod program_file;
mod rebind;
mod refusal;
mod restart;
mod runtime_directory;
mod service_variables;
mod share;
mod signals;
mod socket_file;
mod spares;
mod spawn;
mod stack;
mod start;
mod status;
mod status_requests;
mod stderr;
mod waiting;
mod wake;

pub use builder::{Server, ServerBuilder};
pub use entry::{Entry, init};
pub use error::ServerError;
pub use handle::ServerHandle;
pub use limits::Limit;
pub(crate) use link::Link;
pub use preload::Preloaded;
pub use spawn::Spawn;
pub use status::{ServerStatus, WorkerStatus};
pub use stderr::Stderr;

/// What fuzz targets call.
#[cfg(fuzzing)]
pub(crate) mod fuzz {
    pub(crate) use super::status::dismissed;
}
