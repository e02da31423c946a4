//! Peers that do not keep to the protocol, and the protocol spoken by hand.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use taskfork::client::Value;
use taskfork::error::FatalError;
use taskfork::{Client, Error};

use crate::support::processes::{Program, children};
use crate::support::raw::{Raw, fake, frame, greet, greet_as, map, of_call, text};
use crate::support::{address_in, programs, trial, until};

/// A server in a program of its own, with what it logs.
pub(crate) struct Logged {
    folder: tempfile::TempDir,
    program: Program,
}

impl Logged {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = programs::command(&["serve_logging", &address_in(&folder)]);
        command.stderr(std::fs::File::create(folder.path().join("log")).unwrap());
        let program = Program::new(command.spawn().unwrap());
        Self { folder, program }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// A client whose worker lives through what the test does.
    async fn bystander(&self) -> (taskfork::Checkout, u32) {
        let client =
            Client::builder().address(address_in(&self.folder)).min_workers(0).build().unwrap();
        let checkout = client.checkout();
        let pid = checkout.call("pid", ()).await.unwrap();
        (checkout, pid)
    }

    /// Sends `bytes` as a new client, and checks that the server closes the connection, logs
    /// the reason and still serves a bystander.
    pub(crate) async fn reject(&self, greet: bool, bytes: &[u8], half_close: bool, log: &str) {
        let (bystander, pid) = self.bystander().await;
        let mut raw = match greet {
            true => {
                let (mut raw, _) = Raw::greeted(&self.path()).await;
                // An answer shows that the worker is past its setup.
                raw.call("nothing", vec![]);
                raw.receive().unwrap();
                raw
            }
            false => Raw::connect(&self.path()).await,
        };
        raw.send(bytes);
        if half_close {
            raw.0.shutdown(std::net::Shutdown::Write).unwrap();
        }
        raw.drain();
        until(&format!("the log line {log:?}"), || self.log().contains(log)).await;
        assert_eq!(bystander.call::<u32>("pid", ()).await.unwrap(), pid);
        until("the worker's end", || children(self.program.pid()).len() == 1).await;
    }
}

trial!(a_client_written_from_the_protocol_document_works, async || {
    let server = Logged::start();
    let (mut raw, hello) = Raw::greeted(&server.path()).await;
    let hello = hello.as_array().unwrap();
    assert_eq!(hello[0], 0.into());
    let meta = |key: &str| {
        hello[1].as_map().unwrap().iter().find(|(k, _)| *k == text(key)).unwrap().1.clone()
    };
    assert_eq!(meta("version"), 1.into());
    assert_eq!(meta("server"), text("taskfork"));

    raw.call("add", vec![2.into(), 3.into()]);
    assert_eq!(raw.receive().unwrap(), Value::Array(vec![1.into(), of_call(1), 5.into()]));
    raw.send_message(vec![1.into(), map(&[]), Value::Nil, Value::Array(vec![7.into()])]);
    let list = Value::Array(vec![7.into()]);
    assert_eq!(raw.receive().unwrap(), Value::Array(vec![1.into(), of_call(2), list]));
    raw.call("boom", vec![text("no")]);
    let error = map(&[("kind", text("interface")), ("message", text("no"))]);
    assert_eq!(raw.receive().unwrap(), Value::Array(vec![2.into(), of_call(3), error]));
    raw.send_message(vec![2.into(), map(&[])]);
    raw.call("checkouts", vec![]);
    assert_eq!(raw.receive().unwrap(), Value::Array(vec![1.into(), of_call(4), 1.into()]));
    raw.call("pid", vec![]);
    assert_eq!(raw.receive().unwrap().as_array().unwrap()[2], meta("pid"));
});

