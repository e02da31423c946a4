//! Peers that share buffers otherwise than the protocol allows. They are disconnected.

use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use taskfork::client::Value;
use taskfork::{Blob, Client};

use crate::files::send_with;
use crate::shared_buffers::{blob, sharing};
use crate::support::raw::{Raw, agreed as agreed_on, frame, map, of_call, text};
use crate::support::{address_in, programs, trial};

/// Memory of this length with these seals.
fn memory(length: u64, seals: SealFlags) -> OwnedFd {
    let file = memfd_create("taskfork-buffer", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, length).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

/// What may be lent.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);

/// A message that lends this memory, and one that refers to `length` bytes of it.
fn lend(id: u32, length: usize) -> Vec<u8> {
    let place = Value::Array(vec![false.into(), id.into(), length.into()]);
    let lent = map(&[("new", Value::Array(vec![1.into()])), ("uses", Value::Array(vec![place]))]);
    frame(vec![7.into(), lent])
}

fn reference() -> Value {
    Value::Ext(3, vec![0, 0, 0, 0])
}

/// What a client says who lends this, and calls with it.
fn lends_and_calls(id: u32, length: usize) -> Vec<u8> {
    let call = vec![1.into(), map(&[]), text("is_lent"), Value::Array(vec![reference()])];
    [lend(id, length), frame(call)].concat()
}

trial!(a_client_that_shares_invalid_memory_is_disconnected, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_shared_buffers", &address_in(&folder)]);
    let path = folder.path().join("s");
    let good = || memory(1 << 20, SEALS);
    let (mut raw, agreed) = sharing(&path).await;
    assert!(agreed.is_some());
    send_with(&raw, &lends_and_calls(1, 4096), &[good()]);
    let (back, answer) = (raw.receive().unwrap(), raw.receive().unwrap());
    assert!(back.to_string().contains(r#"{"free": [[1, 1]]}"#), "{back}");
    assert!(answer.to_string().contains("[true, 0]"), "{answer}");
    let bad = [
        ("memory that can shrink", lends_and_calls(1, 1), memory(4096, SealFlags::GROW)),
        ("that others can write to", lends_and_calls(1, 1), {
            memory(4096, SealFlags::GROW | SealFlags::SHRINK)
        }),
        ("more than was agreed", lends_and_calls(1, 1), memory(100 << 20, SEALS)),
        ("a part that is not there", lends_and_calls(1, (1 << 20) + 1), good()),
        ("what is not known", lends_and_calls(2, 1), good()),
        ("no memory", lends_and_calls(1, 1), std::fs::File::open("/dev/null").unwrap().into()),
    ];
    for (what, said, file) in bad {
        let (mut raw, _) = sharing(&path).await;
        send_with(&raw, &said, &[file]);
        assert!(raw.receive().is_none_or(|last| last.as_array().unwrap()[0] == 3.into()), "{what}");
    }
    let (mut raw, _) = sharing(&path).await;
    raw.send(&lends_and_calls(1, 1));
    assert!(raw.receive().is_none_or(|last| last.as_array().unwrap()[0] == 3.into()));
    // What only a worker says, and memory before the worker has agreed.
    let (mut raw, _) = sharing(&path).await;
    raw.send(&agreed_on(1000));
    assert!(raw.receive().is_none_or(|last| last.as_array().unwrap()[0] == 3.into()));
    let hello = [("files", 16.into()), ("lent", 1000.into())];
    let (mut raw, _) = Raw::greeted_with(&path, &hello).await;
    send_with(&raw, &lends_and_calls(1, 4096), &[good()]);
    assert!(raw.receive().is_none_or(|last| last.as_array().unwrap()[0] == 3.into()));
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    assert_eq!(client.call::<Blob>("echo", (blob(1),)).await.unwrap(), blob(1));
});

/// A worker that greets, and answers the first call with this.
fn answer_with(listener: &std::os::unix::net::UnixListener, said: &[u8], file: OwnedFd) {
    let mut raw = Raw::accept(listener);
    raw.0.read_exact(&mut [0; 8]).unwrap();
    raw.receive().unwrap();
    raw.send(b"taskfork");
    let hello = map(&[
        ("version", 1.into()),
        ("pid", 1.into()),
        ("worker", 1.into()),
        ("server", text("raw")),
        ("files", 16.into()),
    ]);
    raw.send_message(vec![0.into(), hello]);
    raw.receive().unwrap();
    send_with(&raw, said, &[file]);
    // The client goes, or has got what it wants.
    assert!(raw.receive().is_none_or(|last| last.as_array().unwrap()[0] == 2.into()));
}

trial!(a_worker_that_shares_invalid_memory_is_disconnected, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let unagreed =
        |id, length| [lend(id, length), frame(vec![1.into(), of_call(1), reference()])].concat();
    let agreed = || agreed_on(1 << 20);
    let answers = |id, length| [agreed(), unagreed(id, length)].concat();
    let asks = 64 << 20;
    let good = || memory(1 << 20, SEALS);
    let cases = [
        (true, asks, answers(1, 4096), good()),
        (false, asks, answers(1, 4096), memory(1 << 20, SealFlags::GROW)),
        (false, asks, answers(2, 4096), good()),
        (false, asks, answers(1, 4096), memory(100 << 20, SEALS)),
        // Two agreements, a missing one, and one that the client had not requested.
        (false, asks, [agreed(), answers(1, 4096)].concat(), good()),
        (false, asks, unagreed(1, 4096), good()),
        (false, 0, answers(1, 4096), good()),
        (false, 0, [agreed(), frame(vec![1.into(), of_call(1), 1.into()])].concat(), good()),
    ];
    for (good, asks, said, file) in cases {
        let client = Client::builder().address(address_in(&folder)).min_workers(0);
        let client = client.shared_memory(asks).build().unwrap();
        let listener = listener.try_clone().unwrap();
        let worker = tokio::task::spawn_blocking(move || answer_with(&listener, &said, file));
        let answer: Result<Blob, _> = client.call("anything", ()).await;
        match answer {
            Ok(blob) => assert!(good && *blob == [0; 4096]),
            Err(error) => assert!(!good && error.is_fatal(), "{error}"),
        }
        drop(client);
        worker.await.unwrap();
    }
});
