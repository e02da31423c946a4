//! What an error tells of both processes, and what a caller finds unchanged when it comes back.

use std::cell::Cell;
use std::panic::Location;

use taskfork::error::CallError;
use taskfork::{Client, Error};
use tracing::Instrument;

use crate::support::{start, start_with, trial};
use crate::typed::AdderCalls;

fn lines_of(error: &Error) -> Vec<String> {
    let report = error.report().to_string();
    assert_eq!(report, format!("{error:#}"));
    report.lines().map(str::to_owned).collect()
}

/// The line under the one that this is called in, as a report shows it.
#[track_caller]
fn next_line() -> String {
    let here = Location::caller();
    format!("  at {}:{}:", here.file(), here.line() + 1)
}

trial!(a_report_names_the_boundary_and_the_callers_line, async || {
    let (_server, client) = start_with("general", |client| client.name("shop"));
    let at = next_line();
    let call = client.checkout().call::<()>("boom", ("it went wrong",));
    let lines = lines_of(&call.await.unwrap_err());
    assert_eq!(lines[..2], ["it went wrong", "shop -> boom"]);
    assert!(lines[2].starts_with(&at), "{lines:?} {at}");
    assert_eq!(lines.len(), 3);
});

trial!(every_way_to_call_names_its_own_line, async || {
    let (server, client) = start("general");
    let check = |at: String, error: Error| {
        assert!(error.report().to_string().contains(&at), "{error:#} lacks {at}");
        assert_eq!(error.site().location().file(), file!());
    };
    let at = next_line();
    check(at, client.call::<()>("boom", ("x",)).await.unwrap_err());
    let at = next_line();
    check(at, client.call::<String>("nothing", ()).await.unwrap_err());
    let checkout = client.checkout();
    let at = next_line();
    let behind = (checkout.call::<()>("boom", ("x",)), checkout.call::<()>("nothing", ()));
    check(at.clone(), behind.1.await.unwrap_err());
    check(at, behind.0.await.unwrap_err());
    checkout.abort("over");
    let at = next_line();
    check(at, checkout.ready().await.unwrap_err());
    let at = next_line();
    let error = checkout.invoke::<()>(()).await.unwrap_err();
    assert_eq!(error.site().method(), None);
    assert!(error.report().to_string().contains("taskfork -> (no method)"), "{error:#}");
    check(at, error);

    let options = Client::builder().address(server.address());
    let work = move || {
        let client = options.build_blocking().unwrap();
        let at = next_line();
        let error = client.call::<()>("boom", ("x",)).unwrap_err();
        assert!(error.report().to_string().contains(&at), "{error:#} lacks {at}");
    };
    tokio::task::spawn_blocking(work).await.unwrap();

    let (_server, client) = start("typed");
    let at = next_line();
    let error = client.add("one").await.unwrap_err();
    assert!(error.report().to_string().contains(&at), "{error:#} lacks {at}");
    assert_eq!(error.site().method(), Some("add"));
});

trial!(the_workers_causes_are_in_the_report, async || {
    let (_server, client) = start("general");
    let error = client.call::<()>("chain", ()).await.unwrap_err();
    let lines = lines_of(&error);
    let chain = ["outer", "  caused by: inner", "  caused by: innermost", "taskfork -> chain"];
    assert_eq!(lines[..4], chain);

    let (_server, client) = start("setup_second_time");
    let error = client.call::<()>("any", ()).await.unwrap_err();
    assert!(lines_of(&error)[0].starts_with("setup exception: "), "{error:#}");
});

trial!(a_report_of_a_panic_has_its_place, async || {
    let (_server, client) = start("general");
    let error = client.call::<()>("panic", ("what now",)).await.unwrap_err();
    let lines = lines_of(&error);
    assert!(lines[0].starts_with("panicked: what now (crates/taskfork/tests/"), "{lines:?}");
    assert!(lines.contains(&"taskfork -> panic".to_owned()), "{lines:?}");
});

