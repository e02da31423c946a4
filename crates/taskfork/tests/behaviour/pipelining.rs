//! Calls that are sent before the answers to those before them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskfork::client::Value;
use taskfork::error::{CallError, FatalError};
use taskfork::{Checkout, Error};

use crate::bad_peers::Logged;
use crate::support::raw::{Raw, fake, greet_as, map, of_call, text};
use crate::support::{start, start_with, trial};

/// The kinds of calls on the wire.
const FIRST: u64 = 1;
const BEHIND: u64 = 3;

fn kind(message: &Value) -> u64 {
    message.as_array().unwrap()[0].as_u64().unwrap()
}

fn ok(call: u64, value: impl Into<Value>) -> Vec<Value> {
    vec![1.into(), of_call(call), value.into()]
}

fn skipped(call: u64) -> Vec<Value> {
    vec![5.into(), of_call(call)]
}

fn behind(method: &str, args: Vec<Value>) -> Vec<Value> {
    vec![BEHIND.into(), map(&[]), text(method), Value::Array(args)]
}

/// The results of three calls made at once.
async fn three(checkout: &Checkout) -> [Result<u64, Error>; 3] {
    let calls = [0, 1, 2].map(|_| checkout.call::<u64>("number", ()));
    let [first, second, third] = calls;
    [first.await, second.await, third.await]
}

trial!(queued_calls_are_sent_before_answers_come, async || {
    let folder = tempfile::tempdir().unwrap();
    let kinds = Arc::new(Mutex::new(Vec::new()));
    let seen = kinds.clone();
    let client = fake(&folder, move |mut raw| {
        greet_as(&mut raw, &[("ahead", 1000.into())]);
        let calls: Vec<_> = (0..3).filter_map(|_| raw.receive()).collect();
        seen.lock().unwrap().extend(calls.iter().map(kind));
        (1..=3).for_each(|number: u64| raw.send_message(ok(number, number)));
        raw.drain();
    });
    let checkout = client.checkout();
    let answers = three(&checkout).await.map(Result::unwrap);
    assert_eq!(answers, [1, 2, 3]);
    assert_eq!(*kinds.lock().unwrap(), [FIRST, BEHIND, BEHIND]);
});

trial!(a_worker_without_pipelining_gets_one_call_at_a_time, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = fake(&folder, |mut raw| {
        greet_as(&mut raw, &[]);
        for number in 1..=3_u64 {
            assert_eq!(raw.receive().as_ref().map(kind), Some(FIRST));
            raw.0.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            assert_eq!(raw.receive(), None, "another call came before the answer");
            raw.0.set_read_timeout(None).unwrap();
            raw.send_message(ok(number, number));
        }
        raw.drain();
    });
    let checkout = client.checkout();
    assert_eq!(three(&checkout).await.map(Result::unwrap), [1, 2, 3]);
});

trial!(the_client_pipelines_no_more_than_the_worker_accepts, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = fake(&folder, |mut raw| {
        // The first call exceeds this.
        greet_as(&mut raw, &[("ahead", 20.into())]);
        let mut calls = 0;
        raw.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        while raw.receive().is_some() {
            calls += 1;
        }
        raw.0.set_read_timeout(None).unwrap();
        raw.send_message(ok(1, calls));
        for number in [2, 3] {
            raw.receive();
            raw.send_message(ok(number, 0));
        }
        raw.drain();
    });
    let checkout = client.checkout();
    assert_eq!(three(&checkout).await.map(Result::unwrap), [1, 0, 0]);
});

trial!(a_worker_skips_calls_pipelined_after_a_failed_call, async || {
    let server = Logged::start();
    let (mut raw, hello) = Raw::greeted(&server.path()).await;
    let ahead = hello.as_array().unwrap()[1].as_map().unwrap();
    assert!(ahead.contains(&(text("ahead"), (64 << 10).into())), "{ahead:?}");
    raw.call("boom", vec![text("no")]);
    raw.send_message(behind("remember", vec![text("ran")]));
    raw.send_message(behind("nothing", vec![]));
    raw.call("note", vec![]);
    raw.send_message(behind("pid", vec![]));
    assert_eq!(kind(&raw.receive().unwrap()), 2);
    assert_eq!(raw.receive().unwrap(), Value::Array(skipped(2)));
    assert_eq!(raw.receive().unwrap(), Value::Array(skipped(3)));
    assert_eq!(raw.receive().unwrap(), Value::Array(ok(4, "")));
    assert_eq!(kind(&raw.receive().unwrap()), 1);
    raw.call("exit", vec![1.into()]);
    let notice = raw.receive().unwrap();
    let notice = notice.as_array().unwrap()[1].as_map().unwrap();
    assert!(notice.contains(&(text("calls"), 6.into())), "{notice:?}");
});

