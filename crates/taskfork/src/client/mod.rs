//! The client: a pool of connections to workers, checkouts of workers, and calls.
//!
//! Build a [`Client`] with [`Client::builder`]. [`ClientBuilder`] lists the options.

mod api;
mod config;
mod io;
mod now;
mod observe;
mod pool;
mod proto;
mod required;
mod session;
pub(crate) mod spawned_server;

pub use api::binding;
pub(crate) use api::typed_method;
#[cfg(test)]
pub(crate) use io::transport::memory;

pub use api::builder::ClientBuilder;
pub use api::call::Call;
pub use api::caller::Caller;
pub use api::checkout::Checkout;
pub use api::config_error::ConfigError;
pub use api::handle::Client;
pub use api::input::{Input, InputItem, IntoInput};
pub use api::items::Items;
pub use api::map::MapCalls;
pub use api::progress::ProgressUpdates;
pub use api::stream::StreamCall;
pub use api::typed::{TypedClient, TypedHandle};
pub use api::typed_checkout::TypedCheckout;
pub use observe::stats::Stats;
pub use pool::Overload;
pub use rmpv::Value;
/// Which way the bytes of a session take. See [`ClientBuilder::nats_route`].
#[cfg(feature = "nats")]
pub use taskfork_nats::Route as NatsRoute;
/// How a client connects to a NATS server. See [`ClientBuilder::nats`].
#[cfg(feature = "nats")]
pub use taskfork_nats::async_nats::ConnectOptions as NatsConnectOptions;

pub use crate::address::{Address, AddressError};
pub use crate::busy_poll::BusyPoll;
pub use crate::wire::Protocol;
pub use crate::wire::arguments::IntoArguments;

/// What fuzz targets call.
#[cfg(fuzzing)]
pub(crate) mod fuzz {
    pub(crate) use super::observe::log::merge;
    pub(crate) use super::observe::replay::Replay;
}
