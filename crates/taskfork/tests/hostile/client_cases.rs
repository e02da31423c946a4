//! Clients that do not keep to the protocol.

use taskfork::client::Value;

use crate::case::Expected::{Harmless, Refused, Served};
use crate::case::Step::{
    Flood, FloodUntilBlocked, Receive, ReceivePreamble, Reset, Send, SendByteByByte, StopReading,
    StopSending,
};
use crate::case::{Case, Step, case};
use crate::message::{
    PREAMBLE, call, client_hello, deep, encoded, frame, frame_ending, frame_meta, framed, list,
    many, map, text,
};

/// What a client has said and heard once it is greeted.
fn greeted(more: Vec<Step>) -> Vec<Step> {
    greeted_with(&[], more)
}

pub(crate) fn greeted_with(hello: &[(&str, Value)], more: Vec<Step>) -> Vec<Step> {
    let said = [PREAMBLE, &client_hello(hello)].concat();
    let mut steps = vec![Send(said), ReceivePreamble, Receive];
    steps.extend(more);
    steps
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = preambles();
    cases.extend(lengths());
    cases.extend(kinds());
    cases.extend(sizes());
    cases.extend(flows());
    cases
}

fn preambles() -> Vec<Case> {
    let plain = |name: &str, bytes: &[u8], end| {
        case(format!("preamble {name}"), vec![Send(bytes.to_vec()), StopSending], end)
    };
    let zeros = [0; 64];
    vec![
        plain("of nothing", b"", Refused),
        plain("of HTTP", b"GET / HTTP/1.1\r\n\r\n", Refused),
        plain("of SSH", b"SSH-2.0-OpenSSH\r\n", Refused),
        plain("of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Refused),
        plain("of zeros", &zeros, Refused),
        plain("in capitals", b"TASKFORK", Refused),
        plain("with one byte wrong", b"taskforx\0\0\0\0", Refused),
        plain("twice", b"taskforktaskfork", Refused),
        plain("of control characters", b"\x1b]0;title\x07\x1b[2J", Refused),
        case("preamble and nothing more", vec![Send(PREAMBLE.to_vec()), StopSending], Refused),
        case("connection that is reset at once", vec![Reset], Harmless),
        case("connection that is closed at once", vec![], Harmless),
    ]
}

fn lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, length) in [
        ("one over the limit", (64 << 20) + 1),
        ("of 2^31", 1 << 31),
        ("of 2^32 minus 1", u32::MAX),
    ] {
        let header = length.to_le_bytes().to_vec();
        let hello = [PREAMBLE, &header].concat();
        cases.push(case(format!("hello {name}"), vec![Send(hello)], Refused));
        cases.push(case(format!("message {name}"), greeted(vec![Send(header)]), Refused));
    }
    cases.push(case(
        "hello with nothing in it",
        vec![Send([PREAMBLE, &[0; 4]].concat()), StopSending],
        Refused,
    ));
    cases.push(case("messages with nothing in them", greeted(vec![Send(vec![0; 4000])]), Refused));
    cases.push(case("message of one byte", greeted(vec![Send(framed(&[0x90]))]), Refused));
    let short = [100, 0, 0, 0, 1, 2].to_vec();
    cases.push(case("message that stops and stays", greeted(vec![Send(short.clone())]), Refused));
    cases.push(case(
        "message that stops and ends",
        greeted(vec![Send(short), StopSending]),
        Refused,
    ));
    cases
}

