//! Memory and open files that are handed over instead of sent.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use taskfork::blob::{BlobMut, OpenFile};
use taskfork::client::Value;
use taskfork::{Blob, BoxError, Client, Error, Methods, ServerBuilder, ServerError};

use crate::support::raw::{Raw, frame, map, text};
use crate::support::{address_in, programs, start, start_with, trial};

#[derive(Debug, Serialize, Deserialize)]
struct Mixed {
    shared: Blob,
    name: String,
    sent: Blob,
    file: OpenFile,
    again: Vec<Blob>,
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("echo", |blob: Blob| Ok(blob))
        .function("both", |first: Blob, second: Blob| Ok(vec![first, second]))
        .function("value", |value: Value| Ok(value.as_slice().map(<[u8]>::len)))
        .function("shares", |blob: Blob| Ok((blob.len(), shares_memory())))
        .function("mixed", |mixed: Mixed| Ok(mixed))
        .function("read", |file: OpenFile| {
            let mut text = String::new();
            std::fs::File::from(file.try_into_owned()?).read_to_string(&mut text)?;
            Ok(text)
        })
        .function("open", |path: String| Ok(OpenFile::from(std::fs::File::open(path)?)))
        .function("make", |length: usize| {
            let mut blob = BlobMut::new(length)?;
            blob.fill(7);
            taskfork::worker::logger().info("it is made");
            Ok(blob.freeze()?)
        })
        .function("fail", |_: Blob, _: OpenFile| Err::<(), _>("no".into()))
        .function("abort", |_: Blob, _: OpenFile| -> Result<(), BoxError> { std::process::abort() })
        .function("wrong", |_: Blob, number: u8| Ok(number))
        .function("open_files", || Ok(std::fs::read_dir("/proc/self/fd")?.count()));
    server.max_frame(8 << 20).interface(methods).run()
}

/// Whether this process has the memory of a blob mapped.
fn shares_memory() -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains("memfd:taskfork-blob")
}

fn shared(length: usize, fill: u8) -> Blob {
    let mut blob = BlobMut::new(length).unwrap();
    blob.fill(fill);
    blob.freeze().unwrap()
}

fn open(path: &str) -> OpenFile {
    std::fs::File::open(path).unwrap().into()
}

trial!(a_shared_blob_is_mapped_and_not_sent, async || {
    let (_server, client) = start("files");
    let checkout = client.checkout();
    let (length, maps) = checkout.call("shares", (shared(1 << 20, 3),)).await.unwrap();
    assert_eq!((length, maps), (1 << 20, true));
    let (length, maps) = checkout.call("shares", (Blob::from(vec![3; 1 << 20]),)).await.unwrap();
    assert_eq!((length, maps), (1 << 20, false));
    let blob: Blob = checkout.call("make", (1 << 20,)).await.unwrap();
    assert!(blob.len() == 1 << 20 && blob.iter().all(|&byte| byte == 7));
    // Handed on as it came.
    let (length, maps) = checkout.call("shares", (&blob,)).await.unwrap();
    assert_eq!((length, maps), (1 << 20, true));
    assert_eq!(checkout.call::<Blob>("echo", (&blob,)).await.unwrap(), blob);
});

trial!(a_shared_blob_is_as_long_as_it_likes, async || {
    let (_server, client) = start("files");
    let blob = shared(40 << 20, 9);
    assert_eq!(client.call::<Blob>("echo", (&blob,)).await.unwrap(), blob);
    let (_server, client) = start("files_tcp");
    let error = client.call::<Blob>("echo", (&blob,)).await.unwrap_err();
    assert!(error.to_string().contains("the limit of a message is 8388608"), "{error}");
    let error = client.call::<Blob>("make", (40 << 20,)).await.unwrap_err();
    assert!(error.to_string().contains("the limit of a message is 8388608"), "{error}");
});

trial!(a_shared_blob_is_sent_where_it_cannot_be_mapped, async || {
    let (_server, client) = start("files_tcp");
    let blob = shared(1 << 20, 5);
    let (length, maps): (usize, bool) = client.call("shares", (&blob,)).await.unwrap();
    assert_eq!((length, maps), (1 << 20, false));
    assert_eq!(client.call::<Blob>("echo", (&blob,)).await.unwrap(), blob);
    assert_eq!(client.call::<Blob>("make", (100_000,)).await.unwrap(), shared(100_000, 7));
});

