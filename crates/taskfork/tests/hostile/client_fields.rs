//! Fields of a client's messages with values of the wrong type.

use crate::case::Expected::Refused;
use crate::case::Step::Send;
use crate::case::{Case, case};
use crate::client_cases::greeted_with;
use crate::message::{PREAMBLE, client_hello, frame, list, map, text, wrong};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (key, right) in [
        ("versions", "list"),
        ("name", "text"),
        ("max_frame", "huge"),
        ("files", "huge"),
        ("lent", "huge"),
        ("client", ""),
    ] {
        for (name, value) in wrong(right) {
            let hello = [PREAMBLE, &client_hello(&[(key, value)])].concat();
            cases.push(case(format!("hello {key} {name}"), vec![Send(hello)], Refused));
        }
    }
    for (key, right) in [
        ("log", ""),
        ("trace", ""),
        ("timeout", "huge"),
        ("grace", "huge"),
        ("traceparent", "text"),
        ("tracestate", "text"),
    ] {
        for (name, value) in wrong(right) {
            let message = [1.into(), map(&[(key, value)]), text("nothing"), list(&[])];
            let steps = greeted_with(&[], vec![Send(frame(&message))]);
            cases.push(case(format!("call {key} {name}"), steps, Refused));
        }
    }
    for (name, value) in wrong("text nil") {
        let message = [1.into(), map(&[]), value, list(&[])];
        let steps = greeted_with(&[], vec![Send(frame(&message))]);
        cases.push(case(format!("call method {name}"), steps, Refused));
    }
    for (name, value) in wrong("list") {
        let message = [1.into(), map(&[]), text("nothing"), value];
        let steps = greeted_with(&[], vec![Send(frame(&message))]);
        cases.push(case(format!("call arguments {name}"), steps, Refused));
    }
    for (kind, what) in [(4, "forgotten call"), (5, "waiting"), (6, "descriptors")] {
        for (name, value) in wrong("huge") {
            let message = [kind.into(), map(&[]), value];
            let steps = greeted_with(&[], vec![Send(frame(&message))]);
            cases.push(case(format!("{what} {name}"), steps, Refused));
        }
    }
    for key in ["new", "uses", "free", "gone", "unwanted", "idle"] {
        for (name, value) in wrong("bool") {
            let message = [7.into(), map(&[(key, value)])];
            let hello = [("files", 4.into()), ("lent", 1_000_000.into())];
            let steps = greeted_with(&hello, vec![Send(frame(&message))]);
            cases.push(case(format!("lending {key} {name}"), steps, Refused));
        }
    }
    for kind in 1..9 {
        for (name, value) in wrong("map") {
            let message = [kind.into(), value];
            let steps = greeted_with(&[], vec![Send(frame(&message))]);
            cases.push(case(format!("meta of kind {kind} {name}"), steps, Refused));
        }
    }
    cases
}