trial!(a_worker_skips_cancelled_calls, async || {
    let server = Logged::start();
    let (mut raw, _) = Raw::greeted(&server.path()).await;
    raw.call("sleep", vec![50.into()]);
    raw.send_message(behind("remember", vec![text("never")]));
    raw.send_message(behind("note", vec![]));
    raw.send_message(vec![4.into(), map(&[]), 2.into()]);
    assert_eq!(raw.receive().unwrap(), Value::Array(ok(1, Value::Nil)));
    assert_eq!(raw.receive().unwrap(), Value::Array(skipped(2)));
    assert_eq!(raw.receive().unwrap(), Value::Array(ok(3, "")));
    // What is over already is not taken back any more.
    raw.send_message(vec![4.into(), map(&[]), 3.into()]);
    raw.call("nothing", vec![]);
    assert_eq!(raw.receive().unwrap(), Value::Array(ok(4, Value::Nil)));
});

trial!(the_timeout_of_a_pipelined_call_starts_when_it_is_made, async || {
    let (_server, client) = start("deadlines");
    let checkout = client.checkout().timeout(Duration::from_secs(100));
    let slow = checkout.call::<bool>("late", (300,));
    let left = checkout.call::<(Duration, Duration, bool)>("left", ());
    slow.await.unwrap();
    let (left, ..) = left.await.unwrap();
    assert!(left < Duration::from_millis(99_700), "{left:?} are left");
    assert!(left > Duration::from_secs(60), "{left:?} are left");

    let checkout = client.checkout().timeout(Duration::from_millis(500));
    let slow = checkout.call::<bool>("late", (300,));
    let interrupted = checkout.call::<u32>("blocking", (60,));
    assert!(!slow.await.unwrap());
    let error = interrupted.await.unwrap_err();
    assert_eq!(error.to_string().lines().next().unwrap(), "interrupted, and cleaned up");
});