fn kinds() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, frame: Vec<u8>, end| {
        cases.push(case(name, greeted(vec![Send(frame)]), end));
    };
    let none = || map(&[]);
    for kind in [9, 10, 77, 127, 255, u64::from(u32::MAX), u64::MAX] {
        add(&format!("kind {kind}"), frame(&[kind.into(), none()]), Refused);
    }
    add("kind below zero", frame(&[(-1).into(), none()]), Refused);
    add("kind that is a text", frame(&[text("call"), none()]), Refused);
    add("message that is no array", framed(&encoded(&none())), Refused);
    add("message that is an empty array", framed(&[0x90]), Refused);
    add("message of the byte that means nothing", framed(&[0xc1; 8]), Refused);
    add("hello again", client_hello(&[]), Refused);
    add("preamble again", PREAMBLE.to_vec(), Refused);
    add("call without arguments", frame(&[1.into(), none(), text("nothing")]), Refused);
    add(
        "call with too many fields",
        frame(&[1.into(), none(), text("a"), list(&[]), 1.into()]),
        Refused,
    );
    add(
        "call that has more behind it",
        framed(&[&call("nothing", &[])[4..], b"more"].concat()),
        Served,
    );
    add("answer from a client", frame(&[1.into(), none(), 5.into()]), Refused);
    add("end of a checkout with a field too many", frame(&[2.into(), none(), 1.into()]), Refused);
    add("end of a checkout before any", frame(&[2.into(), none()]), Served);
    add(
        "number of the waiting of 2^64 minus 1",
        frame(&[5.into(), none(), u64::MAX.into()]),
        Served,
    );
    add(
        "number of the waiting of 2^63 minus 1",
        frame(&[5.into(), none(), (u64::MAX >> 1).into()]),
        Served,
    );
    for number in [0, 1, 2, u64::MAX >> 1] {
        add(&format!("forgotten call {number}"), frame(&[4.into(), none(), number.into()]), Served);
    }
    for (call, credit) in [(0, 0), (1, u64::MAX), (9, 1)] {
        let said = frame(&[12.into(), none(), call.into(), credit.into()]);
        add(&format!("credit {credit} for call {call}"), said, Served);
    }
    add("credit below zero", frame(&[12.into(), none(), 1.into(), (-1).into()]), Refused);
    add("credit without a call", frame(&[12.into(), none(), 5.into()]), Refused);
    let said = frame(&[1.into(), map(&[("items", 1000.into())]), text("echo"), list(&[5.into()])]);
    add("call for items of a method without any", said, Served);
    let said = frame(&[1.into(), map(&[("input", true.into())]), text("echo"), list(&[5.into()])]);
    add("call with an input of a method without any", said, Served);
    let item =
        |call: Value| frame(&[11.into(), map(&[("cost", 300.into()), ("call", call)]), 5.into()]);
    for call in [0, 1, u64::MAX >> 1] {
        add(&format!("item of call {call} that has not begun"), item(call.into()), Refused);
        let said = frame(&[13.into(), none(), call.into()]);
        add(&format!("end of the input of call {call} that has not begun"), said, Refused);
    }
    add("item without a call", frame(&[11.into(), none(), 5.into()]), Refused);
    add("item with a field too few", frame(&[11.into(), none()]), Refused);
    add("end of an input below zero", frame(&[13.into(), none(), (-1).into()]), Refused);
    add("forgotten call 2^64 minus 1", frame(&[4.into(), none(), u64::MAX.into()]), Refused);
    let forgotten = (0..10_000).flat_map(|number: u64| frame(&[4.into(), none(), number.into()]));
    add("forgotten calls by the thousand", forgotten.collect(), Served);
    for timeout in [0, 1, u64::MAX >> 1, u64::MAX] {
        let meta = map(&[("timeout", timeout.into())]);
        let said = frame(&[1.into(), meta, text("nothing"), list(&[])]);
        add(&format!("timeout of {timeout}"), said, Served);
        let meta = map(&[("timeout", 1_000_000.into()), ("grace", timeout.into())]);
        let said = frame(&[1.into(), meta, text("nothing"), list(&[])]);
        add(&format!("grace of {timeout}"), said, Served);
    }
    cases.push(case(
        "call before the hello",
        vec![Send([PREAMBLE, &call("nothing", &[])].concat())],
        Refused,
    ));
    cases.push(case(
        "news before the hello",
        vec![Send([PREAMBLE, &frame(&[5.into(), none(), 1.into()])].concat())],
        Refused,
    ));
    let other = client_hello(&[("versions", list(&[99.into()]))]);
    cases.push(case("hello of no known version", vec![Send([PREAMBLE, &other].concat())], Refused));
    let none_at_all = frame(&[0.into(), map(&[("versions", list(&[])), ("name", text("x"))])]);
    cases.push(case("hello of no version", vec![Send([PREAMBLE, &none_at_all].concat())], Refused));
    let empty = frame(&[0.into(), map(&[])]);
    cases.push(case("hello that says nothing", vec![Send([PREAMBLE, &empty].concat())], Refused));
    for (name, number) in [("nothing", 0), ("a byte", 1), ("as much as can be said", u64::MAX >> 1)]
    {
        let steps = greeted_with(&[("max_frame", number.into())], vec![Send(call("nothing", &[]))]);
        let end = if number < 256 { Refused } else { Served };
        cases.push(case(format!("client that takes {name}"), steps, end));
    }
    cases
}

fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>, end| cases.push(case(name, steps, end));
    let argument = |value: &[u8]| frame_ending(1, &[text("echo")], &[&[0x91][..], value].concat());
    for levels in [128, 129, 100_000] {
        add(
            &format!("argument {levels} deep"),
            greeted(vec![Send(argument(&deep(levels))), Receive]),
            Served,
        );
        let meta = frame_meta(2, "later", &deep(levels));
        add(&format!("meta {levels} deep"), greeted(vec![Send(meta)]), Served);
    }
    let maps = [[0x81, 0xc0].repeat(100_000), vec![0xc0]].concat();
    add("argument of maps 100000 deep", greeted(vec![Send(argument(&maps)), Receive]), Served);
    let nils = many(1_000_000, &[0xc0]);
    add("argument of a million nils", greeted(vec![Send(argument(&nils)), Receive]), Served);
    let lists = many(300_000, &[0x90]);
    add("argument of empty lists", greeted(vec![Send(argument(&lists)), Receive]), Served);
    add("meta of a million nils", greeted(vec![Send(frame_meta(2, "later", &nils))]), Served);
    let keys: Vec<u8> = (0..100_000).flat_map(|_| [0xa1, b'k', 0xc0]).collect();
    let mut meta = vec![0x92, 2, 0xdf];
    meta.extend(100_000_u32.to_be_bytes());
    meta.extend(keys);
    add("meta of 100000 keys", greeted(vec![Send(framed(&meta))]), Refused);
    for (name, bytes) in [
        ("list", [0xdd, 0xff, 0xff, 0xff, 0xff]),
        ("map", [0xdf, 0xff, 0xff, 0xff, 0xff]),
        ("text", [0xdb, 0xff, 0xff, 0xff, 0xff]),
        ("binary data", [0xc6, 0xff, 0xff, 0xff, 0xff]),
        ("an extension", [0xc9, 0xff, 0xff, 0xff, 0xff]),
    ] {
        add(
            &format!("argument that is {name} of 2^32 minus 1"),
            greeted(vec![Send(argument(&bytes))]),
            Served,
        );
    }
    let versions = many(1_000_000, &[1]);
    let hello = [PREAMBLE, &frame_meta(0, "versions", &versions)].concat();
    add("hello with a million versions", vec![Send(hello), StopSending], Refused);
    let name = "n".repeat(1 << 20);
    let hello = [PREAMBLE, &client_hello(&[("name", text(&name))])].concat();
    add("name of a megabyte", vec![Send(hello), StopSending], Refused);
    for (place, name) in
        ["\u{1b}[2J\u{1b}]0;x\u{7}", "a\0b", "\u{202e}evil\u{202c}", "\r\n\n\n"].iter().enumerate()
    {
        let steps = greeted_with(&[("name", text(name))], vec![]);
        add(&format!("name with control characters {place}"), steps, Served);
        add(
            &format!("method with control characters {place}"),
            greeted(vec![Send(call(name, &[])), Receive]),
            Served,
        );
        let meta = map(&[("traceparent", text(name)), ("tracestate", text(name))]);
        let said = frame(&[1.into(), meta, text("nothing"), list(&[])]);
        add(
            &format!("trace with control characters {place}"),
            greeted(vec![Send(said), Receive]),
            Served,
        );
    }
    let method = "m".repeat(4 << 20);
    add("method of four megabytes", greeted(vec![Send(call(&method, &[])), Receive]), Served);
    let invalid = [&[0x94, 1, 0x80, 0xa2, 0xff, 0xfe, 0x90][..]].concat();
    add("method that is no UTF-8", greeted(vec![Send(framed(&invalid))]), Refused);
    let invalid = framed(&[0x92, 2, 0x81, 0xa2, 0xff, 0xfe, 0xc0]);
    add("meta key that is no UTF-8", greeted(vec![Send(invalid)]), Refused);
    add(
        "argument that is no UTF-8",
        greeted(vec![Send(argument(&[0xa2, 0xff, 0xfe])), Receive]),
        Served,
    );
    cases
}

