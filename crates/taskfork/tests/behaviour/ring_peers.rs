//! The protocol of rings spoken by hand: by peers that keep to it, and by peers that do not, which are disconnected.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::fs::SealFlags;
use taskfork::Client;
use taskfork::client::{BusyPoll, Value};

use crate::files::send_with;
use crate::support::raw::{Raw, frame, map, text};
use crate::support::raw_rings::{Rings, SEALS, WORDS, agree, answer, call_until_it_fails, offer};
use crate::support::{address_in, programs, trial, until};

fn call(method: &str) -> Vec<u8> {
    frame(vec![1.into(), map(&[]), text(method), Value::Array(vec![])])
}

/// A server of this program, and where it listens.
async fn serve(
    folder: &tempfile::TempDir,
) -> (crate::support::processes::Program, std::path::PathBuf) {
    let program = programs::start(&["serve_rings", &address_in(folder)]);
    (program, folder.path().join("s"))
}

trial!(a_worker_answers_through_a_ring_while_the_client_is_awake, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, path) = serve(&folder).await;
    let (mut raw, agreed) = Raw::sharing(&path, 1000, "mapped").await;
    assert!(agreed.is_some());
    let (rings, file) = Rings::new(WORDS * 8, SEALS);
    send_with(&raw, &offer(), &[file]);
    assert_eq!(raw.receive().unwrap().to_string(), "[8, {}]");
    // Asleep: through the socket.
    raw.send(&call("mapped"));
    assert_eq!(raw.receive(), Some(Value::Array(answer(2))));
    let third = frame(answer(3));
    assert_eq!(rings.written(1), 0);
    // Awake: one answer may still go through the socket, as the worker would sleep after it; several do not.
    rings.set_awake(1, true);
    let sent = call("mapped").len() as u64;
    raw.send(&[call("mapped"), call("mapped"), call("mapped")].concat());
    until("an answer in the ring", || rings.written(1) > 0).await;
    assert_eq!(rings.record(1, 0), (third.len() as u64, third.clone()));
    // The worker is about to sleep, and nothing of it has been taken: an empty frame comes, or the last answer and one.
    let mut woken = false;
    while !woken {
        let mut length = [0; 4];
        raw.0.read_exact(&mut length).unwrap();
        woken = length == [0; 4];
        let mut rest = vec![0; u32::from_le_bytes(length) as usize];
        raw.0.read_exact(&mut rest).unwrap();
    }
    // A call through the ring, behind all four that went through the socket, and what wakes the worker.
    rings.set_awake(1, false);
    rings.put(0, 0, 4 * sent, &call("mapped"));
    raw.send(&[0; 4]);
    assert_eq!(raw.receive(), Some(Value::Array(answer(6))));
    assert_eq!(rings.0[8].load(SeqCst), 1 + sent.div_ceil(8));
});

// What only wakes a worker is no message that it could wait for.
trial!(a_worker_that_streams_does_not_wait_behind_an_empty_frame, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_streams", &address_in(&folder)]);
    let (mut raw, agreed) = Raw::sharing(&folder.path().join("s"), 1000, "sent").await;
    assert!(agreed.is_some());
    let (rings, file) = Rings::new(WORDS * 8, SEALS);
    send_with(&raw, &offer(), &[file]);
    assert_eq!(raw.receive().unwrap().to_string(), "[8, {}]");
    let items = map(&[("items", u64::MAX.into())]);
    let call = vec![1.into(), items, text("endless_slowly"), Value::Array(vec![])];
    raw.send(&[frame(call), vec![0; 8]].concat());
    // Through a ring as well.
    let sent = 0;
    rings.put(0, 0, sent, &[0; 4]);
    for number in 0..50_u64 {
        assert_eq!(raw.receive().unwrap().as_array().unwrap()[2], number.into());
    }
});

/// Whether the connection ends, and that not by the worker's death.
fn ends(raw: &mut Raw) -> bool {
    raw.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut last = Vec::new();
    let end = raw.0.read_to_end(&mut last).map_err(|error| error.kind());
    let died = String::from_utf8_lossy(&last).contains("signal");
    !died && matches!(end, Ok(_) | Err(std::io::ErrorKind::ConnectionReset))
}

