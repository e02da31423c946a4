//! Tests of the gateway with real servers, real workers and certificates made on the spot. The binary has its own `main`:
//! these tests start servers by executing the binary again, and such a program must call `taskfork::init` first.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod any_client;
mod calls;
mod certificates;
mod deaths;
mod files;
mod handshakes;
mod program;
mod shutdown;
mod support;
mod typed;

fn main() {
    let [served] = support::ENTRIES else { unreachable!("there is one entry") };
    taskfork::init(&[*served, ("slow", support::serve_slowly), ("typed", typed::serve)]);
    if program::run_requested() {
        return;
    }
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, support::trials()).exit();
}
