//! Hellos of another version of the protocol, and hellos whose frames or limits are too long or too short.

use taskfork::Error;
use taskfork::client::Value;
use taskfork::error::FatalError;

use crate::bad_peers::Logged;
use crate::support::raw::{Raw, fake, frame, map, text};
use crate::support::{start_with, trial};

/// Why a client has no worker whose first bytes are these.
async fn reason(greeting: impl Fn() -> Vec<u8> + Send + 'static) -> String {
    let folder = tempfile::tempdir().unwrap();
    let client = fake(&folder, move |mut raw| {
        raw.send(&greeting());
        raw.drain();
    });
    let error = client.call::<i32>("x", ()).await.unwrap_err();
    assert!(!error.may_have_run());
    match error {
        Error::Fatal { cause: FatalError::CannotConnect { reason, .. }, .. } => reason.to_string(),
        other => panic!("{other:?}"),
    }
}

fn hello(meta: &[(&str, Value)]) -> Vec<u8> {
    [b"taskfork", &frame(vec![0.into(), map(meta)])[..]].concat()
}

trial!(a_worker_of_another_version_is_refused, async || {
    let reason = reason(|| hello(&[("version", 99.into()), ("pid", 1.into())])).await;
    let expected = "the server speaks version 99 of the protocol, and this client offered [1]";
    assert!(reason.contains(expected), "{reason}");
});

trial!(a_worker_with_a_tiny_frame_limit_is_refused, async || {
    let reason = reason(|| hello(&[("version", 1.into()), ("max_frame", 0.into())])).await;
    let expected = "takes frames of at most 0 bytes, and at least 256 are needed";
    assert!(reason.contains(expected), "{reason}");
});

trial!(a_worker_hello_over_the_frame_limit_is_refused, async || {
    let reason = reason(|| [&b"taskfork"[..], &(1_u32 << 20).to_le_bytes()].concat()).await;
    let expected = "a frame of 1048576 bytes is over the limit of 16384";
    assert!(reason.contains(expected), "{reason}");
});

trial!(a_client_with_a_tiny_frame_limit_is_refused, async || {
    let server = Logged::start();
    let mut raw = Raw::connect(&server.path()).await;
    let known = [("versions", Value::Array(vec![1.into()])), ("name", text("tiny"))];
    raw.send(&hello(&[&known[..], &[("max_frame", 10.into())]].concat()));
    let said = String::from_utf8_lossy(&raw.drain()).into_owned();
    let expected = "`tiny` takes frames of at most 10 bytes, and at least 256 are needed";
    assert!(said.contains(expected), "{said}");
});

trial!(a_client_hello_over_the_frame_limit_is_refused, async || {
    let server = Logged::start();
    let name = text(&"x".repeat(20_000));
    let known = [("versions", Value::Array(vec![1.into()])), ("name", name)];
    let expected = "bytes is over the limit of 16384";
    server.reject(false, &hello(&known), false, expected).await;
});

trial!(a_long_client_name_is_cut, async || {
    let name = "n".repeat(1 << 20);
    let (_server, client) = start_with("general", |client| client.name(name));
    client.call::<u32>("pid", ()).await.unwrap();
});
