//! Programs as workers that stream and report progress. The program is this binary, which speaks the protocol by hand.

use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use taskfork::client::{Input, Value};
use taskfork::error::{CallError, End, FatalError};
use taskfork::worker::Executable;
use taskfork::{Blob, Error, Progress, ServerBuilder, ServerError};

use crate::support::raw::{Raw, greet_as, map, of_call, text};
use crate::support::{start, start_with, trial};

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let path = std::env::current_exe().unwrap();
    let script = format!("TASKFORK_TEST_PROGRAM=streaming_worker exec '{}'", path.display());
    server.executable(Executable::new("sh").arg("-c").arg(script)).run()
}

/// The longest message that the program takes.
const LONGEST: u64 = 4 << 20;

/// What the program has done in its last call that streams.
#[derive(Default)]
struct Streamed {
    items: u64,
    /// How often it got credit.
    credits: u64,
    is_cancelled: bool,
}

/// What the program does.
pub(crate) fn work() {
    let descriptor = std::env::var("TASKFORK_FD").unwrap().parse().unwrap();
    // SAFETY: it is this program's own.
    #[allow(unsafe_code)]
    let mut raw = Raw(unsafe { UnixStream::from_raw_fd(descriptor) });
    let longest = ("max_frame", LONGEST.into());
    greet_as(&mut raw, &[("items", true.into()), ("input", true.into()), longest]);
    let (mut calls, mut streamed, mut last_end) = (0, Streamed::default(), String::new());
    while let Some(message) = raw.receive() {
        let message = message.as_array().unwrap();
        // Credit for a call that has ended, and the ends of checkouts.
        if message[0] != 1.into() {
            continue;
        }
        calls += 1;
        let credit = in_map(&message[1], "items");
        let (method, count) = (message[2].as_str().unwrap(), message[3][0].as_u64().unwrap_or(0));
        let cheap = map(&[("call", calls.into()), ("cost", 256.into())]);
        let item = |call: u64, cost: u64| map(&[("call", call.into()), ("cost", cost.into())]);
        let mut answer: Value = 5.into();
        let mut send = |meta: Value, value: Value| raw.send_message(vec![11.into(), meta, value]);
        match method {
            "numbers" => {
                let credit = credit.expect("it is called as a stream");
                streamed = stream(&mut raw, calls, credit, count);
                answer = streamed.items.into();
            }
            "streamed" => {
                let Streamed { items, credits, is_cancelled } = streamed;
                answer = Value::Array(vec![items.into(), credits.into(), is_cancelled.into()]);
            }
            "more_than_its_credit" => {
                // Longer than the client accepts. So the call is cancelled, and gets no more credit.
                send(item(calls, 3 << 20), Value::Binary(vec![0; 2 << 20]));
                send(item(calls, 500), 7.into());
            }
            "too_long" => send(item(calls, 3 << 20), Value::Binary(vec![0; 2 << 20])),
            "for_less_than_its_bytes" => send(cheap, 7.into()),
            "of_another_call" => send(item(calls + 1, 500), 7.into()),
            "unasked" => send(item(calls, 500), 7.into()),
            "sum" => {
                let (numbers, end) = take_all(&mut raw, calls, 2000);
                let numbers = numbers.iter().map(|number| number.as_u64().unwrap());
                last_end = end;
                answer = numbers.sum::<u64>().into();
            }
            "last_end" => answer = std::mem::take(&mut last_end).into(),
            "first" => {
                give_credit(&mut raw, calls, 1);
                answer = next_item(&mut raw, calls).unwrap();
            }
            "doubled" => answer = double(&mut raw, calls).into(),
            "long_both_ways" => answer = send_before_reading(&mut raw, calls, count).into(),
            "answers_in_the_middle" => {
                give_credit(&mut raw, calls, 1);
                raw.0.read_exact(&mut vec![0; 1 << 20]).unwrap();
                raw.send_message(vec![1.into(), of_call(calls), answer]);
                // The worker is to read this before it learns of the end.
                std::thread::sleep(std::time::Duration::from_millis(50));
                return;
            }
            "writes_without_reading" => {
                let meta = item(calls, 50_000);
                for _ in 0..count {
                    let long = Value::Binary(vec![7; 40_000]);
                    raw.send_message(vec![11.into(), meta.clone(), long]);
                }
                raw.send_message(vec![
                    11.into(),
                    item(calls, 3 << 20),
                    Value::Binary(vec![7; 2 << 20]),
                ]);
            }
            "reports_until_an_item" => {
                give_credit(&mut raw, calls, u64::MAX);
                answer = report_until_readable(&mut raw, calls);
            }
            "credit_for_no_input" => give_credit(&mut raw, calls, 1000),
            "less_credit" => {
                give_credit(&mut raw, calls, 1000);
                give_credit(&mut raw, calls, 999);
            }
            _ => {}
        }
        raw.send_message(vec![1.into(), of_call(calls), answer]);
    }
}

