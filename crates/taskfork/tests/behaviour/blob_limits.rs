//! The longest blob that is handed over, and the longest message that a blob may become instead.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use taskfork::blob::BlobMut;
use taskfork::client::Value;
use taskfork::error::CallError;
use taskfork::{Blob, Client, Error};

use crate::files::{announcement, echo_of_a_file, send_with};
use crate::support::raw::{Raw, frame, greet_as, of_call};
use crate::support::{address_in, programs, start, start_with, trial};

/// Memory without pages, as it was never written to.
fn sparse(length: usize) -> Blob {
    BlobMut::new(length).unwrap().freeze().unwrap()
}

/// The same, however long.
fn sealed(length: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("taskfork-blob", flags).unwrap();
    ftruncate(&file, length).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
    file
}

trial!(a_longer_blob_than_the_server_takes_is_an_error_of_its_call, async || {
    let (_server, client) = start("files");
    let checkout = client.checkout();
    // More than the default.
    for length in [400 << 20, 1 << 40] {
        let error = checkout.call::<Blob>("echo", (sparse(length),)).await.unwrap_err();
        assert!(matches!(error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error}");
        assert!(error.to_string().contains("takes 268435456 of one as memory"), "{error}");
        assert!(!error.may_have_run());
    }
    // Less than that, and more than a message of this server.
    let blob = sparse(200 << 20);
    assert_eq!(checkout.call::<Blob>("echo", (&blob,)).await.unwrap().len(), 200 << 20);
    let (_server, client) = start("files_small_blobs");
    let error = client.call::<Blob>("echo", (sparse(10 << 20),)).await.unwrap_err();
    assert!(error.to_string().contains("takes 1048576 of one as memory"), "{error}");
});

trial!(a_longer_blob_than_the_client_takes_is_an_error_of_its_call, async || {
    let (_server, client) = start_with("files", |client| client.max_blob(1 << 20));
    let checkout = client.checkout();
    let error = checkout.call::<Blob>("make", (10 << 20,)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Result { .. }, .. }), "{error}");
    assert!(error.to_string().contains("takes 1048576 of one as memory"), "{error}");
});

trial!(a_blob_over_the_limit_is_sent_where_a_message_may_be_so_long, async || {
    let (_server, client) = start_with("files_small_blobs", |client| client.max_blob(1 << 20));
    for (length, is_shared) in [(1 << 20, true), (2 << 20, false)] {
        let (there, maps) =
            client.call::<(usize, bool)>("shares", (sparse(length),)).await.unwrap();
        assert_eq!((there, maps), (length, is_shared));
        assert_eq!(client.call::<Blob>("make", (length,)).await.unwrap(), vec![7; length].into());
    }
    // One of each.
    let pair: Vec<Blob> = client.call("both", (sparse(1 << 20), sparse(2 << 20))).await.unwrap();
    assert_eq!(pair.iter().map(|blob| blob.len()).collect::<Vec<_>>(), [1 << 20, 2 << 20]);
});

trial!(a_client_that_exceeds_the_blob_limit_is_disconnected, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_files", &address_in(&folder)]);
    for length in [(256 << 20) + 1, 400 << 20, 1 << 40] {
        let (mut raw, hello) = Raw::greeted(&folder.path().join("s")).await;
        assert!(hello.to_string().contains(r#""max_blob": 268435456"#), "{hello}");
        send_with(&raw, &[announcement(), echo_of_a_file()].concat(), &[sealed(length)]);
        let last = raw.receive();
        assert!(last.as_ref().is_none_or(|last| last[0] == 3.into()), "{last:?}");
    }
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    assert_eq!(client.call::<Blob>("echo", (sparse(100_000),)).await.unwrap().len(), 100_000);
});

trial!(a_worker_that_exceeds_the_blob_limit_fails_the_call, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    std::thread::spawn(move || {
        let mut raw = Raw::accept(&listener);
        greet_as(&mut raw, &[("files", 16.into())]);
        for (call, length) in [(1, 400 << 20), (2, 1 << 40)] {
            raw.receive();
            let result = frame(vec![1.into(), of_call(call), Value::Ext(1, vec![0; 4])]);
            send_with(&raw, &[announcement(), result].concat(), &[sealed(length)]);
        }
        raw.drain();
    });
    let client = Client::builder().address(address_in(&folder)).min_workers(0).build().unwrap();
    let checkout = client.checkout();
    let error = checkout.call::<Blob>("any", ()).await.unwrap_err();
    assert!(error.to_string().contains("and the limit is 268435456 (max_blob)"), "{error}");
    let error = checkout.call::<Value>("any", ()).await.unwrap_err();
    assert!(error.to_string().contains("and the limit is 268435456 (max_blob)"), "{error}");
});

trial!(bytes_of_another_kind_than_a_blob_count_against_the_frame, async || {
    let (_server, client) = start("files");
    let checkout = client.checkout();
    assert_eq!(checkout.call::<usize>("value", (sparse(1 << 20),)).await.unwrap(), 1 << 20);
    let error = checkout.call::<usize>("value", (sparse(9 << 20),)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error}");
    assert!(error.to_string().contains("the limit is 8388608; only a `Blob`"), "{error}");
    let (_server, client) = start_with("files", |client| client.max_frame(1 << 20));
    let error = client.call::<Value>("make", (2 << 20,)).await.unwrap_err();
    assert!(error.to_string().contains("the limit is 1048576; only a `Blob`"), "{error}");
});

trial!(a_program_gets_no_more_than_a_frame, async || {
    let (_server, client) = start("executable");
    let error = client.call::<Value>("echo", (sparse(100 << 20),)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error}");
    assert!(error.to_string().contains("67108864 in a message"), "{error}");
});
