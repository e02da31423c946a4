//! The dashboard with real servers: over HTTP, and in a real browser. Servers are this program again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod actions;
mod browser;
mod fixture;
mod fleet;
mod http;
mod many_workers;
mod names;
#[path = "../../../taskfork-nats/tests/nats/server.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod nats_server;
mod questions;
mod tls;
mod workers;

use libtest_mimic::{Arguments, Trial};

/// A test: its name and what it runs.
type Test = (&'static str, fn());

fn main() {
    taskfork::init(&[
        ("plain", workers::plain),
        ("shared", workers::shared),
        ("named_as_markup", workers::named_as_markup),
        ("slow", workers::slow),
    ]);
    let tests: Vec<Test> = [
        http::TESTS,
        questions::TESTS,
        names::TESTS,
        actions::TESTS,
        many_workers::TESTS,
        fleet::TESTS,
        tls::TESTS,
    ]
    .concat();
    let trials = tests.into_iter().map(|(name, run)| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