fn in_map(map: &Value, key: &str) -> Option<u64> {
    let mut entries = map.as_map()?.iter();
    entries.find_map(|(name, value)| (*name == text(key)).then(|| value.as_u64())?)
}

/// Reports progress, and sends numbers of 1,000 credits each.
fn stream(raw: &mut Raw, call: u64, mut credit: u64, count: u64) -> Streamed {
    const COST: u64 = 1000;
    let report = Value::Array(vec![1.into(), count.into(), "items".into()]);
    raw.send_message(vec![4.into(), map(&[("progress", report)])]);
    let mut streamed = Streamed::default();
    while streamed.items < count {
        while streamed.items * COST >= credit {
            let message = raw.receive().unwrap();
            assert_eq!(message[2], call.into());
            match message[0].as_u64() {
                Some(12) => credit = message[3].as_u64().unwrap(),
                _ => return Streamed { is_cancelled: true, ..streamed },
            }
            streamed.credits += 1;
        }
        let meta = map(&[("call", call.into()), ("cost", COST.into())]);
        raw.send_message(vec![11.into(), meta, streamed.items.into()]);
        streamed.items += 1;
    }
    streamed
}

fn give_credit(raw: &mut Raw, call: u64, credit: u64) {
    raw.send_message(vec![12.into(), map(&[]), call.into(), credit.into()]);
}

/// The next item of the input, or how that has ended.
fn next_item(raw: &mut Raw, call: u64) -> Result<Value, String> {
    loop {
        let message = raw.receive().unwrap();
        let message = message.as_array().unwrap();
        match message[0].as_u64() {
            Some(11) => {
                assert_eq!(in_map(&message[1], "call"), Some(call));
                return Ok(message[2].clone());
            }
            Some(13) => {
                assert_eq!(message[2], call.into());
                let error = message[1].as_map().unwrap().first();
                return Err(error.map_or("end".to_owned(), |(_, text)| text.to_string()));
            }
            Some(4) => return Err("cancelled".to_owned()),
            // Credit for items.
            _ => assert_eq!(message[0], 12.into()),
        }
    }
}

/// All items of the input, and how it has ended. At most so much credit is open.
fn take_all(raw: &mut Raw, call: u64, window: u64) -> (Vec<Value>, String) {
    let mut items = Vec::new();
    loop {
        // Each number costs at most 320.
        give_credit(raw, call, window + 320 * items.len() as u64);
        match next_item(raw, call) {
            Ok(item) => items.push(item),
            Err(end) => return (items, end),
        }
    }
}

/// Sends each number of the input back, doubled.
fn double(raw: &mut Raw, call: u64) -> String {
    give_credit(raw, call, u64::MAX);
    loop {
        let number = match next_item(raw, call) {
            Ok(number) => number.as_u64().unwrap(),
            Err(end) => return end,
        };
        let meta = map(&[("call", call.into()), ("cost", 500.into())]);
        raw.send_message(vec![11.into(), meta, (2 * number).into()]);
    }
}