trial!(a_panic_has_the_workers_stack_where_that_is_asked_for, async || {
    for (asked, expected) in [("1", true), ("0", false)] {
        let folder = tempfile::tempdir().unwrap();
        let listen = crate::support::address_in(&folder);
        let mut command = crate::support::programs::command(&["serve", &listen]);
        command.env("RUST_BACKTRACE", asked).env_remove("RUST_LIB_BACKTRACE");
        command.stderr(std::process::Stdio::null());
        let _program = crate::support::processes::Program::new(command.spawn().unwrap());
        let client = Client::builder().address(&listen).min_workers(0).build().unwrap();
        let error = client.call::<()>("deep_panic", ()).await.unwrap_err();
        let Error::Call { error: CallError::Panic(panic), .. } = &error else { panic!("{error}") };
        assert_eq!(panic.stack.is_some(), expected);
        let report = error.report().to_string();
        assert_eq!(report.contains("panic_far_below"), expected, "{report}");
        assert!(report.contains("tests/behaviour/support/servers.rs"), "{report}");
        // Neither what raises a panic nor what serves calls is of interest.
        for noise in ["panicking", "taskfork::worker::serve", "event_loop"] {
            assert!(!report.contains(noise), "{report}");
        }
    }
});

trial!(a_report_of_a_death_names_the_call, async || {
    let (_server, client) = start("general");
    let at = next_line();
    let error = client.call::<()>("segv", ()).await.unwrap_err();
    let lines = lines_of(&error);
    assert!(lines[0].contains("SIGSEGV during a call"), "{lines:?}");
    assert_eq!(lines[1], "taskfork -> segv");
    assert!(lines[2].starts_with(&at), "{lines:?}");
});

trial!(the_spans_around_the_caller_are_in_the_report, async || {
    use tracing_subscriber::prelude::*;
    let spans = tracing_subscriber::registry().with(tracing_error::ErrorLayer::default());
    let _guard = tracing::subscriber::set_default(spans);
    let (_server, client) = start("general");
    let outer = tracing::info_span!("request", user = 17);
    let error = async {
        let inner = tracing::info_span!("payment");
        client.call::<()>("boom", ("no money",)).instrument(inner).await.unwrap_err()
    };
    let error = error.instrument(outer).await;
    let report = error.report().to_string();
    if cfg!(not(feature = "spans")) {
        return assert!(!report.contains("payment"), "{report}");
    }
    let (payment, request) = (report.find("::payment"), report.find("::request"));
    assert!(payment.is_some() && payment < request, "{report}");
    assert!(report.contains("with user=17"), "{report}");
    assert!(report.find("taskfork -> boom") < payment, "{report}");
});

trial!(an_error_in_one_line_is_one_line, async || {
    let (_server, client) = start("general");
    for method in ["chain", "segv", "no_such_method"] {
        let error = client.call::<()>(method, ()).await.unwrap_err();
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
});

tokio::task_local! {
    static REQUEST: Cell<u32>;
}

trial!(task_locals_are_what_they_were, async || {
    let (_server, client) = start("general");
    let tasks = (0..20u32).map(|number| {
        let client = client.clone();
        tokio::spawn(REQUEST.scope(Cell::new(number), async move {
            for _ in 0..5 {
                let back: u32 = client.call("echo", (number,)).await.unwrap();
                assert_eq!(back, REQUEST.with(Cell::get));
            }
            client.call::<()>("boom", ("x",)).await.unwrap_err();
            assert_eq!(REQUEST.with(Cell::get), number);
        }))
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }

    // A call that one task has made and another waits for.
    let checkout = client.checkout();
    let call = REQUEST.sync_scope(Cell::new(1), || checkout.call::<u32>("echo", (7,)));
    let waiting = REQUEST.scope(Cell::new(2), async move {
        let back = call.await.unwrap();
        (back, REQUEST.with(Cell::get))
    });
    assert_eq!(tokio::spawn(waiting).await.unwrap(), (7, 2));
});

trial!(the_span_is_what_it_was, async || {
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry());
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let outer = tracing::info_span!("outer");
    let made = outer.in_scope(|| checkout.call::<()>("sleep", (5,)));
    let inner = tracing::info_span!("inner");
    let id = inner.id();
    assert!(id.is_some());
    async {
        made.await.unwrap();
        assert_eq!(tracing::Span::current().id(), id);
        checkout.call::<()>("boom", ("x",)).await.unwrap_err();
        assert_eq!(tracing::Span::current().id(), id);
    }
    .instrument(inner)
    .await;
    assert!(tracing::Span::current().is_none());
});
