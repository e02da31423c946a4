//! Servers and workers that do not keep to the protocol.

use taskfork::client::Value;

use crate::case::Expected::{Answered, Fails, Harmless, Refused, Served};
use crate::case::Kind::{DevZero, Folder, Memory, Socket};
use crate::case::Step::{
    Flood, Receive, ReceivePreamble, Reset, Send, SendByteByByte, SendWith, StopReading,
    StopSending,
};
use crate::case::{BLOB_SEALS, BUFFER_SEALS, Case, RING_SEALS, Step, case};
use crate::message::{
    PREAMBLE, announce, deep, error, frame, frame_meta, framed, list, many, map, result,
    result_ending, result_of, text, worker_hello, wrong,
};

/// What a worker has said and heard up to the first call.
pub(crate) fn called(more: Vec<Step>) -> Vec<Step> {
    called_with(&[], more)
}

fn called_with(hello: &[(&str, Value)], more: Vec<Step>) -> Vec<Step> {
    let said = [PREAMBLE, &worker_hello(hello)].concat();
    let mut steps = vec![ReceivePreamble, Receive, Send(said), Receive];
    steps.extend(more);
    steps
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = greetings();
    cases.extend(answers());
    cases.extend(errors());
    cases.extend(deaths());
    cases.extend(descriptors());
    cases.extend(flows());
    cases
}

fn greetings() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>, end| cases.push(case(name, steps, end));
    for (name, bytes) in [
        ("of SSH", &b"SSH-2.0-OpenSSH\r\n"[..]),
        ("of HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("of zeros", &[0; 64]),
        ("of control characters", b"\x1b]0;title\x07\x1b[2J"),
        ("with one byte wrong", b"taskforx"),
    ] {
        add(&format!("preamble {name}"), vec![Send(bytes.to_vec())], Served);
    }
    add("nothing but a close", vec![StopSending], Served);
    add("nothing at all", vec![ReceivePreamble, Receive], Served);
    add("reset at once", vec![Reset], Served);
    add("reset after the hello was heard", vec![ReceivePreamble, Receive, Reset], Served);
    let hello = |meta: &[(&str, Value)]| {
        vec![Send([PREAMBLE, &frame(&[0.into(), map(meta)])].concat()), Receive]
    };
    add("hello that says nothing", hello(&[]), Served);
    add("hello of another version", hello(&[("version", 99.into()), ("pid", 1.into())]), Served);
    let known = [("version", Value::from(1)), ("pid", 4_000_000.into())];
    for (key, value) in [
        ("pid", 0.into()),
        ("pid", 1.into()),
        ("pid", u32::MAX.into()),
        ("worker", (u64::MAX >> 1).into()),
        ("max_frame", 0.into()),
        ("max_frame", 1.into()),
        ("max_frame", (u64::MAX >> 1).into()),
        ("ahead", (u64::MAX >> 1).into()),
        ("files", (u64::MAX >> 1).into()),
        ("lent", (u64::MAX >> 1).into()),
        ("rings", true.into()),
        ("alarm", true.into()),
        ("server", text("\u{1b}[2J\u{202e}\0")),
        ("server", text(&"s".repeat(1 << 20))),
    ] {
        let name = format!("hello with {key} {:.20}", value.to_string().escape_debug().to_string());
        let said = [PREAMBLE, &frame(&[0.into(), map(&[&known[..], &[(key, value)]].concat())])];
        let steps =
            vec![ReceivePreamble, Receive, Send(said.concat()), Receive, Send(result(5.into()))];
        add(&name, steps, Served);
    }
    let queued = frame(&[9.into(), map(&[("reason", text("all busy"))])]);
    add(
        "two notices that no worker is free",
        vec![Send([PREAMBLE, &queued.repeat(2)].concat()), Receive],
        Served,
    );
    add(
        "notices without end that no worker is free",
        vec![Send(PREAMBLE.to_vec()), Flood(queued.repeat(1000), 1 << 30)],
        Served,
    );
    let (set_up, in_setup) = (frame(&[14.into(), map(&[])]), [("setup", true.into())]);
    for (name, hello, more, end) in [
        ("setup that is over unannounced", &[][..], set_up.clone(), "which was not due"),
        ("setup that is over twice", &in_setup, set_up.repeat(2), "which was not due"),
        ("answer before setup is over", &in_setup, result(5.into()), "said that its setup is over"),
        ("setup that never ends", &in_setup, Vec::new(), "while its worker ran `setup`"),
    ] {
        add(name, called_with(hello, vec![Send(more)]), Fails(end));
    }
    add("end in setup", called_with(&in_setup, vec![StopSending]), Served);
    add(
        "answer behind setup",
        called_with(&in_setup, vec![Send(set_up), Send(result(5.into()))]),
        Served,
    );
    add("hello twice", called(vec![Send(worker_hello(&[]))]), Fails("sent a second hello"));
    add(
        "notice behind the hello that no worker is free",
        called(vec![Send(queued)]),
        Fails("after one has greeted"),
    );
    add(
        "hello of 2^32 minus 1 bytes",
        vec![Send([PREAMBLE, &u32::MAX.to_le_bytes()].concat())],
        Served,
    );
    let mut long = vec![0x92, 0, 0x81, 0xa5];
    long.extend(b"later");
    long.extend(many(1_000_000, &[0xc0]));
    add("hello of a million nils", vec![Send([PREAMBLE, &framed(&long)].concat())], Served);
    for kind in ["busy", "version", "setup", "interface", "\u{1b}[31m"] {
        let why = error(&[("kind", text(kind)), ("message", text("\u{1b}[2J"))]);
        let name = format!("refusal {}", kind.escape_debug());
        add(&name, vec![Send([PREAMBLE, &why].concat()), StopSending], Served);
    }
    add("answer before the hello", vec![Send([PREAMBLE, &result(5.into())].concat())], Served);
    add(
        "hello byte by byte",
        {
            let hello = [PREAMBLE, &worker_hello(&[])].concat();
            vec![ReceivePreamble, Receive, SendByteByByte(hello), Receive, Send(result(5.into()))]
        },
        Served,
    );
    cases
}

