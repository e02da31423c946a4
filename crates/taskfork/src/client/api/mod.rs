//! The public types of a client.

mod answers;
pub mod binding;
pub(super) mod builder;
pub(super) mod call;
mod call_options;
pub(super) mod caller;
pub(super) mod checkout;
pub(super) mod config_error;
pub(super) mod handle;
mod handle_options;
pub(super) mod input;
mod input_calls;
pub(super) mod items;
pub(super) mod map;
mod map_futures;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "nats")]
mod nats_options;
#[cfg(feature = "nats")]
mod placement;
pub(super) mod progress;
mod resize;
mod single_call;
pub(super) mod stream;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
mod tls_options;
pub(crate) mod typed;
pub(crate) mod typed_checkout;
pub(crate) mod typed_method;
