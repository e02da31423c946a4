//! The server: one thread with an epoll loop, no runtime. It forks a worker for each connection,
//! supervises the workers, reaps them, and leaves no process, file or memory behind.
//!
//! * `run` starts a server, `builder` and `options` describe it.
//! * `supervisor` decides, without I/O. `event_loop` reports all events to it, and carries out what it
//!   decides. Everything below is independent of the loop.
//! * Connections: `initial_listener`, `listener`, `socket_file`, `access`, `handshakes`, `refusal`.
//! * Workers: `child`, `worker_exit`, `limits`, `worker_groups`, `privileges`, `sandbox`, `scratch`,
//!   `probe`, `stderr`, `orphans`, `guardian`.
//! * Restarts and service managers: `restart`, `parent`, `signals`, `hangup`, `service_manager`,
//!   `environment`.
//! * The program that starts a server in a process of its own: `spawn`, `entry`, `test_entries`, `launch`,
//!   `starting_process`, `startup_output`, `spawned_server`, `handle`, and `control`, the channel
//!   between both.
//!
//! It knows `worker`, whose code a forked process runs, and no client.

mod access;
mod builder;
mod call_totals;
mod child;
mod command;
mod control;
mod counters;
mod delayed_check;
mod entry;
mod environment;
mod error;
mod event_loop;
mod failure_text;
mod guardian;
mod handle;
mod handshakes;
mod hangup;
mod huge_pages;
mod initial_listener;
mod launch;
mod limits;
mod limits_check;
mod listener;
mod log;
mod log_limit;
#[cfg(feature = "metrics")]
mod metrics;
mod notify;
mod numbered;
mod oom;
mod options;
mod orphans;
mod parent;
pub(crate) mod private;
mod privileges;
mod probe;
mod proc_status;
mod process;
pub(crate) mod program_file;
mod recent_deaths;
mod refusal;
mod restart;
mod run;
mod runtime_directory;
mod sandbox;
mod scratch;
mod service_manager;
mod signals;
mod socket_file;
mod spawn;
mod spawned_server;
mod stack;
mod starting_process;
mod startup_output;
mod status;
mod status_requests;
mod status_socket;
mod stderr;
mod stop_requests;
pub(crate) mod supervisor;
mod test_entries;
mod titles;
mod wake_pipe;
mod watched_set;
mod worker_exit;
mod worker_groups;

#[cfg(test)]
pub(crate) use {limits::Recycling, proc_status::SignalAction};

pub use builder::{Preloaded, ServerBuilder};
pub(crate) use command::{
    block_signals_until_served, handle_all_kept_signals, handle_kept_signals, keep_signals,
    keep_signals_until_handled, meaning_of_hangup, service_manager,
};
pub(crate) use entry::register_test_servers;
pub use entry::{Entry, init};
pub use error::ServerError;
pub use handle::ServerHandle;
pub use hangup::Hangup;
pub use limits::Limit;
pub use run::Server;
pub use service_manager::ServiceManager;
pub use spawn::Spawn;
pub(crate) use spawned_server::SpawnedServer;
pub use status::{DeathStatus, MethodStatus, ServerStatus, WaitingClientStatus, WorkerStatus};
pub use stderr::Stderr;

pub use crate::histogram::Histogram;
pub use crate::log_output::LogWriter;

/// What fuzz targets call.
#[cfg(fuzzing)]
pub(crate) mod fuzz {
    pub(crate) use super::status::StatusRequest;
}
