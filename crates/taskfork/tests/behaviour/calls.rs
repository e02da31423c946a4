//! Calls and the order in which they run.

use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use taskfork::Error;
use taskfork::client::{BusyPoll, Value};
use taskfork::error::{CallError, FatalError};

use crate::support::{start, start_with, trial, until};

trial!(a_call_returns_its_result, async || {
    let (_server, client) = start("general");
    assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
});

trial!(values_of_all_kinds_come_back_as_they_were, async || {
    let (_server, client) = start("general");
    let list = Value::Array(vec![
        Value::Nil,
        true.into(),
        (-5).into(),
        u64::MAX.into(),
        1.5.into(),
        "é".into(),
        Value::Binary(vec![0, 255]),
        Value::Map(vec![("key".into(), Value::Array(vec![]))]),
    ]);
    assert_eq!(client.call::<Value>("echo", (&list,)).await.unwrap(), list);
    assert_eq!(client.call::<Vec<i64>>("args", vec![1, 2]).await.unwrap(), [1, 2]);
});

trial!(a_call_without_a_method_runs, async || {
    let (_server, client) = start("general");
    let back: (i64, String) = client.invoke((1, "two")).await.unwrap();
    assert_eq!(back, (1, "two".to_owned()));
});

trial!(one_function_can_be_the_whole_interface, async || {
    let (_server, client) = start("function");
    assert_eq!(client.call::<i64>("double", (4,)).await.unwrap(), 8);
    assert_eq!(client.invoke::<i64>((4,)).await.unwrap(), 4);
    assert_eq!(client.call::<i64>("sing", (4,)).await.unwrap_err().to_string(), "cannot sing");
    let error = client.invoke::<i64>(("four",)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error}");
});

trial!(calls_run_in_the_order_they_were_made_however_they_are_awaited, async || {
    let (_server, client) = start("general");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("order").display().to_string();
    let checkout = client.checkout();
    let calls: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|text| checkout.call::<()>("append", (&file, text)))
        .collect();
    for call in calls.into_iter().rev() {
        call.await.unwrap();
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), "abcd");
});

trial!(calls_wait_for_a_worker_that_is_not_there_yet, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let first = client.checkout();
    first.ready().await.unwrap();
    let second = client.checkout();
    let calls = (second.call::<i64>("add", (1, 1)), second.call::<i64>("add", (2, 2)));
    assert_eq!(client.stats().queued, 1);
    drop(first);
    assert_eq!((calls.0.await.unwrap(), calls.1.await.unwrap()), (2, 4));
});

trial!(a_call_that_is_not_awaited_runs, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let _kept = checkout.call::<()>("remember", ("written",));
    assert_eq!(checkout.call::<String>("note", ()).await.unwrap(), "written");
});

trial!(a_call_dropped_before_it_was_sent_does_not_run, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let slow = checkout.call::<()>("sleep", (50,));
    drop(checkout.call::<()>("remember", ("never",)));
    let note = checkout.call::<String>("note", ());
    slow.await.unwrap();
    assert_eq!(note.await.unwrap(), "");
});

trial!(a_call_dropped_while_it_runs_does_not_affect_others, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let slow = checkout.call::<()>("sleep", (50,));
    drop(slow);
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(a_call_outlives_its_checkout, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let (first, second) =
        (checkout.call::<()>("sleep", (20,)), checkout.call::<i64>("add", (1, 2)));
    drop(checkout);
    first.await.unwrap();
    assert_eq!(second.await.unwrap(), 3);
});