/// Sends a long item before it reads the long item that has been sent to it meanwhile.
fn send_before_reading(raw: &mut Raw, call: u64, count: u64) -> u64 {
    let mut bytes = 0;
    give_credit(raw, call, u64::MAX);
    for _ in 0..count {
        let meta = map(&[("call", call.into()), ("cost", (3 << 20).into())]);
        raw.send_message(vec![11.into(), meta, Value::Binary(vec![7; 2 << 20])]);
        bytes += next_item(raw, call).unwrap().as_slice().unwrap().len() as u64;
    }
    bytes
}

/// Reports progress without a pause until there is something to read. Returns the item, or how the input has ended.
fn report_until_readable(raw: &mut Raw, call: u64) -> Value {
    let is_readable = |raw: &Raw| {
        let mut socket = [PollFd::new(&raw.0, PollFlags::IN)];
        poll(&mut socket, Some(&Timespec::default())).unwrap() > 0
    };
    let mut reports = 0_u64;
    while !is_readable(raw) {
        reports += 1;
        let report = Value::Array(vec![reports.into(), 0.into(), "reports".into()]);
        raw.send_message(vec![4.into(), map(&[("progress", report)])]);
    }
    next_item(raw, call).unwrap_or_else(Value::from)
}

trial!(a_program_takes_an_input, async || {
    let (_server, client) = start_with("program_streams", |client| client.max_workers(1));
    let checkout = client.checkout();
    let numbers = Input::iter(0..3000_u64);
    assert_eq!(checkout.call_with_input::<u64>("sum", (), numbers).await.unwrap(), 4_498_500);
    assert_eq!(checkout.call::<String>("last_end", ()).await.unwrap(), "end");
    // It answers before the end, and what is left does not reach the next call.
    let texts = Input::iter(["one", "two", "three"]);
    assert_eq!(checkout.call_with_input::<String>("first", (), texts).await.unwrap(), "one");
    let numbers = Input::iter([1_u64, 2]);
    assert_eq!(checkout.call_with_input::<u64>("sum", (), numbers).await.unwrap(), 3);
});

trial!(a_program_takes_an_input_and_streams, async || {
    let (_server, client) = start_with("program_streams", |client| client.max_workers(1));
    let checkout = client.checkout();
    // Each number is sent when the one before it has come back.
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let numbers = Input::new(crate::support::inputs::Channel(receiver));
    let mut doubled = checkout.stream_with_input::<u64, String>("doubled", (), numbers);
    for number in 0..100_u64 {
        sender.send(number).unwrap();
        assert_eq!(doubled.next().await.unwrap(), Some(2 * number));
    }
    drop(sender);
    assert_eq!(doubled.finish().await.unwrap(), "end");
    let numbers = Input::iter(0..10_000_u64);
    let mut doubled = checkout.stream_with_input::<u64, String>("doubled", (), numbers);
    for number in 0..10_000_u64 {
        assert_eq!(doubled.next().await.unwrap(), Some(2 * number));
    }
    assert_eq!(doubled.finish().await.unwrap(), "end");
});

trial!(long_items_go_both_ways_to_a_program_that_does_not_read_while_it_writes, async || {
    let (_server, client) = start("program_streams");
    let items = (0..3).map(|_| Blob::from(vec![7; 2 << 20]));
    let mut long =
        client.stream_with_input::<Blob, u64>("long_both_ways", (3,), Input::iter(items));
    for _ in 0..3 {
        assert_eq!(long.next().await.unwrap().unwrap().len(), 2 << 20);
    }
    assert_eq!(long.finish().await.unwrap(), 3 * (2 << 20));
});

trial!(a_program_answers_in_the_middle_of_an_item_and_exits, async || {
    let (_server, client) = start("program_streams");
    let items = Input::iter([Blob::from(vec![7; 3 << 20])]);
    let answer = client.call_with_input::<u64>("answers_in_the_middle", (), items).await;
    assert_eq!(answer.unwrap(), 5);
});