trial!(shared_and_other_blobs_arrive_in_one_value, async || {
    let (_server, client) = start("files");
    let checkout = client.checkout();
    for length in [10, 16_384, 65_535, 65_536, 1_000_000] {
        let mixed = Mixed {
            shared: shared(length, 1),
            name: "between".to_owned(),
            sent: Blob::from(vec![2; length]),
            file: open("/proc/self/exe"),
            again: vec![shared(length + 1, 3), Blob::from(vec![4; length + 2]), shared(20_000, 5)],
        };
        let back: Mixed = checkout.call("mixed", (&mixed,)).await.unwrap();
        assert_eq!((&back.shared, &back.name), (&mixed.shared, &mixed.name));
        assert_eq!((&back.sent, &back.again), (&mixed.sent, &mixed.again));
        let number = |file: &OpenFile| rustix::fs::fstat(file.as_fd()).unwrap().st_ino;
        assert_eq!(number(&back.file), number(&mixed.file));
    }
});

trial!(a_log_arrives_before_shared_blobs, async || {
    let (_server, client) = start("files");
    let (send, messages) = std::sync::mpsc::channel();
    let log = log_defer::Log::new(move |message| send.send(message).unwrap());
    let checkout = client.checkout().log(&log);
    assert_eq!(checkout.call::<Blob>("make", (100_000,)).await.unwrap(), shared(100_000, 7));
    drop((checkout, log));
    assert_eq!(messages.recv().unwrap().logs.len(), 1);
});

trial!(open_files_go_both_ways, async || {
    let (_server, client) = start("files");
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"through a pipe").unwrap();
    drop(writer);
    let text: String = client.call("read", (OpenFile::from(OwnedFd::from(reader)),)).await.unwrap();
    assert_eq!(text, "through a pipe");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "from a file").unwrap();
    let file: OpenFile = client.call("open", (path.to_str().unwrap(),)).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(client.call::<String>("read", (file,)).await.unwrap(), "from a file");
    let error = client.call::<String>("read", (shared(100_000, 1),)).await.unwrap_err();
    let expected = "argument 1 of `read`: expected an open file, got bytes";
    assert!(error.to_string().contains(expected), "{error}");
    let error = client.call::<Blob>("echo", (open("/dev/null"),)).await.unwrap_err();
    assert!(error.to_string().contains("expected bytes, got an open file"), "{error}");
});

trial!(open_files_are_refused_where_they_cannot_go, async || {
    let (_server, client) = start("files_tcp");
    let checkout = client.checkout();
    let error = checkout.call::<String>("read", (open("/dev/null"),)).await.unwrap_err();
    assert!(!error.may_have_run() && !error.is_fatal());
    assert!(error.to_string().contains("open files can be sent through unix sockets only"));
    let error = checkout.call::<OpenFile>("open", ("/dev/null",)).await.unwrap_err();
    assert!(!error.is_fatal(), "{error}");
    assert!(error.to_string().contains("open files can be sent through unix sockets only"));
    assert!(checkout.call::<Blob>("echo", (Blob::default(),)).await.unwrap().is_empty());
});

trial!(too_many_open_files_are_refused, async || {
    let (_server, client) = start("files");
    let file = open("/dev/null");
    let error = client.call::<()>("read", vec![file; 17]).await.unwrap_err();
    assert!(error.to_string().contains("they have 17 files, and 16 can be sent"), "{error}");
    // Blobs can be sent in another way.
    let blobs: Vec<_> = (0..17).map(|_| shared(20_000, 1)).collect();
    let error = client.call::<()>("echo", &blobs).await.unwrap_err();
    assert!(error.to_string().contains("expected 1 argument, got 17"), "{error}");
});

trial!(calls_with_files_are_sent_ahead_as_well, async || {
    let (_server, client) = start("files");
    let checkout = client.checkout();
    let calls: Vec<_> = (0..100_usize)
        .map(|number| {
            let blob = if number % 3 == 0 { vec![1; number].into() } else { shared(20_000, 2) };
            checkout.call::<Blob>("echo", (blob,))
        })
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        let length = if number % 3 == 0 { number } else { 20_000 };
        assert_eq!(call.await.unwrap().len(), length);
    }
});

pub(crate) fn open_here() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

trial!(failed_and_dropped_calls_leak_no_descriptor, async || {
    // In a process of its own, as other tests open and close files meanwhile.
    let done = tokio::task::spawn_blocking(|| programs::command(&["count_files"]).status());
    assert!(done.await.unwrap().unwrap().success());
});