fn answers() -> Vec<Case> {
    let none = || map(&[]);
    let mut cases = Vec::new();
    let mut add = |name: &str, said: Vec<u8>, end| {
        cases.push(case(name, called(vec![Send(said)]), end));
    };
    add("answer", result(5.into()), Served);
    add("answer behind empty messages", [&[0; 4000][..], &result(5.into())].concat(), Harmless);
    for kind in [77, 127, u64::from(u32::MAX), u64::MAX] {
        add(&format!("kind {kind}"), frame(&[kind.into(), none()]), Refused);
    }
    add("kind below zero", frame(&[(-1).into(), none()]), Refused);
    add("message that is an empty array", framed(&[0x90]), Refused);
    add("message that is no array", framed(&[0x80]), Refused);
    add("message of the byte that means nothing", framed(&[0xc1; 8]), Refused);
    add("answer without a value", result_ending(&[]), Refused);
    add("answer that has more behind it", result_ending(&[5, 6, 7]), Served);
    add("answer without a number", frame(&[1.into(), none(), 5.into()]), Refused);
    for number in [0, 2, u64::MAX] {
        add(&format!("answer of number {number}"), result_of(number, 5.into()), Refused);
    }
    for (name, number) in wrong("") {
        let said = frame(&[1.into(), map(&[("call", number)]), 5.into()]);
        add(&format!("answer of number {name}"), said, Refused);
    }
    add("answer with a field too many", framed(&[0x94, 1, 0x80, 5, 6]), Refused);
    add("answer of 2^32 minus 1 bytes", u32::MAX.to_le_bytes().to_vec(), Refused);
    add("answer over the limit", ((64 << 20) + 1_u32).to_le_bytes().to_vec(), Refused);
    add(
        "skipped and not sent ahead",
        frame(&[5.into(), none()]),
        Fails("skipped a call that was not cancelled"),
    );
    let item = frame(&[11.into(), map(&[("cost", 300.into()), ("call", 1.into())]), 5.into()]);
    add("item that nobody reads", item.clone(), Fails("an item that no call asked for"));
    add("item behind the answer", [result(5.into()), item].concat(), Served);
    let credit = frame(&[12.into(), none(), 1.into(), 1000.into()]);
    add("credit for no input", credit.clone(), Fails("an input that no call has"));
    add("credit behind the answer", [result(5.into()), credit].concat(), Served);
    add("credit with a field too few", frame(&[12.into(), none(), 1.into()]), Refused);
    add("item with a field too few", frame(&[11.into(), none()]), Refused);
    for (name, progress) in wrong("") {
        let said = frame(&[4.into(), map(&[("progress", progress)])]);
        add(&format!("progress {name}"), [said, result(5.into())].concat(), Served);
    }
    add("two answers", [result(5.into()), result(6.into())].concat(), Served);
    add("a thousand answers", result(5.into()).repeat(1000), Served);
    for levels in [120, 129, 100_000] {
        let end = if levels == 120 { Answered } else { Fails("nested deeper than 128 levels") };
        add(&format!("answer {levels} deep"), result_ending(&deep(levels)), end);
        // The client skips it, and waits for the answer.
        let meta = frame_meta(4, "later", &deep(levels));
        add(&format!("meta {levels} deep"), meta, Fails("timed out"));
        add(
            &format!("log {levels} deep"),
            [frame_meta(4, "ld", &deep(levels)), result(5.into())].concat(),
            Served,
        );
    }
    add(
        "answer of maps 100000 deep",
        result_ending(&[[0x81, 0xc0].repeat(100_000), vec![0xc0]].concat()),
        Refused,
    );
    add("answer of a million nils", result_ending(&many(1_000_000, &[0xc0])), Answered);
    for (name, bytes) in [
        ("list", [0xdd, 0xff, 0xff, 0xff, 0xff]),
        ("map", [0xdf, 0xff, 0xff, 0xff, 0xff]),
        ("text", [0xdb, 0xff, 0xff, 0xff, 0xff]),
        ("bytes", [0xc6, 0xff, 0xff, 0xff, 0xff]),
        ("extension", [0xc9, 0xff, 0xff, 0xff, 0xff]),
    ] {
        add(&format!("answer that is a {name} of 2^32 minus 1"), result_ending(&bytes), Refused);
    }
    add(
        "answer of control characters",
        result(text("\u{1b}[2J\u{1b}]0;x\u{7}\u{202e}\0\u{9b}1m")),
        Answered,
    );
    add("answer that is no UTF-8", result_ending(&[0xa2, 0xff, 0xfe]), Answered);
    for (name, log) in [
        ("nothing", vec![0xc0]),
        ("text", vec![0xa1, b'x']),
        ("a million nils", many(1_000_000, &[0xc0])),
        ("a long list", many(u32::from(u16::MAX), &[0x90])),
    ] {
        add(
            &format!("log of {name}"),
            [frame_meta(4, "ld", &log), result(5.into())].concat(),
            Served,
        );
        add(
            &format!("trace of {name}"),
            [frame_meta(4, "trace", &log), result(5.into())].concat(),
            Served,
        );
    }
    // A span that is entered a million times, and pieces after it.
    let site =
        [&[0x93, 0, 1][..], &[0x82, 0xa4], b"span", &[0xc3, 0xa4], b"name", &[0xa1, b's']].concat();
    let begins = vec![0x96, 1, 1, 1, 0, 1, 0x80];
    let enters = [0x93, 4, 1, 1].repeat(1_000_000);
    let mut records = vec![0xdd];
    records.extend(1_000_002_u32.to_be_bytes());
    records.extend([site, begins, enters].concat());
    let piece = frame_meta(4, "trace", &[0x91, 0x93, 5, 1, 1]);
    let said = [frame_meta(4, "trace", &records), piece.repeat(200), result(5.into())].concat();
    add("trace of a million entries and 200 pieces", said, Served);
    cases
}

