//! Fields of a worker's messages with values of the wrong type.

use crate::case::Expected::{Fails, Refused, Served};
use crate::case::Step::{Receive, ReceivePreamble, Send};
use crate::case::{Case, case};
use crate::message::{PREAMBLE, error, frame, map, text, worker_hello, wrong};
use crate::server_cases::called;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (key, right) in [
        ("version", ""),
        ("pid", ""),
        ("worker", ""),
        ("server", "text"),
        ("max_frame", ""),
        ("ahead", ""),
        ("files", ""),
        ("lent", ""),
        ("rings", "bool"),
        ("alarm", "bool"),
        ("setup", "bool"),
    ] {
        for (name, value) in wrong(right) {
            let hello = [PREAMBLE, &worker_hello(&[(key, value)])].concat();
            let steps = vec![ReceivePreamble, Receive, Send(hello)];
            // Unknown keys and large limits are accepted. That worker does not answer; after any other, the client connects
            // to a good one.
            let is_limit = matches!(key, "max_frame" | "ahead" | "files") && name == "huge";
            let is_accepted = is_limit || matches!(key, "lent" | "rings");
            let end = if is_accepted { Fails("timed out") } else { Served };
            cases.push(case(format!("hello {key} {name}"), steps, end));
        }
    }
    for (key, right) in [
        ("kind", "text"),
        ("message", "text"),
        ("causes", "list"),
        ("known", "list"),
        ("stack", "text"),
        ("file", "text"),
        ("line", ""),
        ("column", ""),
        ("value", ""),
        ("keep", "bool"),
    ] {
        for (name, value) in wrong(right) {
            let said = error(&[("kind", text("interface")), (key, value)]);
            cases.push(case(format!("error {key} {name}"), called(vec![Send(said)]), Refused));
        }
    }
    for (key, right) in [
        ("pid", ""),
        ("exit", ""),
        ("signal", ""),
        ("reason", "text"),
        ("during", "text"),
        ("stderr", "text"),
        ("calls", ""),
        ("ran", ""),
        ("stack", "text"),
        ("timed_out", "bool"),
    ] {
        for (name, value) in wrong(right) {
            let said = frame(&[3.into(), map(&[(key, value)])]);
            // A call that has not begun is tried again, on another worker.
            let end = match (key, name) {
                ("exit" | "signal", "negative") | ("ran", "float") => Served,
                _ => Fails("a message is malformed"),
            };
            cases.push(case(format!("death {key} {name}"), called(vec![Send(said)]), end));
        }
    }
    for kind in 1..9 {
        for (name, value) in wrong("map") {
            let said = frame(&[kind.into(), value]);
            cases.push(case(
                format!("meta of kind {kind} {name}"),
                called(vec![Send(said)]),
                Refused,
            ));
        }
    }
    cases
}
