//! Fields of a client's messages with values of the wrong type.

use taskfork::client::Value;

use crate::case::Expected::{Refused, Served};
use crate::case::Step::Send;
use crate::case::{Case, case};
use crate::client_cases::greeted_with;
use crate::message::{PREAMBLE, client_hello, frame, list, map, text, wrong};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = peers();
    cases.extend(interfaces());
    for (key, right) in [
        ("versions", "list"),
        ("name", "text"),
        ("max_frame", "huge"),
        ("files", "huge"),
        ("lent", "huge"),
        ("client", ""),
        ("interfaces", ""),
        ("peer", ""),
        ("setup", "bool"),
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
        ("interface", "text"),
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

/// Clients that require interfaces which cannot be.
fn interfaces() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, interfaces: Vec<Value>, end| {
        let steps = greeted_with(&[("interfaces", Value::Array(interfaces))], Vec::new());
        cases.push(case(format!("interfaces {name}"), steps, end));
    };
    let method = |elements: &[Value]| map(&[("methods", list(&[list(elements)]))]);
    let (name, none) = (text("a"), list(&[]));
    add("none", Vec::new(), Served);
    add("64", vec![map(&[]); 64], Served);
    add("65", vec![map(&[]); 65], Refused);
    add("10000", vec![map(&[]); 10_000], Refused);
    for (key, right) in [("name", "text"), ("fingerprint", "huge"), ("methods", "")] {
        for (wrong, value) in wrong(right) {
            add(&format!("with {key} {wrong}"), vec![map(&[(key, value)])], Refused);
        }
    }
    let methods = |count| map(&[("methods", Value::Array(vec![Value::Nil; count]))]);
    add("with 1001 methods", vec![methods(1001)], Refused);
    add("with a method of 3", vec![method(&[name.clone(), none.clone(), name.clone()])], Refused);
    let whole = [name.clone(), none, name.clone(), Value::Nil, map(&[]), Value::Nil];
    add("with a method of 6", vec![method(&whole)], Served);
    for index in 0..3 {
        let mut wrong = whole.clone();
        wrong[index] = Value::Nil;
        add(&format!("with nil in place {index} of a method"), vec![method(&wrong)], Refused);
    }
    let parameters =
        |list: Vec<Value>| method(&[name.clone(), Value::Array(list), name.clone(), name.clone()]);
    let parameter = list(&[name.clone(), name.clone()]);
    add("with 64 parameters", vec![parameters(vec![parameter.clone(); 64])], Served);
    add("with 65 parameters", vec![parameters(vec![parameter; 65])], Refused);
    add(
        "with a parameter of 1",
        vec![parameters(vec![list(std::slice::from_ref(&name))])],
        Refused,
    );
    let deep = (0..1000).fold(Value::Nil, |inner, _| list(&[inner]));
    add("with an unknown key 1000 deep", vec![map(&[("later", deep)])], Served);
    cases
}

/// Gateways that lie about whom they relay.
fn peers() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, more: &[(&str, Value)], end| {
        let peer = map(&[&[("kind", text("tls"))], more].concat());
        let steps = greeted_with(&[("peer", peer)], Vec::new());
        cases.push(case(format!("peer {name}"), steps, end));
    };
    for (key, right) in [("kind", ""), ("names", "list"), ("name", "text"), ("address", "text")] {
        for (name, value) in wrong(right) {
            add(&format!("with {key} {name}"), &[(key, value)], Refused);
        }
    }
    let names = |count: usize, length: usize| {
        [("names", Value::Array((0..count).map(|_| text(&"n".repeat(length))).collect()))]
    };
    add("with 64 names", &names(64, 100), Served);
    add("with 65 names", &names(65, 1), Refused);
    add("with 10000 names", &names(10_000, 0), Refused);
    add("with a name of 256 bytes", &names(1, 256), Served);
    add("with a name of 257 bytes", &names(1, 257), Refused);
    add("with more names than a hello may have bytes", &names(64, 256), Refused);
    for key in ["name", "address"] {
        add(&format!("with a long {key}"), &[(key, text(&"x".repeat(256)))], Served);
        add(&format!("with a too long {key}"), &[(key, text(&"x".repeat(257)))], Refused);
    }
    add("with control characters", &[("address", text("\u{1b}[2J\0\u{202e}\n"))], Served);
    let deep = (0..1000).fold(Value::Nil, |inner, _| list(&[inner]));
    add("with an unknown key 1000 deep", &[("later", deep)], Served);
    let keys: Vec<String> = (0..256).map(|number| number.to_string()).collect();
    let many: Vec<_> = keys.iter().map(|key| (&**key, Value::Nil)).collect();
    add("with 257 keys", &many, Refused);
    add("with two kinds", &[("kind", text("nats"))], Served);
    cases
}