// Credit for each item fills the socket, and then the worker must read what the program writes.
trial!(a_program_may_write_many_items_before_it_reads, async || {
    let (_server, client) = start("program_streams");
    let mut items = client.stream::<Blob, u64>("writes_without_reading", (400,));
    for _ in 0..400 {
        assert_eq!(items.next().await.unwrap().unwrap().len(), 40_000);
    }
    assert_eq!(items.next().await.unwrap().unwrap().len(), 2 << 20);
    assert_eq!(items.finish().await.unwrap(), 5);
});

trial!(a_program_that_reports_without_a_pause_gets_its_input, async || {
    let (_server, client) = start("program_streams");
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let numbers = Input::new(crate::support::inputs::Channel(receiver));
    let mut call = client.stream_with_input::<u64, u64>("reports_until_an_item", (), numbers);
    let mut progress = call.progress();
    let reported = async {
        assert!(progress.changed().await.is_some());
        sender.send(8_u64).unwrap();
    };
    let (next, ()) = tokio::join!(call.next(), reported);
    assert_eq!(next.unwrap(), None);
    assert_eq!(call.finish().await.unwrap(), 8);
});

trial!(a_program_learns_how_its_input_ends, async || {
    let (_server, client) = start_with("program_streams", |client| client.max_workers(1));
    let checkout = client.checkout();
    let rows = crate::support::inputs::iter([Ok(1_u64), Err("the disk is gone")]);
    let error =
        checkout.call_with_input::<u64>("sum", (), Input::fallible(rows)).await.unwrap_err();
    assert!(error.to_string().contains("the disk is gone"), "{error}");
    assert!(checkout.call::<String>("last_end", ()).await.unwrap().contains("the disk is gone"));
});

trial!(an_item_that_is_too_long_for_a_program_fails_its_call, async || {
    let (_server, client) = start_with("program_streams", |client| client.max_workers(1));
    let checkout = client.checkout();
    let items = Input::iter([Value::from(1), Value::from("x".repeat(5 << 20)), Value::from(2)]);
    let error = checkout.call_with_input::<u64>("sum", (), items).await.unwrap_err().to_string();
    assert!(error.contains("item 2 of the input cannot be passed on to the program"), "{error}");
    assert!(error.contains("4194304"), "{error}");
    let end = checkout.call::<String>("last_end", ()).await.unwrap();
    assert!(end.contains("item 2 of the input"), "{end}");
});

trial!(a_program_learns_that_nobody_wants_its_call, async || {
    let (_server, client) = start_with("program_streams", |client| client.max_workers(1));
    let checkout = client.checkout();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let numbers = Input::new(crate::support::inputs::Channel(receiver));
    let mut doubled = checkout.stream_with_input::<u64, String>("doubled", (), numbers);
    sender.send(1_u64).unwrap();
    assert_eq!(doubled.next().await.unwrap(), Some(2));
    // It waits for the next number.
    drop(doubled);
    let numbers = Input::iter([4_u64]);
    assert_eq!(checkout.call_with_input::<u64>("sum", (), numbers).await.unwrap(), 4);
});

trial!(a_program_that_gives_wrong_credit_ends, async || {
    for (method, said) in [
        ("credit_for_no_input", "it gives credit for an input, which this call has not"),
        ("less_credit", "it took credit back"),
    ] {
        let (_server, client) = start("program_streams");
        let error = match method {
            "less_credit" => {
                client.call_with_input::<u64>(method, (), Input::iter(0..3_u64)).await.unwrap_err()
            }
            _ => client.call::<u64>(method, ()).await.unwrap_err(),
        };
        expect_violation(error, said);
    }
});

trial!(items_and_progress_of_a_program_arrive, async || {
    let (_server, client) = start_with("program_streams", |client| client.max_workers(1));
    let checkout = client.checkout();
    let mut numbers = checkout.stream::<u64, u64>("numbers", (2000_u64,));
    let mut progress = numbers.progress();
    for expected in 0..2000 {
        assert_eq!(numbers.next().await.unwrap(), Some(expected));
    }
    assert_eq!(numbers.next().await.unwrap(), None);
    assert_eq!(numbers.finish().await.unwrap(), 2000);
    // A report may be late for so short a call.
    assert!([None, Some(Progress::new(1, 2000, "items"))].contains(&progress.changed().await));
    // It waited for credit, and did not get it for each item.
    let (_, credits, is_cancelled): (u64, u64, bool) = checkout.call("streamed", ()).await.unwrap();
    assert!((20..200).contains(&credits) && !is_cancelled, "{credits}");
});

