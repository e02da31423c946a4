//! Sessions over real NATS servers, which the tests start.

#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

mod acquiring;
mod backend;
mod cluster;
mod direct;
mod failures;
mod handlers;
mod hostile;
mod leaving;
mod many;
mod micro;
mod places;
mod round_trip;
mod server;
mod sharing;
mod simulated;
mod streams;