trial!(unknown_meta_keys_are_ignored, async || {
    let server = Logged::start();
    let (mut raw, _) = Raw::greeted(&server.path()).await;
    let deep =
        map(&[("nested", Value::Array(vec![map(&[("a", 1.5.into())]), Value::Binary(vec![1])]))]);
    let meta = map(&[("later", deep), ("flag", true.into())]);
    raw.send_message(vec![
        1.into(),
        meta.clone(),
        text("add"),
        Value::Array(vec![2.into(), 3.into()]),
    ]);
    assert_eq!(raw.receive().unwrap().as_array().unwrap()[2], 5.into());
    raw.send_message(vec![2.into(), meta]);
    raw.call("checkouts", vec![]);
    assert_eq!(raw.receive().unwrap().as_array().unwrap()[2], 1.into());
});

trial!(a_death_is_reported_at_the_end_of_the_connection, async || {
    let server = Logged::start();
    let (mut raw, _) = Raw::greeted(&server.path()).await;
    raw.call("exit", vec![9.into()]);
    let notice = raw.receive().unwrap();
    let notice = notice.as_array().unwrap();
    assert_eq!(notice[0], 3.into());
    let meta = notice[1].as_map().unwrap();
    for (key, value) in [("exit", 9.into()), ("calls", 1.into()), ("during", text("call"))] {
        assert!(meta.contains(&(text(key), value)), "{key}: {meta:?}");
    }
    assert!(raw.receive().is_none());
});

trial!(a_client_of_another_version_gets_an_error, async || {
    let server = Logged::start();
    let mut raw = Raw::connect(&server.path()).await;
    raw.send(b"taskfork");
    raw.send_message(vec![
        0.into(),
        map(&[("versions", Value::Array(vec![99.into()])), ("name", text("new"))]),
    ]);
    let said = String::from_utf8_lossy(&raw.drain()).into_owned();
    assert!(said.contains("`new` speaks the protocol versions [99], this server [1]"), "{said}");
});

trial!(garbage_closes_only_its_connection, async || {
    let server = Logged::start();
    server
        .reject(
            false,
            b"GET / HTTP/1.1\r\n\r\n",
            false,
            "does not speak this protocol: it began with \"GET / HT\"",
        )
        .await;
    server
        .reject(
            true,
            &frame(vec![text("what?")]),
            false,
            "connection closed: a message is malformed",
        )
        .await;
    server.reject(true, &frame(vec![77.into(), map(&[])]), false, "no message of kind 77").await;
    server.reject(true, &[3, 0, 0, 0, 0xc1, 0xc1, 0xc1], false, "malformed").await;
});

trial!(an_oversize_frame_closes_only_its_connection, async || {
    let server = Logged::start();
    server
        .reject(
            true,
            &u32::MAX.to_le_bytes(),
            false,
            "a frame of 4294967295 bytes is over the limit of 67108864",
        )
        .await;
});

trial!(a_truncated_frame_closes_only_its_connection, async || {
    let server = Logged::start();
    server.reject(true, &[100, 0, 0, 0, 1, 2], true, "in the middle of a frame").await;
});

trial!(a_peer_that_stops_in_a_frame_is_closed, async || {
    let server = Logged::start();
    server
        .reject(
            true,
            &[100, 0, 0, 0, 1, 2],
            false,
            "the client stopped for 0.2 seconds in the middle of a frame",
        )
        .await;
});

trial!(a_server_that_sends_garbage_is_reported, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = fake(&folder, |mut raw| {
        raw.send(b"SSH-2.0-OpenSSH");
        raw.drain();
    });
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    assert!(
        matches!(error, Error::Fatal { cause: FatalError::CannotConnect { .. }, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("began with \"SSH-2.0-\""), "{error}");
});

trial!(a_server_that_sends_no_hello_times_out, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = Vec::new();
    let client = fake(&folder, move |raw| kept.push(raw));
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    assert!(error.to_string().contains("did not greet within 0.1 seconds"), "{error}");
});

trial!(garbage_in_an_answer_breaks_the_checkout, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = fake(&folder, |mut raw| {
        greet(&mut raw, 1);
        raw.send(&[2, 0, 0, 0, 0xc1, 0xc1]);
        raw.drain();
    });
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Fatal { cause: FatalError::Protocol { .. }, may_have_run: true, .. }
        ),
        "{error}"
    );
});