fn flows() -> Vec<Case> {
    let none = || map(&[]);
    let mut cases = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>, end| cases.push(case(name, steps, end));
    let hello = [PREAMBLE, &client_hello(&[])].concat();
    add(
        "hello byte by byte",
        vec![SendByteByByte(hello.clone()), ReceivePreamble, Receive],
        Served,
    );
    add("call byte by byte", greeted(vec![SendByteByByte(call("nothing", &[])), Receive]), Served);
    let sleep = || call("sleep", &[60_000.into()]);
    add("half a close at once", vec![StopSending], Refused);
    add("half a close after the hello", greeted(vec![StopSending]), Refused);
    add("half a close during a call", greeted(vec![Send(sleep()), StopSending]), Refused);
    add(
        "nothing read after the hello",
        greeted(vec![StopReading, Send(call("nothing", &[]))]),
        Refused,
    );
    add("nothing read during a call", greeted(vec![Send(sleep()), StopReading]), Harmless);
    add("left during a call", greeted(vec![Send(sleep())]), Harmless);
    add("reset during a call", greeted(vec![Send(sleep()), Reset]), Harmless);
    add("reset after the preamble", vec![Send(PREAMBLE.to_vec()), Reset], Harmless);
    add("reset after the hello", greeted(vec![Reset]), Harmless);
    add("flood of empty messages", greeted(vec![Flood(vec![0; 64 << 10], 8 << 20)]), Harmless);
    let lending = frame(&[7.into(), none()]).repeat(4000);
    add("flood of nothing that is lent", greeted(vec![Flood(lending, 4 << 20)]), Harmless);
    let news = frame(&[5.into(), none(), 3.into()]).repeat(4000);
    add("flood of news", greeted(vec![Flood(news.clone(), news.len() * 20)]), Served);
    let done = frame(&[2.into(), none()]).repeat(4000);
    add("flood of ends of checkouts", greeted(vec![Flood(done.clone(), done.len() * 5)]), Served);
    let noise = frame(&[5.into(), none(), 3.into()]).repeat(10_000);
    add("noise during a call", greeted(vec![Send(sleep()), Flood(noise, 4 << 20)]), Harmless);
    let ahead = frame(&[3.into(), none(), text("nothing"), list(&[])]).repeat(5000);
    let flood = FloodUntilBlocked(ahead, 1 << 20);
    add("calls ahead without end, no answer read", greeted(vec![flood]), Harmless);
    let calls = call("nothing", &[]).repeat(2000);
    let flood = FloodUntilBlocked(calls.clone(), calls.len());
    add("calls at once without end, no answer read", greeted(vec![flood]), Harmless);
    cases
}

/// A session that ends after each of its bytes.
pub(crate) fn cut_short() -> Vec<Case> {
    let hello = client_hello(&[("files", 4.into()), ("lent", 1_000_000.into())]);
    let session = [PREAMBLE, &hello, &call("echo", &[text("value")])].concat();
    let cut = |length: usize| {
        let steps = vec![Send(session[..length].to_vec()), StopSending];
        case(format!("session of {length} bytes"), steps, Refused)
    };
    (1..session.len()).map(cut).collect()
}