trial!(a_program_waits_for_its_reader_and_learns_when_nobody_reads_on, async || {
    let (_server, client) = start_with("program_streams", |client| client.max_workers(1));
    let checkout = client.checkout();
    let mut numbers = checkout.stream::<u64, u64>("numbers", (1_000_000_u64,));
    let mut progress = numbers.progress();
    assert_eq!(numbers.next().await.unwrap(), Some(0));
    // It cannot end, so the report comes.
    assert_eq!(progress.changed().await, Some(Progress::new(1, 1_000_000, "items")));
    drop(numbers);
    let (items, _, is_cancelled): (u64, u64, bool) = checkout.call("streamed", ()).await.unwrap();
    // As many bodies of items as the client's window holds, and the program's window.
    assert!(is_cancelled && items <= 262_144 / 270 + 65_536 / 1000 + 3, "{items}, {is_cancelled}");
});

trial!(a_program_that_streams_wrongly_ends, async || {
    for (method, said) in [
        ("more_than_its_credit", "it sent an item without credit"),
        ("for_less_than_its_bytes", "with 0 descriptors at the cost of"),
        ("of_another_call", "the answer to call 2 came where that to call 1 was due"),
    ] {
        let (_server, client) = start_with("program_streams", |client| client.max_frame(1 << 20));
        let error = client.stream::<u64, u64>(method, ()).finish().await.unwrap_err();
        expect_violation(error, said);
    }
    let (_server, client) = start("program_streams");
    let error = client.call::<u64>("unasked", ()).await.unwrap_err();
    expect_violation(error, "items, which this call does not read");
});

fn expect_violation(error: Error, said: &str) {
    let Error::Fatal { cause: FatalError::WorkerDied(death), .. } = error else {
        panic!("{error}");
    };
    assert_eq!(death.end, End::Exited(76));
    let stderr = death.stderr.unwrap();
    assert!(stderr.contains(said), "{stderr}");
}

trial!(an_item_of_a_program_that_is_too_long_for_the_client_fails_its_call, async || {
    let (_server, client) = start_with("program_streams", |client| client.max_frame(1 << 20));
    let checkout = client.checkout();
    let error = checkout.stream::<u64, u64>("too_long", ()).finish().await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("an item of the stream") && said.contains("1048576"), "{said}");
    assert_eq!(checkout.stream::<u64, u64>("numbers", (3,)).finish().await.unwrap(), 3);
});

trial!(what_is_too_long_for_a_program_says_whose_limit_that_is, async || {
    let (_server, client) = start("program_streams");
    let long = "x".repeat(LONGEST as usize + 1);
    let error = client.call::<u64>("numbers", (long,)).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains(&format!("over the limit of {LONGEST} (max_frame): ")), "{said}");
    assert!(said.contains("in the program's hello") && !said.contains("`Blob`"), "{said}");
});

trial!(a_program_that_streams_nothing_gets_no_stream, async || {
    for entry in ["executable", "executable_native"] {
        let (_server, client) = start(entry);
        let checkout = client.checkout();
        let error = checkout.stream::<u64, u64>("echo", (3,)).finish().await.unwrap_err();
        assert!(error.to_string().contains("programs that stream no items"), "{error}");
        let Error::Call { error: CallError::Arguments { .. }, .. } = error else {
            panic!("{error:?}");
        };
        let error = checkout.call_with_input::<u64>("echo", (3,), Input::iter(0..3_u64)).await;
        let error = error.unwrap_err();
        assert!(error.to_string().contains("programs that take no input"), "{error}");
        let Error::Call { error: CallError::Arguments { .. }, .. } = error else {
            panic!("{error:?}");
        };
    }
});