fn errors() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add =
        |name: &str, said: Vec<u8>| cases.push(case(name, called(vec![Send(said)]), Refused));
    let with_list = |kind: &str, key: &str, items: Vec<u8>| {
        let mut body = b"\x93\x02\x81\xa4call\x01\x83".to_vec();
        for text in ["kind", kind, "message", "m", key] {
            body.push(0xa0 | text.len() as u8);
            body.extend(text.as_bytes());
        }
        body.extend(items);
        framed(&body)
    };
    for count in [65, 1000, 100_000, 1_000_000] {
        for kind in ["interface", "setup", "method"] {
            add(
                &format!("{count} causes of kind {kind}"),
                with_list(kind, "causes", many(count, &[0xa0])),
            );
            add(
                &format!("{count} known of kind {kind}"),
                with_list(kind, "known", many(count, &[0xa1, b'k'])),
            );
        }
    }
    let claims = vec![0xdd, 0xff, 0xff, 0xff, 0xff];
    add("causes that are only claimed", with_list("interface", "causes", claims.clone()));
    add("known that are only claimed", with_list("method", "known", claims));
    add("value 100000 deep", with_list("interface", "value", deep(100_000)));
    add("value of a million nils", with_list("interface", "value", many(1_000_000, &[0xc0])));
    for kind in [
        "",
        "interface",
        "panic",
        "result",
        "method",
        "arguments",
        "setup",
        "version",
        "busy",
        "unknown",
        "\u{1b}[2J",
    ] {
        let nasty = text("\u{1b}]0;x\u{7}\u{1b}[2J\0\r\u{202e}\u{9b}31m");
        let said = error(&[
            ("kind", text(kind)),
            ("message", nasty.clone()),
            ("causes", list(&[nasty.clone(), nasty.clone()])),
            ("known", list(std::slice::from_ref(&nasty))),
            ("stack", nasty.clone()),
            ("file", nasty),
            ("line", u32::MAX.into()),
            ("column", 0.into()),
        ]);
        add(&format!("control characters in kind {}", kind.escape_debug()), said);
    }
    add("error that says nothing", error(&[]));
    let long = "x".repeat(50 << 20);
    add("message of 50 MB", error(&[("kind", text("interface")), ("message", text(&long))]));
    add("stack of 50 MB", error(&[("kind", text("panic")), ("stack", text(&long))]));
    cases
}