/// The test program of that test.
pub(crate) async fn count_files() {
    let (_server, client) =
        start_with("files", |client| client.max_workers(1).reuse_after_error(true));
    let before: usize = client.call("open_files", ()).await.unwrap();
    let here = open_here();
    for _ in 0..50 {
        let (blob, file) = (shared(50_000, 1), open("/dev/null"));
        client.call::<Blob>("echo", (&blob,)).await.unwrap();
        client.call::<OpenFile>("open", ("/dev/null",)).await.unwrap();
        client.call::<()>("fail", (&blob, &file)).await.unwrap_err();
        client.call::<()>("wrong", (&blob, "not a number")).await.unwrap_err();
        client.call::<u8>("make", (50_000,)).await.unwrap_err();
        let checkout = client.checkout();
        let failing = checkout.call::<()>("fail", (&blob, &file));
        let dropped = checkout.call::<()>("fail", (&blob, &file));
        drop(checkout.call::<OpenFile>("open", ("/dev/null",)));
        failing.await.unwrap_err();
        dropped.await.unwrap_err();
    }
    assert_eq!(client.call::<usize>("open_files", ()).await.unwrap(), before);
    for _ in 0..5 {
        let dead = client.call::<()>("abort", (shared(50_000, 1), open("/dev/null"))).await;
        assert!(dead.unwrap_err().is_fatal());
    }
    client.call::<usize>("open_files", ()).await.unwrap();
    assert_eq!(open_here(), here);
}

/// A client that says what it likes, with files.
async fn raw(folder: &tempfile::TempDir) -> (crate::support::processes::Program, Raw) {
    let program = programs::start(&["serve_files", &address_in(folder)]);
    let (raw, hello) = Raw::greeted(&folder.path().join("s")).await;
    let hello = hello.as_array().unwrap()[1].as_map().unwrap();
    assert!(hello.contains(&(text("files"), 16.into())), "{hello:?}");
    (program, raw)
}

pub(crate) fn send_with(raw: &Raw, bytes: &[u8], files: &[OwnedFd]) {
    try_send_with(raw, bytes, files).unwrap();
}

pub(crate) fn try_send_with(raw: &Raw, bytes: &[u8], files: &[OwnedFd]) -> rustix::io::Result<()> {
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
    sendmsg(&raw.0, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// Receives what has come, and a file if one has come with it.
pub(crate) fn receive_with(raw: &Raw) -> (Vec<u8>, Option<OwnedFd>) {
    let (mut bytes, mut space) = ([0; 4096], [MaybeUninit::uninit(); 64]);
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(&raw.0, &mut slices, &mut ancillary, RecvFlags::empty()).unwrap();
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    (bytes[..received.bytes].to_vec(), file)
}

/// A call of `echo` with what is said to be a blob's file.
pub(crate) fn echo_of_a_file() -> Vec<u8> {
    let file = Value::Ext(1, vec![0, 0, 0, 0]);
    frame(vec![1.into(), map(&[]), text("echo"), Value::Array(vec![file])])
}

pub(crate) fn announcement() -> Vec<u8> {
    frame(vec![6.into(), map(&[]), 1.into()])
}

trial!(memory_that_could_change_is_refused, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, mut raw) = raw(&folder).await;
    let file = memfd_create("loose", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, 1 << 20).unwrap();
    send_with(&raw, &[announcement(), echo_of_a_file()].concat(), &[file]);
    let answer = raw.receive().unwrap().to_string();
    assert!(answer.contains("it is not sealed against changes"), "{answer}");
    let device = std::fs::File::open("/dev/zero").unwrap();
    send_with(&raw, &[announcement(), echo_of_a_file()].concat(), &[device.into()]);
    let answer = raw.receive().unwrap().to_string();
    assert!(answer.contains("it is no memory"), "{answer}");
});

trial!(unannounced_files_end_the_connection, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, mut raw) = raw(&folder).await;
    let call = frame(vec![1.into(), map(&[]), text("open_files"), Value::Array(vec![])]);
    let mut sent = 0;
    loop {
        let files = [(); 16].map(|()| std::fs::File::open("/dev/null").unwrap().into());
        let space = std::panic::catch_unwind(|| send_with(&raw, &call, &files));
        if space.is_err() || raw.receive().is_none() {
            break;
        }
        sent += files.len();
        assert!(sent < 200, "it takes as many as anybody sends");
    }
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    client.call::<usize>("open_files", ()).await.unwrap();
});

trial!(a_file_that_did_not_come_is_an_error_of_the_call, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, mut raw) = raw(&folder).await;
    raw.send(&echo_of_a_file());
    let answer = raw.receive().unwrap().to_string();
    assert!(answer.contains("a file that did not come with its message"), "{answer}");
    // One that is announced, and does not come, breaks the protocol.
    raw.send(&[announcement(), echo_of_a_file()].concat());
    assert!(raw.receive().is_none_or(|last| last.as_array().unwrap()[0] == 3.into()));
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    let error: Result<Blob, Error> = client.call("echo", (Blob::default(),)).await;
    error.unwrap();
});
