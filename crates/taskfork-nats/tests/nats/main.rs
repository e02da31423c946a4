//! Sessions over real NATS servers, which the tests start.

#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

mod acquiring;
mod backend;
mod cluster;
mod failures;
mod hostile;
mod micro;
mod server;
mod streams;
