//! The public types of a client.

pub(super) mod builder;
pub(super) mod call;
pub(super) mod checkout;
pub(super) mod handle;
#[cfg(feature = "tls")]
mod tls_options;
