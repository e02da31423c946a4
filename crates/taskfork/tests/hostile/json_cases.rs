//! Peers that speak the JSON protocol and do not keep to it.

use crate::case::Expected::{Answered, Fails, Harmless, Refused, Served};
use crate::case::Step::{
    Flood, ReceiveJson, Reset, Send, SendByteByByte, StopReading, StopSending,
};
use crate::case::{Case, Expected, Step, case};

fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

/// Values that are wrong or costly, and what stands for each in a name.
fn values() -> Vec<(String, Vec<u8>)> {
    let mut values: Vec<(String, Vec<u8>)> = vec![
        ("a number of a million digits".into(), "7".repeat(1_000_000).into()),
        ("a fraction of a million digits".into(), format!("0.{}", "7".repeat(1_000_000)).into()),
        ("1e400".into(), b"1e400".to_vec()),
        ("1e999999999999".into(), b"1e999999999999".to_vec()),
        ("minus 2^63 minus 1".into(), b"-9223372036854775809".to_vec()),
        ("NaN".into(), b"NaN".to_vec()),
        ("no UTF-8".into(), b"\"\xff\xfe\"".to_vec()),
        ("half a surrogate".into(), br#""\ud83d""#.to_vec()),
        ("two wrong surrogates".into(), br#""\udc00\udc00""#.to_vec()),
        ("a zero".into(), br#""\u0000""#.to_vec()),
        ("control characters".into(), b"\"\x1b[2J\x07\"".to_vec()),
        ("escaped control characters".into(), br#""\u001b[2J\u009b31m\u202e""#.to_vec()),
        ("an unknown escape".into(), br#""\q""#.to_vec()),
        ("a million nulls".into(), format!("[{}null]", "null,".repeat(999_999)).into()),
        ("a text of four megabytes".into(), format!("\"{}\"", "x".repeat(4 << 20)).into()),
        (
            "keys that are the same".into(),
            format!("{{{}\"k\":1}}", "\"k\":1,".repeat(100_000)).into(),
        ),
        ("a comma too many".into(), b"[1,]".to_vec()),
        ("the wrong bracket".into(), b"[1}".to_vec()),
    ];
    for levels in [100, 129, 520, 100_000] {
        values.push((format!("lists {levels} deep"), nested(levels).into()));
        let maps = format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        values.push((format!("maps {levels} deep"), maps.into()));
    }
    values
}

/// Why a client does not accept a message with this value; `None` if it does.
fn failure(name: &str) -> Option<&'static str> {
    match name {
        "NaN"
        | "no UTF-8"
        | "half a surrogate"
        | "two wrong surrogates"
        | "control characters"
        | "an unknown escape"
        | "a comma too many"
        | "the wrong bracket" => Some("it is not valid JSON"),
        _ if name.ends_with(" deep") && !name.contains(" 100 ") => {
            Some("it is nested deeper than 128 levels")
        }
        _ => None,
    }
}

/// Messages that are none of the protocol.
const WRONG: [&str; 14] = [
    "[]",
    "[1]",
    "[\"do\"]",
    "[\"do\",1]",
    "[\"do\",[]]",
    "[{},\"do\"]",
    "[null,{}]",
    "[\"\",{}]",
    "[\"xx\",{},1]",
    "[\"\\u001b[2J\",{}]",
    "{}",
    "[\"ok\",{},1,2]",
    "[[[[]]]]",
    "]]]]",
];

pub(crate) fn of_clients() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>, end: Expected| cases.push(case(name, steps, end));
    for (name, value) in values() {
        let said = [br#"["do",{},"echo","#, &value[..], b"]"].concat();
        add(&format!("argument {name}"), vec![Send(said), StopSending], Refused);
        let meta = [br#"["do",{"later":"#, &value[..], br#"},"nothing"]"#].concat();
        add(&format!("meta {name}"), vec![Send(meta), StopSending], Refused);
    }
    for (place, message) in WRONG.iter().enumerate() {
        add(
            &format!("message {place}"),
            vec![Send(message.as_bytes().to_vec()), StopSending],
            Refused,
        );
    }
    let call = r#"["do",{},"echo","value"]"#;
    for length in 1..call.len() {
        let said = call.as_bytes()[..length].to_vec();
        add(&format!("call of {length} bytes"), vec![Send(said), StopSending], Refused);
    }
    let call = || call.as_bytes().to_vec();
    add("blanks and nothing more", vec![Send(vec![b' '; 4000]), StopSending], Refused);
    add("flood of blanks", vec![Flood(vec![b' '; 64 << 10], 16 << 20), StopSending], Refused);
    add(
        "flood of blanks behind a call",
        vec![Send(call()), ReceiveJson, Flood(vec![b'\n'; 64 << 10], 16 << 20), StopSending],
        Refused,
    );
    add(
        "flood of ends of checkouts",
        vec![Send(call()), ReceiveJson, Flood(br#"["dn",{}]"#.repeat(5000), 1 << 20), StopSending],
        Refused,
    );
    add(
        "text that never ends",
        vec![Send(b"[\"".to_vec()), Flood(vec![b'x'; 64 << 10], 70 << 20)],
        Refused,
    );
    add("brackets that never end", vec![Flood(vec![b'['; 64 << 10], 1 << 20)], Refused);
    add(
        "two calls at once",
        vec![Send(call().repeat(2)), ReceiveJson, ReceiveJson, StopSending],
        Refused,
    );
    add("a call byte by byte", vec![SendByteByByte(call()), ReceiveJson, StopSending], Refused);
    add(
        "the other protocol behind a call",
        vec![Send(call()), ReceiveJson, Send(b"taskfork".to_vec())],
        Refused,
    );
    add("nothing read", vec![StopReading, Send(call())], Harmless);
    add("a reset", vec![Send(call()), Reset], Harmless);
    add("left during a call", vec![Send(br#"["do",{},"sleep",60000]"#.to_vec())], Harmless);
    add(
        "half a close during a call",
        vec![Send(br#"["do",{},"sleep",60000]"#.to_vec()), StopSending],
        Refused,
    );
    cases
}

pub(crate) fn of_servers() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, said: Vec<u8>, end: Expected| {
        cases.push(case(name, vec![ReceiveJson, Send(said)], end));
    };
    for (name, value) in values() {
        let end = failure(&name).map_or(Answered, Fails);
        add(&format!("result {name}"), [br#"["ok",{},"#, &value[..], b"]"].concat(), end);
        add(&format!("error {name}"), [br#"["er",{},"#, &value[..], b"]"].concat(), Refused);
        // A log with a number that JSON does not have is left out.
        let end = failure(&name).filter(|_| name != "NaN").map_or(Served, Fails);
        add(&format!("log {name}"), [br#"["ok",{"ld":"#, &value[..], b"},5]"].concat(), end);
    }
    for (place, message) in WRONG.iter().enumerate() {
        add(&format!("message {place}"), message.as_bytes().to_vec(), Refused);
    }
    add("two results", br#"["ok",{},5]["ok",{},6]"#.to_vec(), Served);
    add("the other protocol", b"taskfork".to_vec(), Refused);
    let answer = br#"["er",{},"no"]"#;
    for length in 1..answer.len() {
        let steps = vec![ReceiveJson, Send(answer[..length].to_vec()), StopSending];
        cases.push(case(format!("error of {length} bytes"), steps, Refused));
    }
    let mut add = |name: &str, steps: Vec<Step>, end| cases.push(case(name, steps, end));
    add("flood of blanks", vec![ReceiveJson, Flood(vec![b' '; 64 << 10], 16 << 20)], Refused);
    add(
        "flood of blanks, nothing read",
        vec![ReceiveJson, StopReading, Flood(vec![b' '; 64 << 10], 16 << 20)],
        Refused,
    );
    add(
        "flood of results",
        vec![ReceiveJson, Flood(br#"["ok",{},5]"#.repeat(5000), 16 << 20)],
        Served,
    );
    add(
        "brackets that never end",
        vec![ReceiveJson, Flood(vec![b'['; 64 << 10], 1 << 20)],
        Refused,
    );
    add("nothing", vec![ReceiveJson], Refused);
    add("a close", vec![ReceiveJson, StopSending], Refused);
    add("a reset", vec![ReceiveJson, Reset], Refused);
    cases
}