fn deaths() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add_with = |name: &str, said: Vec<u8>, end| {
        cases.push(case(name, called(vec![Send(said), StopSending]), end));
    };
    let death = |meta: &[(&str, Value)]| frame(&[3.into(), map(meta)]);
    let pid = |pid: u64| ("pid", Value::from(pid));
    for calls in [0, 1, 2, u64::MAX >> 1] {
        let end = if calls == 0 { Served } else { Fails("closed its connection during a call") };
        add_with(
            &format!("death after {calls} calls"),
            death(&[pid(7), ("calls", calls.into()), ("during", text("call"))]),
            end,
        );
    }
    // A call that has not begun is tried again, on another worker.
    let mut add = |name: &str, said: Vec<u8>| add_with(name, said, Served);
    add("death that says nothing", death(&[]));
    for number in [0, 1, u64::from(u32::MAX)] {
        add(&format!("death of process {number}"), death(&[pid(number), ("signal", 9.into())]));
    }
    for signal in [i64::from(i32::MIN), -1, 0, 64, 65, 1000, i64::from(i32::MAX)] {
        add(&format!("death by signal {signal}"), death(&[pid(7), ("signal", signal.into())]));
        add(&format!("death with status {signal}"), death(&[pid(7), ("exit", signal.into())]));
    }
    add("death told twice", death(&[pid(7), ("exit", 1.into())]).repeat(2));
    add("death by both", death(&[pid(7), ("exit", 1.into()), ("signal", 9.into())]));
    for ran in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e308, 0.0] {
        add(
            &format!("death after {ran:e} seconds"),
            death(&[pid(7), ("ran", ran.into()), ("timed_out", true.into())]),
        );
        add(
            &format!("hung for {ran:e} seconds"),
            death(&[pid(7), ("ran", ran.into()), ("stack", text("main"))]),
        );
    }
    for during in ["", "setup", "idle", "call", "checkout_done", "\u{1b}[2J"] {
        add(
            &format!("death during {}", during.escape_debug()),
            death(&[pid(7), ("during", text(during))]),
        );
    }
    let nasty = text("\u{1b}]0;x\u{7}\u{1b}[2J\0\r\u{202e}\u{9b}31m");
    add(
        "death in control characters",
        death(&[pid(7), ("reason", nasty.clone()), ("stderr", nasty.clone()), ("stack", nasty)]),
    );
    let long = text(&"x".repeat(10 << 20));
    add(
        "death of 30 MB",
        death(&[pid(7), ("reason", long.clone()), ("stderr", long.clone()), ("stack", long)]),
    );
    cases.push(case(
        "death and an answer",
        called(vec![Send([death(&[pid(7)]), result(5.into())].concat())]),
        Served,
    ));
    cases.push(case(
        "answer and a death",
        called(vec![Send([result(5.into()), death(&[pid(7)])].concat()), StopSending]),
        Served,
    ));
    let hello = [PREAMBLE, &death(&[pid(7), ("during", text("setup"))])].concat();
    cases.push(case("death in place of a hello", vec![Send(hello), StopSending], Served));
    cases
}

