//! The client: a pool of connections to workers, checkouts of workers, and calls.
//!
//! Build a [`Client`] with [`Client::builder`]. [`ClientBuilder`] lists the options.

mod advance;
mod attachments;
mod builder;
mod call;
mod checkout;
mod config;
mod connection;
mod core;
mod deadlines;
mod disconnect;
mod effects;
mod entries;
mod handle;
mod handshake;
mod io;
mod log;
#[cfg_attr(not(feature = "metrics"), path = "metrics_off.rs")]
mod metrics;
mod optimistic;
mod outbox;
mod perl;
mod pool;
mod queue;
mod read_budget;
#[cfg_attr(not(feature = "spans"), path = "replay_off.rs")]
mod replay;
#[cfg(feature = "spans")]
mod replay_fields;
mod rings;
mod send;
mod session;
#[cfg(feature = "spans")]
mod sites;
mod state;
mod stats;
mod step;

#[cfg(test)]
pub(crate) use io::transport::memory;

pub use builder::{ClientBuilder, ConfigError};
pub use call::Call;
pub use checkout::{Caller, Checkout};
pub use handle::Client;
pub use pool::Overload;
pub use rmpv::Value;
pub use stats::Stats;

pub use crate::address::{Address, AddressError};
pub use crate::busy_poll::BusyPoll;
pub use crate::wire::Protocol;
pub use crate::wire::arguments::IntoArguments;

/// What fuzz targets call.
#[cfg(fuzzing)]
pub(crate) mod fuzz {
    pub(crate) use super::log::merge;
    pub(crate) use super::replay::Replay;
}
