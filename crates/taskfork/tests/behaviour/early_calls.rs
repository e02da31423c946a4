//! The first call of a new worker, where the one before it has greeted at once: sent before the greeting, and not
//! begun if there is none.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use taskfork::client::Value;
use taskfork::error::{FatalError, Stage};
use taskfork::{Client, Error};

use crate::support::raw::{Raw, fake, frame, greet, map, of_call, text};
use crate::support::{trial, until};

/// A client that expects workers to greet at once, of a server that does with each connection what `next` does.
async fn after_a_greeting(
    folder: &tempfile::TempDir,
    mut next: impl FnMut(Raw) + Send + 'static,
) -> Client {
    let is_known = Arc::new(AtomicBool::new(false));
    let known = is_known.clone();
    let client = fake(folder, move |mut raw| {
        if known.load(SeqCst) {
            return next(raw);
        }
        greet(&mut raw, 1);
        answer(&mut raw, 1);
        raw.receive();
    });
    // On a busy machine it takes some attempts until a greeting comes at once.
    loop {
        let start = Instant::now();
        assert_eq!(client.call::<i32>("x", ()).await.unwrap(), 1);
        let is_at_once = start.elapsed() < Duration::from_millis(5);
        let is_gone = || client.stats().idle + client.stats().busy == 0;
        until("the worker is gone", is_gone).await;
        if is_at_once {
            is_known.store(true, SeqCst);
            return client;
        }
    }
}

fn answer(raw: &mut Raw, value: i32) {
    raw.send_message(vec![1.into(), of_call(1), value.into()]);
}

/// What a client says before it has been greeted, its first call with it.
fn hear_call(raw: &mut Raw) {
    raw.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    std::io::Read::read_exact(&mut raw.0, &mut [0; 8]).unwrap();
    raw.receive().unwrap();
    let call = raw.receive().unwrap();
    assert_eq!(call.as_array().unwrap()[0], Value::from(1));
}

fn say_hello(raw: &mut Raw) -> std::io::Result<()> {
    let hello = map(&[("version", 1.into()), ("pid", 4_000_000.into())]);
    let hello = frame(vec![0.into(), hello]);
    raw.0.write_all(&[b"taskfork", &hello[..]].concat())
}

trial!(a_first_call_goes_with_the_hello, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = after_a_greeting(&folder, |mut raw| {
        hear_call(&mut raw);
        say_hello(&mut raw).unwrap();
        answer(&mut raw, 2);
        raw.drain();
    })
    .await;
    let checkout = client.checkout();
    assert_eq!(checkout.call::<i32>("x", ()).await.unwrap(), 2);
});

trial!(an_early_call_is_retried_if_no_hello_comes, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 1;
    let client = after_a_greeting(&folder, move |mut raw| {
        count += 1;
        if count == 2 {
            hear_call(&mut raw);
            return;
        }
        // No caller expects a greeting after that.
        greet(&mut raw, 1);
        answer(&mut raw, count);
        raw.drain();
    })
    .await;
    let before = client.stats().connected;
    assert_eq!(client.call::<i32>("x", ()).await.unwrap(), 3);
    assert_eq!(client.stats().connected, before + 1);
});

trial!(an_early_call_reports_a_refusal, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = after_a_greeting(&folder, |mut raw| {
        raw.send(b"taskfork");
        let why = map(&[("kind", text("busy")), ("message", text("no room here"))]);
        raw.send_message(vec![2.into(), map(&[]), why]);
    })
    .await;
    let error = client.call::<i32>("x", ()).await.unwrap_err();
    let Error::Fatal { cause: FatalError::CannotConnect { reason, .. }, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(reason.to_string().contains("no room here"), "{reason}");
    assert!(!error.may_have_run());
});

trial!(a_late_hello_starts_no_call, async || {
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = mpsc::channel();
    let mut late = None;
    let client = after_a_greeting(&folder, move |mut raw| {
        let Some(mut late) = late.take() else {
            hear_call(&mut raw);
            late = Some(raw);
            return;
        };
        // The client has given that one up.
        tell.send(say_hello(&mut late).map_err(|error| error.kind())).unwrap();
        greet(&mut raw, 1);
        answer(&mut raw, 3);
        raw.drain();
    })
    .await;
    assert_eq!(client.call::<i32>("x", ()).await.unwrap(), 3);
    assert_eq!(told.recv().unwrap(), Err(std::io::ErrorKind::BrokenPipe));
});

trial!(the_next_checkout_does_not_wait_for_a_missing_hello, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut late = None;
    let client = after_a_greeting(&folder, move |mut raw| {
        if late.is_none() {
            late = Some(raw);
            return;
        }
        greet(&mut raw, 1);
        answer(&mut raw, 3);
        raw.drain();
    })
    .await;
    // It has the worker before that has greeted, and gives it back.
    let checkout = client.checkout();
    until("it has a worker", || client.stats().busy == 1).await;
    drop(checkout);
    until("it is given back", || client.stats().idle == 1).await;
    assert_eq!(client.call::<i32>("x", ()).await.unwrap(), 3);
});

trial!(a_call_that_times_out_before_the_hello_has_not_run, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = Vec::new();
    let client = after_a_greeting(&folder, move |mut raw| {
        hear_call(&mut raw);
        kept.push(raw);
    })
    .await;
    let checkout = client.checkout().timeout(Duration::from_millis(30));
    let error = checkout.call::<i32>("x", ()).await.unwrap_err();
    let Error::Fatal { cause: FatalError::TimedOut { stage, .. }, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(*stage, Stage::Waiting);
    assert!(!error.may_have_run());
});

trial!(ready_waits_for_the_hello, async || {
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = mpsc::channel();
    let client = after_a_greeting(&folder, move |mut raw| {
        std::io::Read::read_exact(&mut raw.0, &mut [0; 8]).unwrap();
        raw.receive().unwrap();
        tell.send(()).unwrap();
        say_hello(&mut raw).unwrap();
        raw.drain();
    })
    .await;
    let checkout = client.checkout();
    checkout.ready().await.unwrap();
    assert!(told.try_recv().is_ok());
});
