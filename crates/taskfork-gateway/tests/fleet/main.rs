//! Tests of clients that get their workers from nodes of a service at NATS, with real NATS servers, servers and workers. The
//! binary has its own `main`: these tests start servers by executing the binary again, and such a program must call
//! `taskfork::init` first.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

#[path = "../gateway/any_client.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod any_client;
mod bad_input;
mod calls;
mod deaths;
#[cfg(feature = "nats")]
mod direct;
mod ends;
mod fixture;
#[path = "../../../taskfork-nats/tests/nats/server.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod nats_server;
mod nodes;
mod outages;
#[cfg(feature = "nats")]
mod paths;
mod placement;
mod program;
#[cfg(feature = "nats")]
#[path = "../gateway/proxy.rs"]
mod proxy;
#[path = "../../../taskfork-nats/tests/nats/round_trip.rs"]
mod round_trip;
#[cfg(feature = "nats")]
mod sharing;
#[path = "../gateway/support.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod support;

fn main() {
    let [served] = support::ENTRIES else { unreachable!("there is one entry") };
    taskfork::init(&[
        *served,
        ("slow", support::serve_slowly),
        ("typed", calls::serve_typed),
        ("typed_new", calls::serve_other),
    ]);
    if program::run_requested() {
        return;
    }
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, support::trials()).exit();
}