trial!(a_client_that_offers_invalid_rings_is_disconnected, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, path) = serve(&folder).await;
    let good = || Rings::new(WORDS * 8, SEALS).1;
    let bad = [
        ("memory that can shrink", 1000, offer(), vec![Rings::new(WORDS * 8, SealFlags::GROW).1]),
        ("too little of it", 1000, offer(), vec![Rings::new(WORDS * 8 - 8, SEALS).1]),
        ("no memory", 1000, offer(), vec![std::fs::File::open("/dev/null").unwrap().into()]),
        ("nothing", 1000, offer(), vec![]),
        ("rings twice", 1000, [offer(), offer()].concat(), vec![good(), good()]),
        ("rings that were not asked for", 0, offer(), vec![good()]),
    ];
    for (what, lent, said, files) in bad {
        let (mut raw, _) = Raw::sharing(&path, lent, "mapped").await;
        send_with(&raw, &said, &files);
        assert!(ends(&mut raw), "{what}");
    }
    let hello = [("files", 16.into()), ("lent", 1000.into())];
    let (mut raw, _) = Raw::greeted_with(&path, &hello).await;
    send_with(&raw, &offer(), &[good()]);
    assert!(ends(&mut raw), "rings before the worker has agreed to share memory");
    let nonsense = [(1, 0, u64::MAX), (0, 0, u64::MAX), (0, 24, 0xffff), (0, 24, 300)];
    for (awake, at, word) in nonsense {
        let (mut raw, _) = Raw::sharing(&path, 1000, "mapped").await;
        let (rings, file) = Rings::new(WORDS * 8, SEALS);
        send_with(&raw, &offer(), &[file]);
        raw.receive().unwrap();
        rings.set_awake(1, awake == 1);
        rings.0[0].store(5, SeqCst);
        rings.0[at].store(word, SeqCst);
        raw.send(&call("mapped"));
        assert!(ends(&mut raw), "{at} {word}");
    }
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    assert_eq!(client.call::<u64>("echo", (3,)).await.unwrap(), 3);
});

trial!(a_worker_that_writes_invalid_data_to_a_ring_is_disconnected, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let client = Client::builder().address(address_in(&folder)).min_workers(0);
    let client = client.busy_poll(BusyPoll::Fixed(Duration::from_millis(100))).build().unwrap();
    let worker = tokio::task::spawn_blocking(move || {
        let (mut raw, rings, call) = agree(&listener);
        // Of the call that came with the offer, or after it.
        rings.put(1, 0, 0, &frame(answer(call)));
        raw.send(&[0; 4]);
        rings.0[WORDS / 2].store(1 << 60, SeqCst);
        raw.send(&[0; 4]);
        raw.drain();
    });
    let error = call_until_it_fails(&client).await;
    assert!(error.is_fatal() && error.to_string().contains("ring"), "{error}");
    worker.await.unwrap();
});

// A client reads an endless stream in bounded steps, so that the caller can cancel between them.
trial!(an_endless_ring_does_not_block_the_callers_task, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let client = Client::builder().address(address_in(&folder)).min_workers(0);
    let client = client.timeout(Duration::from_millis(300)).grace(Duration::ZERO).build().unwrap();
    let worker = tokio::task::spawn_blocking(move || {
        let (raw, rings, _) = agree(&listener);
        raw.0.set_nonblocking(true).unwrap();
        // One that says that no file comes with the next.
        let nothing = frame(vec![6.into(), map(&[]), 0.into()]);
        rings.fill_for_ever(&nothing, || !matches!((&raw.0).read(&mut [0; 100]), Ok(0)));
        // More than there is room for at a time.
        assert!(rings.0[WORDS / 2 + 8].load(SeqCst) > 2048);
    });
    let error = call_until_it_fails(&client).await;
    assert!(error.to_string().contains("timed out"), "{error}");
    drop(client);
    worker.await.unwrap();
});