trial!(dropping_a_running_call_and_its_checkout_kills_the_worker, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let hanging = checkout.call::<()>("hang", ());
    drop(checkout);
    drop(hanging);
    until("the worker's end", || !crate::support::processes::is_alive(pid)).await;
    assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(a_checkout_is_shared_between_tasks, async || {
    let (_server, client) = start("general");
    let checkout = std::sync::Arc::new(client.checkout());
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let checkout = checkout.clone();
            tokio::spawn(async move {
                for other in 0..50 {
                    let sum: i64 = checkout.call("add", (number, other)).await.unwrap();
                    assert_eq!(sum, number + other);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
});

trial!(a_checkout_keeps_its_worker_and_its_state, async || {
    let (_server, client) = start("general");
    let (one, two) = (client.checkout(), client.checkout());
    one.call::<()>("remember", ("one",)).await.unwrap();
    two.call::<()>("remember", ("two",)).await.unwrap();
    assert_eq!(one.call::<String>("note", ()).await.unwrap(), "one");
    assert_eq!(two.call::<String>("note", ()).await.unwrap(), "two");
    let pids = (one.call::<u32>("pid", ()), two.call::<u32>("pid", ()));
    assert_ne!(pids.0.await.unwrap(), pids.1.await.unwrap());
});

trial!(large_messages_arrive_complete, async || {
    let (_server, client) = start("general");
    let bytes = serde_bytes::ByteBuf::from((0..5_000_000u32).map(|n| n as u8).collect::<Vec<_>>());
    let back: serde_bytes::ByteBuf = client.call("echo", (&bytes,)).await.unwrap();
    assert!(back == bytes);
    let blob: serde_bytes::ByteBuf = client.call("blob", (60 << 20,)).await.unwrap();
    assert_eq!(blob.len(), 60 << 20);
});

trial!(waiting_for_the_worker_alone, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let first = client.checkout();
    first.ready().await.unwrap();
    let second = client.checkout().timeout(Duration::from_millis(50));
    let error = second.ready().await.unwrap_err();
    assert!(matches!(error, Error::Fatal { cause: FatalError::TimedOut { .. }, .. }), "{error}");
});

trial!(waiting_for_the_worker_keeps_the_order_of_the_queue, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let call = checkout.call::<()>("remember", ("first",));
    checkout.ready().await.unwrap();
    drop(call);
    assert_eq!(checkout.call::<String>("note", ()).await.unwrap(), "first");
});

trial!(an_unawaited_answer_is_kept, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let kept = checkout.call::<i64>("add", (20, 22));
    for _ in 0..100 {
        checkout.call::<()>("nothing", ()).await.unwrap();
    }
    assert_eq!(kept.await.unwrap(), 42);
});

/// A task that counts how often it is woken. Clones of its waker differ from it, as those of some runtimes do.
#[expect(unsafe_code, reason = "only a waker with functions of its own differs from its clones")]
mod counting_task {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{RawWaker, RawWakerVTable, Waker};

    static WOKEN: AtomicUsize = AtomicUsize::new(0);

    static FIRST: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, ignore);
    static CLONES: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, forget);

    fn clone(_: *const ()) -> RawWaker {
        RawWaker::new(std::ptr::null(), &CLONES)
    }

    fn wake(_: *const ()) {
        WOKEN.fetch_add(1, Ordering::SeqCst);
    }

    fn ignore(_: *const ()) {}

    fn forget(data: *const ()) {
        // A function of its own, or the compiler could merge the two tables.
        assert!(data.is_null());
    }

    pub(super) fn waker() -> Waker {
        // SAFETY: the functions use no data, and can be called by any thread at any time.
        unsafe { Waker::from_raw(RawWaker::new(std::ptr::null(), &FIRST)) }
    }

    pub(super) fn woken() -> usize {
        WOKEN.load(Ordering::SeqCst)
    }
}

trial!(a_task_is_not_woken_for_an_answer_that_it_has_taken, async || {
    let (_server, client) = start_with("general", |client| client.busy_poll(BusyPoll::Off));
    client.call::<i64>("add", (1, 1)).await.unwrap();
    let waker = counting_task::waker();
    assert!(!waker.will_wake(&waker.clone()));
    let mut context = Context::from_waker(&waker);
    let mut call = pin!(client.call::<i64>("add", (2, 3)));
    assert!(call.as_mut().poll(&mut context).is_pending());
    until("an answer", || counting_task::woken() > 0).await;
    let woken = counting_task::woken();
    let Poll::Ready(result) = call.as_mut().poll(&mut context) else { panic!("no answer") };
    assert_eq!((result.unwrap(), counting_task::woken()), (5, woken));
});