fn descriptors() -> Vec<Case> {
    let mut cases = Vec::new();
    let hello = [("files", Value::from(16)), ("lent", (64 << 20).into()), ("rings", true.into())];
    let mut add = |name: &str, more: Vec<Step>, end| {
        cases.push(case(name, called_with(&hello, more), end));
    };
    let reference = |kind: i8| Value::Ext(kind, vec![0; 4]);
    let with = |count, said: Vec<u8>| [announce(count), said].concat();
    for (name, kind) in [
        ("a socket", Socket),
        ("/dev/zero", DevZero),
        ("a folder", Folder),
        ("memory that is not sealed", Memory(4096, rustix::fs::SealFlags::empty())),
        ("memory that may be written to", Memory(4096, RING_SEALS)),
        ("memory of no bytes", Memory(0, BLOB_SEALS)),
        ("sparse memory of 400 MiB", Memory(400 << 20, BLOB_SEALS)),
        ("sparse memory of 1 TiB", Memory(1 << 40, BLOB_SEALS)),
    ] {
        let end = match kind {
            Memory(0, BLOB_SEALS) => Answered,
            Memory(_, BLOB_SEALS) => Fails("and the limit is 268435456"),
            Memory(..) => Fails("it is not sealed against changes"),
            Socket | DevZero | Folder => Fails("it is no memory"),
        };
        add(
            &format!("bytes that are {name}"),
            vec![SendWith(with(1, result(reference(1))), vec![kind])],
            end,
        );
        add(
            &format!("file that is {name}"),
            vec![SendWith(with(1, result(reference(2))), vec![kind])],
            Answered,
        );
        let lends = frame(&[
            7.into(),
            map(&[
                ("new", list(&[1.into()])),
                ("uses", list(&[list(&[false.into(), 1.into(), 64.into()])])),
            ]),
        ]);
        add(
            &format!("lent memory that is {name}"),
            vec![SendWith([lends, result(reference(3))].concat(), vec![kind])],
            Refused,
        );
    }
    let good = Memory(1 << 20, BUFFER_SEALS);
    let uses = |whose: bool, id: u64, length: u64| {
        frame(&[
            7.into(),
            map(&[
                ("new", list(&[1.into()])),
                ("uses", list(&[list(&[whose.into(), id.into(), length.into()])])),
            ]),
        ])
    };
    add(
        "use of an unknown number",
        vec![SendWith([uses(false, 9, 1), result(reference(3))].concat(), vec![good])],
        Refused,
    );
    add(
        "use of the client's that there is not",
        vec![SendWith([uses(true, 1, 1), result(reference(3))].concat(), vec![good])],
        Refused,
    );
    add(
        "use that is too long",
        vec![SendWith([uses(false, 1, u64::MAX >> 1), result(reference(3))].concat(), vec![good])],
        Refused,
    );
    for key in ["new", "uses", "free", "gone", "unwanted"] {
        add(
            &format!("a million of {key}"),
            vec![Send(frame_meta(7, key, &many(1_000_000, &[0])))],
            Fails("has 1000000 items, and the limit is 1024"),
        );
    }
    add("descriptor that nothing tells of", vec![SendWith(result(5.into()), vec![Socket])], Served);
    add("announced and not there", vec![Send(with(1, result(reference(2)))), StopSending], Refused);
    for count in [u64::from(u32::MAX), u64::MAX >> 1] {
        add(
            &format!("{count} announced and none there"),
            vec![Send(with(count, result(5.into()))), StopSending],
            Refused,
        );
    }
    for count in [65, 1600] {
        let more = vec![SendWith(vec![0; 4000], vec![DevZero; count])];
        add(&format!("{count} that nothing tells of"), more, Fails("protocol broken"));
    }
    add(
        "rings that nobody offered",
        vec![Send(frame(&[8.into(), map(&[])]))],
        Fails("accepted rings that were not offered"),
    );
    let says = |key: &str, value: Value| {
        [
            frame(&[7.into(), map(&[("agreed", 1000.into())])]),
            frame(&[7.into(), map(&[(key, value)])]),
        ]
        .concat()
    };
    for (key, value) in [
        ("free", list(&[list(&[7.into(), 1.into()])])),
        ("gone", list(&[7.into()])),
        ("unwanted", list(&[7.into()])),
    ] {
        let end = Fails("there is no memory of the number 7");
        add(&format!("{key} memory of an unknown number"), vec![Send(says(key, value))], end);
    }
    add("17 files announced", vec![Send(with(17, result(5.into())))], Fails("announced 17 files"));
    add(
        "files announced twice",
        vec![Send([announce(1), announce(1)].concat())],
        Fails("but no answer followed"),
    );
    add(
        "files announced in front of notes",
        vec![Send(with(1, frame(&[4.into(), map(&[])])))],
        Fails("but no answer followed"),
    );
    add(
        "rings that the worker offers",
        vec![SendWith(with(1, frame(&[8.into(), map(&[])])), vec![Memory(33_152, RING_SEALS)])],
        Refused,
    );
    for count in [65, 1600] {
        let hello = [PREAMBLE, &worker_hello(&[])].concat();
        let steps = vec![ReceivePreamble, Receive, SendWith(hello, vec![DevZero; count])];
        cases.push(case(format!("{count} with the hello"), steps, Harmless));
    }
    cases
}

