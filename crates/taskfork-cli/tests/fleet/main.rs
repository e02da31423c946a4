//! `taskfork serve --nats`, `status` and `top`: the real command with real NATS servers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod bad_input;
mod choice;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../../taskfork-nats/tests/nats/server.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod nats_server;
mod node;
mod reload;
mod restarts;
mod serving;
