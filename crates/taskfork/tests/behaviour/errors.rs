//! What goes wrong in a call and leaves the checkout usable, and what ends it.

use std::error::Error as _;
use std::time::Duration;

use taskfork::Error;
use taskfork::client::Value;
use taskfork::error::{CallError, FatalError};

use crate::support::processes::is_alive;
use crate::support::{start, start_with, trial, until};

trial!(an_error_arrives_with_its_causes, async || {
    let (_server, client) = start("general");
    let error = client.call::<()>("chain", ()).await.unwrap_err();
    assert_eq!(error.to_string(), "outer");
    let inner = error.source().unwrap();
    let innermost = inner.source().unwrap();
    assert_eq!(
        (inner.to_string().as_str(), innermost.to_string().as_str()),
        ("inner", "innermost")
    );
    assert!(!error.is_fatal() && error.may_have_run());
});

trial!(an_error_is_caught_and_the_call_tried_again, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let outcome = async {
        checkout.call::<()>("boom", ("first",)).await?;
        Ok::<_, Error>(())
    };
    let error = outcome.await.unwrap_err();
    assert!(
        matches!(&error, Error::Call { error: CallError::Interface(failure), .. } if failure.message() == "first")
    );
    assert_eq!(checkout.call::<i64>("add", (1, 1)).await.unwrap(), 2);
});

trial!(a_panic_arrives_with_its_message_and_place, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let error = checkout.call::<()>("panic", ("at the disco",)).await.unwrap_err();
    let Error::Call { error: CallError::Panic(panic), .. } = &error else { panic!("{error}") };
    assert_eq!(panic.message, "at the disco");
    let place = panic.location.as_ref().unwrap();
    assert!(place.file.ends_with("servers.rs") && place.line > 1, "{place:?}");
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(calls_pipelined_after_a_failed_one_do_not_run, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let failing = checkout.call::<()>("boom", ("no",));
    let behind = [checkout.call::<()>("remember", ("ran",)), checkout.call::<()>("nothing", ())];
    failing.await.unwrap_err();
    for call in behind {
        let error = call.await.unwrap_err();
        assert!(matches!(error, Error::Call { error: CallError::Dropped { .. }, .. }), "{error}");
        assert_eq!(error.to_string(), "not run because the call of `boom` failed before it");
        assert!(!error.may_have_run());
    }
    assert_eq!(checkout.call::<String>("note", ()).await.unwrap(), "");
});

trial!(calls_made_before_the_failure_is_seen_are_dropped_too, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let failing = checkout.call::<()>("boom", ("no",));
    // After this the call has failed, although its error has not been awaited.
    checkout.ready().await.unwrap_err();
    let behind = checkout.call::<()>("remember", ("ran",));
    failing.await.unwrap_err();
    assert!(matches!(behind.await, Err(Error::Call { error: CallError::Dropped { .. }, .. })));
    assert_eq!(checkout.call::<String>("note", ()).await.unwrap(), "");
});

trial!(the_checkout_is_usable_after_an_error_and_keeps_its_state, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    checkout.call::<()>("remember", ("kept",)).await.unwrap();
    checkout.call::<()>("boom", ("no",)).await.unwrap_err();
    assert_eq!(checkout.call::<String>("note", ()).await.unwrap(), "kept");
});

trial!(after_an_error_the_worker_is_replaced, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    checkout.call::<()>("boom", ("no",)).await.unwrap_err();
    drop(checkout);
    assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), pid);
    until("the old worker's end", || !is_alive(pid)).await;
});

trial!(after_an_error_the_worker_is_kept_if_so_configured, async || {
    let (_server, client) =
        start_with("general", |client| client.max_workers(1).reuse_after_error(true));
    let pid: u32 = client.call("pid", ()).await.unwrap();
    client.call::<()>("boom", ("no",)).await.unwrap_err();
    client.call::<()>("panic", ("no",)).await.unwrap_err();
    assert_eq!(client.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(an_unknown_method_is_named_with_those_there_are, async || {
    let (_server, client) = start("general");
    let error = client.call::<()>("fly", ()).await.unwrap_err();
    let Error::Call { error: CallError::UnknownMethod { method, known }, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(method.as_deref(), Some("fly"));
    assert!(known.iter().any(|name| name == "echo"));
    assert!(error.to_string().starts_with("unknown method `fly`: there is abort, add"), "{error}");
    assert!(!error.may_have_run());
});

trial!(arguments_of_the_wrong_type_are_named_by_position, async || {
    let (_server, client) = start("general");
    let few = client.call::<i64>("add", (1,)).await.unwrap_err();
    assert_eq!(few.to_string(), "bad arguments: expected 2 arguments, got 1");
    let wrong = client.call::<i64>("add", (1, "two")).await.unwrap_err();
    let expected = "bad arguments: argument 2 of `add`: expected an integer, got a string";
    assert_eq!(wrong.to_string(), expected);
    assert!(!wrong.may_have_run() && !wrong.is_fatal());
});

trial!(a_result_that_cannot_be_encoded_is_an_error_and_no_death, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let error = checkout.call::<Value>("unencodable", ()).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Result { .. }, .. }), "{error}");
    assert!(error.to_string().contains("a handle of this process"), "{error}");
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(arguments_that_cannot_be_encoded_are_an_error, async || {
    struct Stubborn;
    impl serde::Serialize for Stubborn {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("will not travel"))
        }
    }
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let error = checkout.call::<()>("echo", (1, Stubborn)).await.unwrap_err();
    assert_eq!(error.to_string(), "bad arguments: argument 2: will not travel");
    assert_eq!(checkout.call::<i64>("add", (1, 1)).await.unwrap(), 2);
});