fn flows() -> Vec<Case> {
    let none = || map(&[]);
    let mut cases = Vec::new();
    let mut add = |name: &str, steps: Vec<Step>, end| cases.push(case(name, steps, end));
    add("nothing for an answer", called(vec![]), Refused);
    add("half a close for an answer", called(vec![StopSending]), Refused);
    add("nothing read any more", called(vec![StopReading]), Refused);
    add("reset for an answer", called(vec![Reset]), Refused);
    add("answer byte by byte", called(vec![SendByteByByte(result(5.into()))]), Served);
    let notes = frame(&[4.into(), none()]);
    let log = frame_meta(4, "ld", &[0x81, 0xa5, b's', b't', b'a', b'r', b't', 1]);
    for (name, said, end) in [
        ("empty messages", vec![0; 4], Fails("protocol broken")),
        ("nothing that is lent", frame(&[7.into(), none()]), Fails("has not agreed to share any")),
        ("notes", notes, Refused),
        ("logs", log, Refused),
        ("traces", frame_meta(4, "trace", &[0x91, 0x92, 8, 1]), Refused),
        (
            "skipped answers",
            frame(&[5.into(), none()]),
            Fails("skipped a call that was not cancelled"),
        ),
        ("answers", result(5.into()), Served),
    ] {
        let said = said.repeat((64 << 10) / said.len());
        // As much as can be sent until the call's time is over; the call may have ended before.
        add(&format!("flood of {name}"), called(vec![Flood(said.clone(), 16 << 20)]), end);
        add(
            &format!("flood of {name}, nothing read"),
            called(vec![StopReading, Flood(said, 16 << 20)]),
            end,
        );
    }
    let unfinished = [&(60_u32 << 20).to_le_bytes()[..], &[0; 1000]].concat();
    add(
        "answer that never ends",
        called(vec![Send(unfinished), Flood(vec![0; 64 << 10], 50 << 20)]),
        Refused,
    );
    cases
}

/// An answer that ends after each of its bytes.
pub(crate) fn cut_short() -> Vec<Case> {
    let hello = worker_hello(&[("server", text("cut")), ("worker", 3.into())]);
    let session = [PREAMBLE, &hello].concat();
    let cut = |length: usize| {
        let steps = vec![ReceivePreamble, Receive, Send(session[..length].to_vec()), StopSending];
        case(format!("hello of {length} bytes"), steps, Served)
    };
    let mut cases: Vec<Case> = (1..session.len()).map(cut).collect();
    let answer = error(&[("kind", text("interface")), ("message", text("no"))]);
    let cut = |length: usize| {
        let steps = called(vec![Send(answer[..length].to_vec()), StopSending]);
        case(format!("answer of {length} bytes"), steps, Refused)
    };
    cases.extend((1..answer.len()).map(cut));
    cases
}
