//! Programs as workers that stream and report progress. The program is this binary, which speaks the protocol by hand.

use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;

use taskfork::client::Value;
use taskfork::error::{CallError, End, FatalError};
use taskfork::worker::Executable;
use taskfork::{Error, Progress, ServerBuilder, ServerError};

use crate::support::raw::{Raw, greet_as, map, of_call, text};
use crate::support::{start, start_with, trial};

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let path = std::env::current_exe().unwrap();
    let script = format!("TASKFORK_TEST_PROGRAM=streaming_worker exec '{}'", path.display());
    server.executable(Executable::new("sh").arg("-c").arg(script)).run()
}

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
    greet_as(&mut raw, &[("items", true.into())]);
    let (mut calls, mut streamed) = (0, Streamed::default());
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

trial!(a_program_that_streams_nothing_gets_no_stream, async || {
    for entry in ["executable", "executable_native"] {
        let (_server, client) = start(entry);
        let checkout = client.checkout();
        let error = checkout.stream::<u64, u64>("echo", (3,)).finish().await.unwrap_err();
        assert!(error.to_string().contains("programs that stream no items"), "{error}");
        let Error::Call { error: CallError::Arguments { .. }, .. } = error else {
            panic!("{error:?}");
        };
    }
});