trial!(arguments_beyond_the_size_limit_are_an_error, async || {
    let (_server, client) = start("small_frames");
    let checkout = client.checkout();
    let error = checkout.call::<()>("echo", ("x".repeat(1000),)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error}");
    assert!(error.to_string().contains("limit of a message is 1000"), "{error}");
    assert_eq!(checkout.call::<i64>("add", (1, 1)).await.unwrap(), 2);
});

trial!(a_result_beyond_the_size_limit_is_an_error, async || {
    let (_server, client) = start("small_frames");
    let checkout = client.checkout();
    let error = checkout.call::<Value>("blob", (1000,)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Result { .. }, .. }), "{error}");
    assert!(error.to_string().contains("limit of 1000"), "{error}");
    assert_eq!(checkout.call::<i64>("add", (1, 1)).await.unwrap(), 2);
});

trial!(an_answer_of_the_wrong_type_is_an_error, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let error = checkout.call::<u32>("echo", ("text",)).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Decode { .. }, .. }), "{error}");
    assert_eq!(checkout.call::<i64>("add", (1, 1)).await.unwrap(), 2);
});

trial!(a_timeout_kills_the_worker_and_names_the_time, async || {
    let (_server, client) =
        start_with("general", |client| client.timeout(Duration::from_millis(250)).max_workers(1));
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let error = checkout.call::<()>("hang", ()).await.unwrap_err();
    assert_eq!(error.to_string(), "timed out after 0.25 seconds while running (timeout)");
    assert!(error.is_fatal() && error.may_have_run());
    until("the worker's end", || !is_alive(pid)).await;
    assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(the_timeout_covers_the_wait_and_belongs_to_the_checkout, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let busy = client.checkout();
    busy.ready().await.unwrap();
    let waiting = client.checkout().timeout(Duration::from_millis(100));
    let error = waiting.call::<()>("nothing", ()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "timed out after 0.1 seconds while waiting for a worker (timeout)"
    );
    assert!(!error.may_have_run());
    assert_eq!(client.stats().queued, 0);
    busy.call::<()>("sleep", (150,)).await.unwrap();
});

trial!(no_timeout_is_possible, async || {
    let (_server, client) =
        start_with("general", |client| client.timeout(Duration::from_millis(50)));
    let checkout = client.checkout().timeout(None);
    checkout.call::<()>("sleep", (150,)).await.unwrap();
});

trial!(a_fatal_error_sticks_to_the_checkout, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let dying = checkout.call::<()>("exit", (3,));
    let behind = checkout.call::<()>("nothing", ());
    let first = dying.await.unwrap_err();
    for later in [behind.await, checkout.call("nothing", ()).await, checkout.ready().await] {
        let later = later.unwrap_err();
        assert_eq!(later.to_string(), first.to_string());
        assert!(later.is_fatal() && !later.may_have_run());
    }
});

trial!(abort_fails_the_checkout, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let hanging = checkout.call::<()>("hang", ());
    checkout.abort("stop it");
    let error = hanging.await.unwrap_err();
    assert!(
        matches!(&error, Error::Fatal { cause: FatalError::Aborted { message }, .. } if message == "stop it")
    );
    until("the worker's end", || !is_alive(pid)).await;
    assert_eq!(checkout.call::<()>("nothing", ()).await.unwrap_err().to_string(), "stop it");
    client.call::<()>("nothing", ()).await.unwrap();
});

trial!(abort_ends_a_checkout_that_waits, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let busy = client.checkout();
    busy.ready().await.unwrap();
    let waiting = client.checkout();
    let call = waiting.call::<()>("nothing", ());
    waiting.abort("never mind");
    assert_eq!(call.await.unwrap_err().to_string(), "never mind");
    assert_eq!(client.stats().queued, 0);
});