trial!(answers_match_their_calls_after_a_failure_in_a_long_queue, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    for round in 0..20 {
        let failing = round * 13 % 200;
        let calls: Vec<_> = (0..200_u64)
            .map(|number| match number == failing {
                true => checkout.call::<u64>("boom", ("no",)),
                false => checkout.call::<u64>("echo", (number,)),
            })
            .collect();
        for (number, call) in (0..).zip(calls) {
            let ended = call.await;
            match ended {
                Ok(answer) => assert!(number < failing && answer == number),
                Err(Error::Call { error: CallError::Interface(_), .. }) => {
                    assert_eq!(number, failing);
                }
                Err(Error::Call { error: CallError::Dropped { .. }, .. }) => {
                    assert!(number > failing);
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(checkout.call::<u64>("echo", (round,)).await.unwrap(), round);
    }
});

trial!(the_next_checkout_gets_its_own_answers_after_a_failure, async || {
    let (_server, client) =
        start_with("general", |client| client.max_workers(1).reuse_after_error(true));
    let pid: u32 = client.call("pid", ()).await.unwrap();
    for number in 0..50_u64 {
        let checkout = client.checkout();
        let failing = checkout.call::<()>("boom", ("no",));
        let dropped: Vec<_> =
            (0..number).map(|number| checkout.call::<u64>("echo", (number,))).collect();
        failing.await.unwrap_err();
        drop((checkout, dropped));
        assert_eq!(client.call::<u64>("echo", (number,)).await.unwrap(), number);
    }
    assert_eq!(client.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(a_large_call_half_sent_after_a_failed_one_is_harmless, async || {
    let (_server, client) =
        start_with("general", |client| client.max_workers(1).reuse_after_error(true));
    let checkout = client.checkout();
    let large = "x".repeat(20 << 20);
    let slow = checkout.call::<()>("sleep", (30,));
    let failing = checkout.call::<()>("boom", ("no",));
    let dropped = checkout.call::<String>("echo", (&large,));
    slow.await.unwrap();
    failing.await.unwrap_err();
    dropped.await.unwrap_err();
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    drop(checkout);
    assert_eq!(client.call::<String>("echo", (&large,)).await.unwrap(), large);
});

trial!(large_calls_and_large_answers_do_not_deadlock, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let text = "x".repeat(50_000);
    let mut calls = Vec::new();
    for round in 0..100_usize {
        let call = match round % 10 {
            9 => checkout.call::<Value>("blob", (3_000_000,)),
            _ => checkout.call::<Value>("echo", (&text,)),
        };
        calls.push((round, call));
    }
    for (round, call) in calls {
        match (call.await.unwrap(), round % 10) {
            (Value::Binary(blob), 9) => assert_eq!(blob.len(), 3_000_000),
            (answer, _) => assert_eq!(answer, Value::from(text.as_str())),
        }
    }
});

trial!(calls_queued_when_a_worker_dies_do_not_run, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let before = checkout.call::<i64>("add", (1, 2));
    let slow = checkout.call::<()>("sleep", (20,));
    let deadly = checkout.call::<()>("exit", (3,));
    let behind = [(); 3].map(|()| checkout.call::<()>("nothing", ()));
    assert_eq!(before.await.unwrap(), 3);
    slow.await.unwrap();
    let error = deadly.await.unwrap_err();
    assert!(error.is_fatal() && error.may_have_run(), "{error}");
    for call in behind {
        let error = call.await.unwrap_err();
        assert!(error.is_fatal() && !error.may_have_run(), "{error}");
    }
});

trial!(calls_that_are_not_awaited_are_sent, async || {
    let (_server, client) = start("general");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let checkout = client.checkout();
    checkout.ready().await.unwrap();
    let append = |text: &'static str| checkout.call::<()>("append", (file.to_str().unwrap(), text));
    let _calls = ["a", "b", "c", "d"].map(append);
    crate::support::until("all of them", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text == "abcd")
    })
    .await;
});

trial!(several_tasks_share_the_queue, async || {
    let (_server, client) = start("general");
    let checkout = Arc::new(client.checkout());
    let tasks: Vec<_> = (0..50_u64)
        .map(|task| {
            let checkout = checkout.clone();
            tokio::spawn(async move {
                for number in 0..20 {
                    let wanted = task * 100 + number;
                    assert_eq!(checkout.call::<u64>("echo", (wanted,)).await.unwrap(), wanted);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
});

trial!(an_answer_to_a_skipped_call_breaks_the_checkout, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = fake(&folder, |mut raw| {
        greet_as(&mut raw, &[("ahead", 1000.into())]);
        (0..3).for_each(|_| drop(raw.receive()));
        let error = map(&[("kind", text("interface")), ("message", text("no"))]);
        raw.send_message(vec![2.into(), of_call(1), error]);
        raw.receive();
        raw.send_message(ok(2, 5));
        raw.drain();
    });
    let checkout = client.checkout();
    let [first, second, third] = three(&checkout).await;
    assert!(matches!(first, Err(Error::Call { error: CallError::Interface(_), .. })));
    for dropped in [second, third] {
        assert!(matches!(dropped, Err(Error::Call { error: CallError::Dropped { .. }, .. })));
    }
    let error = checkout.call::<u64>("number", ()).await.unwrap_err();
    assert!(matches!(error, Error::Fatal { cause: FatalError::Protocol { .. }, .. }), "{error}");
});

trial!(a_long_call_behind_many_skipped_ones_is_sent, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let first = checkout.call::<()>("sleep", (100,));
    let failing = checkout.call::<()>("boom", ("no",));
    let skipped: Vec<_> = (0..1500).map(|_| checkout.call::<()>("nothing", ())).collect();
    first.await.unwrap();
    failing.await.unwrap_err();
    // The worker cannot read it before its answers of the skipped calls are read.
    let long = "x".repeat(6 << 20);
    assert_eq!(checkout.call::<String>("echo", (&long,)).await.unwrap(), long);
    drop(skipped);
});