trial!(an_oversize_answer_breaks_the_checkout, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = fake(&folder, |mut raw| {
        greet(&mut raw, 1);
        raw.send(&u32::MAX.to_le_bytes());
        raw.drain();
    });
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    assert!(error.to_string().contains("over the limit of 67108864"), "{error}");
    // The peer knew the limit: no option helps.
    assert!(!error.to_string().contains("max_frame"), "{error}");
});

trial!(an_unsolicited_answer_closes_only_its_connection, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut first = true;
    let client = fake(&folder, move |mut raw| {
        greet(&mut raw, 1);
        let mut answers = frame(vec![1.into(), of_call(1), 5.into()]);
        if std::mem::take(&mut first) {
            answers.extend(frame(vec![1.into(), of_call(1), 6.into()]));
        }
        // In one piece, so that the second is there when the first is read.
        raw.send(&answers);
        raw.receive();
        raw.drain();
    });
    assert_eq!(client.call::<u8>("five", ()).await.unwrap(), 5);
    // The answer that came on its own is never taken for this call's.
    assert_eq!(client.call::<u8>("five", ()).await.unwrap(), 5);
});

trial!(the_end_of_a_worker_that_reads_no_more_of_a_long_call_is_noticed, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut ended = Vec::new();
    let client = fake(&folder, move |mut raw| {
        if ended.is_empty() {
            greet(&mut raw, 0);
            raw.0.read_exact(&mut [0; 1000]).unwrap();
            // Its other side stays open, so no write fails.
            raw.0.shutdown(std::net::Shutdown::Write).unwrap();
            ended.push(raw);
        } else {
            greet(&mut raw, 1);
            raw.send_message(vec![1.into(), of_call(1), 5.into()]);
            raw.drain();
        }
    });
    let (checkout, long) =
        (client.checkout().timeout(Duration::from_secs(20)), "x".repeat(6 << 20));
    assert_eq!(checkout.call::<u8>("five", (long,)).await.unwrap(), 5);
});

trial!(a_call_that_every_worker_refuses_is_not_retried_forever, async || {
    let folder = tempfile::tempdir().unwrap();
    let tried = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&tried);
    let client = fake(&folder, move |mut raw| {
        greet(&mut raw, 1);
        count.fetch_add(1, Ordering::Relaxed);
        let death = [("pid", 7.into()), ("exit", 1.into()), ("calls", 0.into())];
        raw.send(&frame(vec![3.into(), map(&death)]));
    });
    let error = client.checkout().timeout(None).call::<()>("x", ()).await.unwrap_err();
    assert!(error.is_fatal() && error.to_string().contains("7"), "{error}");
    assert_eq!(tried.load(Ordering::Relaxed), 10);
});

// As of a process that a call has forked, and that has answered too.
trial!(the_answer_to_another_call_breaks_the_checkout, async || {
    let answers = [
        (of_call(1), "the answer to call 1"),
        (of_call(3), "the answer to call 3"),
        (map(&[]), "an answer without a number"),
    ];
    for (meta, said) in answers {
        let folder = tempfile::tempdir().unwrap();
        let client = fake(&folder, move |mut raw| {
            greet_as(&mut raw, &[("ahead", 1000.into())]);
            raw.receive();
            raw.send_message(vec![1.into(), of_call(1), 5.into()]);
            // Both calls that follow have come, and the second may have begun as well.
            (0..2).for_each(|_| drop(raw.receive()));
            raw.send_message(vec![1.into(), meta.clone(), 5.into()]);
            raw.send_message(vec![1.into(), of_call(2), 6.into()]);
            raw.drain();
        });
        let checkout = client.checkout();
        assert_eq!(checkout.call::<u8>("five", ()).await.unwrap(), 5);
        let calls = [0, 1].map(|_| checkout.call::<u8>("six", ()));
        for call in calls {
            let error = call.await.unwrap_err();
            let expected = format!("the worker sent {said} where that to call 2 was due");
            assert!(error.to_string().contains(&expected), "{error}");
            assert!(error.is_fatal() && error.may_have_run(), "{error:?}");
        }
        until("the worker to be left", || client.stats().busy + client.stats().idle == 0).await;
    }
});
