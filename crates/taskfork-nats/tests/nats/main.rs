//! Sessions over real NATS servers, which the tests start.

mod acquiring;
mod backend;
mod server;
mod streams;
