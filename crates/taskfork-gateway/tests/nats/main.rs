//! Tests of gateways that are nodes of a service, with real NATS servers, servers and workers. The binary has its own
//! `main`: these tests start servers by executing the binary again, and such a program must call `taskfork::init` first.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

#[path = "../gateway/any_client.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod any_client;
mod calls;
mod direct;
mod fixture;
mod joining;
mod json_calls;
#[path = "../../../taskfork-nats/tests/nats/server.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod nats_server;
#[path = "../gateway/proxy.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod proxy;
mod strangers;
#[path = "../gateway/support.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod support;

fn main() {
    taskfork::init(support::ENTRIES);
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, support::trials()).exit();
}
