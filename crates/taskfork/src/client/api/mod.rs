//! The public types of a client.

pub(super) mod builder;
pub(super) mod call;
pub(super) mod checkout;
pub(super) mod handle;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "nats")]
mod nats_options;
#[cfg(feature = "nats")]
mod placement;
pub(super) mod progress;
pub(super) mod stream;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
mod tls_options;
