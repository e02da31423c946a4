//! What workers record with `tracing`, in their callers' subscribers.

use std::time::{Duration, SystemTime};

use taskfork::client::Value;
use taskfork::{BoxError, Client, Methods, ServerBuilder, ServerError};
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, Level};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, filter};

use crate::support::capture::{Capture, Seen, capture, listen};
use crate::support::processes::signal;
use crate::support::raw::{frame, map, text};
use crate::support::{address_in, programs, start, start_with, trial, until};

/// Its workers record.
pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("work", |count: u64| {
            let span = tracing::info_span!("working", count, later = tracing::field::Empty);
            let _inside = span.enter();
            span.record("later", "now");
            tracing::warn!(target: "elsewhere", reason = "tests", "it is {}", "late");
            std::thread::sleep(Duration::from_millis(2));
            tracing::debug_span!("deeper").in_scope(|| tracing::debug!("deep"));
            Ok(line!())
        })
        .function("values", || {
            let error = std::io::Error::other("wrong");
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::info!(
                unsigned = u64::MAX,
                signed = 5,
                negative = -5,
                float = 0.5,
                truth = true,
                text = "text",
                debug = ?Some("text"),
                error,
            );
            Ok(())
        })
        .function("is_enabled", || {
            Ok((tracing::enabled!(Level::INFO), tracing::enabled!(Level::DEBUG)))
        })
        .function("fail", |panics: bool| -> Result<(), BoxError> {
            tracing::error!("it will fail");
            assert!(!panics, "it panicked");
            Err("failed".into())
        })
        .function("hang", || -> Result<(), BoxError> {
            let _inside = tracing::info_span!("hanging").entered();
            tracing::info!("last words");
            loop {
                std::thread::park();
            }
        })
        .function("flood", |events: u64| {
            for number in 0..events {
                tracing::info!(number, "one of many");
            }
            Ok(())
        })
        .function("long", |length: usize| {
            tracing::info!(text = "é".repeat(length), after = 1);
            Ok(())
        })
        .function("thread", || {
            let thread = std::thread::spawn(|| tracing::info!("from a thread"));
            thread.join().map_err(|_| "it panicked".into())
        })
        .function("leave_open", || {
            std::mem::forget(tracing::info_span!("left open").entered());
            Ok(())
        })
        .function("pid", || Ok(std::process::id()));
    server.interface(methods).run()
}

/// Its workers write events to standard error as well.
pub(crate) fn own_subscriber(own: ServerBuilder) -> Result<(), ServerError> {
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(layer).with(taskfork::worker::tracing_layer()).init();
    server(own)
}

trial!(spans_and_events_arrive_within_the_span_of_the_call, async || {
    let (_server, client) = start("spans");
    let (seen, _guard) = listen();
    let before = SystemTime::now();
    let request = tracing::info_span!("request");
    let checkout = client.checkout();
    let pid = checkout.call::<u32>("pid", ()).await.unwrap();
    let call = async { checkout.call::<u32>("work", (17_u64,)).await };
    let line = call.instrument(request.clone()).await.unwrap();
    let after = SystemTime::now();

    let (working, late) = (seen.one("working"), seen.one("it is late"));
    assert_eq!(working.parent.as_deref(), Some("request"));
    assert_eq!((working.level, &*working.target), (Some(Level::INFO), module_path!()));
    assert_eq!((working.field("count"), working.field("later")), ("u64 17", "str now"));
    assert_eq!(late.parent.as_deref(), Some("working"));
    assert_eq!((late.level, &*late.target), (Some(Level::WARN), "elsewhere"));
    assert_eq!(late.field("reason"), "str tests");
    for (seen, above) in [(&working, 6), (&late, 3)] {
        assert!(seen.file.as_deref().unwrap().ends_with(file!()), "{seen:?}");
        assert_eq!(seen.line, Some(line - above));
        assert_eq!(seen.field("worker.pid"), format!("u64 {pid}"));
    }
    let deep = seen.one("deep");
    assert_eq!((deep.parent.as_deref(), deep.level), (Some("deeper"), Some(Level::DEBUG)));

    let time = |seen: &Seen, name: &str| humantime(seen.field(name));
    let created = time(&working, "worker.time");
    let (entered, closed) = (time(&working, "worker.entered"), time(&working, "worker.closed"));
    assert!(before - Duration::from_millis(1) <= created && created <= entered);
    assert!(entered < time(&late, "worker.time") && time(&late, "worker.time") < closed);
    assert!(closed <= after);
    let busy: f64 = working.field("worker.busy").strip_prefix("f64 ").unwrap().parse().unwrap();
    assert!((0.002..after.duration_since(before).unwrap().as_secs_f64()).contains(&busy), "{busy}");

    // As often left as entered, in the caller's process as well, and all closed but the caller's.
    let all = seen.all();
    for name in ["working", "deeper"] {
        let count = |what| all.iter().filter(|seen| seen.name == name && seen.what == what).count();
        assert_eq!((count("enter"), count("exit")), (1, 1), "{name}");
        assert!(!seen.one(name).open);
    }
    assert!(seen.one("request").open);
    assert!(tracing::Span::current().is_none());
    drop(request);
    assert!(!seen.one("request").open);
});

fn humantime(text: &str) -> SystemTime {
    let text = text.strip_suffix('Z').unwrap_or_else(|| panic!("no time: {text}"));
    let (_, clock) = text.split_once('T').unwrap();
    let parts: Vec<f64> = clock.split(':').map(|part| part.parse().unwrap()).collect();
    let seconds = parts[0] * 3600.0 + parts[1] * 60.0 + parts[2];
    // Of this day: a test that runs across midnight is one day off, and tells.
    let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 86400;
    SystemTime::UNIX_EPOCH + Duration::from_secs(today * 86400) + Duration::from_secs_f64(seconds)
}

trial!(values_keep_their_types, async || {
    let (_server, client) = start("spans");
    let (seen, _guard) = listen();
    client.call::<()>("values", ()).await.unwrap();
    let all = seen.all();
    let event = &all[0];
    let expected = [
        ("unsigned", &*format!("u64 {}", u64::MAX)),
        ("signed", "i64 5"),
        ("negative", "i64 -5"),
        ("float", "f64 0.5"),
        ("truth", "bool true"),
        ("text", "str text"),
        ("debug", "Some(\"text\")"),
        ("error", "wrong"),
    ];
    for (name, value) in expected {
        assert_eq!(event.field(name), value, "{name}");
    }
    // The event is in no span.
    assert_eq!(event.parent, None);
});

trial!(the_callers_level_travels_with_the_call, async || {
    // In a process of its own, as a program's level is that of all its subscribers together.
    assert_eq!(programs::output(&["listen_at_info"]), "(true, false) [\"it is late\"]\n");
});

pub(crate) fn listen_at_info() {
    let capture = Capture::default();
    let layer = capture.clone().with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(layer).init();
    let server = taskfork::Server::spawn("spans").unwrap();
    let options = Client::builder().address(server.address()).max_workers(1);
    let client = options.build_blocking().unwrap();
    let enabled: (bool, bool) = client.call("is_enabled", ()).unwrap();
    client.call::<u32>("work", (1_u64,)).unwrap();
    println!("{enabled:?} {:?}", capture.messages());
}

trial!(without_a_listener_nothing_is_recorded, async || {
    let (_server, client) = start_with("spans", |client| client.max_workers(1));
    let enabled = async || client.call::<(bool, bool)>("is_enabled", ()).await.unwrap();
    assert_eq!(enabled().await, (false, false));
    let (_, guard) = listen();
    assert!(enabled().await.0);
    drop(guard);
    assert_eq!(enabled().await, (false, false));
});

trial!(spans_of_failed_calls_arrive, async || {
    let (_server, client) = start("spans");
    for panics in [false, true] {
        let (seen, _guard) = listen();
        client.call::<()>("fail", (panics,)).await.unwrap_err();
        assert_eq!(seen.messages(), ["it will fail"]);
    }
});

trial!(a_killed_workers_last_events_are_there, async || {
    let (_server, client) = start("spans");
    let (seen, _guard) = listen();
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let call = tokio::spawn(checkout.call::<()>("hang", ()));
    until("the event is there", || seen.messages() == ["last words"]).await;
    let hanging = seen.one("hanging");
    assert!(hanging.open);
    signal(pid, libc::SIGKILL);
    call.await.unwrap().unwrap_err();
    assert!(!seen.one("hanging").open);
    let all = seen.all();
    let count = |what| all.iter().filter(|seen| seen.what == what).count();
    assert_eq!(count("enter"), count("exit"));
});

trial!(disabled_spans_are_left_out_and_their_events_kept, async || {
    let (_server, client) = start("spans");
    let seen = Capture::default();
    let targets = filter::Targets::new().with_target("elsewhere", Level::INFO);
    let targets = targets.with_target("behaviour::spans::caller", Level::INFO);
    let _guard =
        tracing_subscriber::registry().with(seen.clone().with_filter(targets)).set_default();
    let span = tracing::info_span!(target: "behaviour::spans::caller", "request");
    let call = async { client.call::<u32>("work", (1_u64,)).await };
    call.instrument(span).await.unwrap();
    assert_eq!(seen.messages(), ["it is late"]);
    assert_eq!(seen.one("it is late").parent.as_deref(), Some("request"), "{:?}", seen.all());
    assert!(seen.all().iter().all(|seen| seen.name != "working"));
});

trial!(a_flood_is_bounded_and_counted, async || {
    const MANY: u64 = 200_000;
    let (_server, client) = start("spans");
    let (seen, _guard) = listen();
    client.call::<()>("flood", (MANY,)).await.unwrap();
    let (mut dropped, mut kept) = (0, Vec::new());
    for event in seen.all() {
        let count = |name| event.field(name).strip_prefix("u64 ").unwrap().parse::<u64>().unwrap();
        if event.message() == "one of many" {
            kept.push(count("number"));
        } else {
            assert_eq!(event.message(), "the worker recorded more than it could keep");
            dropped += count("dropped");
        }
    }
    assert!(dropped > 0);
    assert!(kept.is_sorted());
    assert_eq!(kept.len() as u64 + dropped, MANY);
});

trial!(long_values_are_cut, async || {
    let (_server, client) = start("spans");
    let (seen, _guard) = listen();
    client.call::<()>("long", (1_000_000,)).await.unwrap();
    let event = &seen.all()[0];
    let text = event.field("text").strip_prefix("str ").unwrap();
    assert!((2000..4000).contains(&text.len()), "{}", text.len());
    assert!(text.ends_with("é…"));
});

trial!(events_of_all_threads_of_a_worker_arrive, async || {
    let (_server, client) = start("spans");
    let (seen, _guard) = listen();
    client.call::<()>("thread", ()).await.unwrap();
    assert_eq!(seen.messages(), ["from a thread"]);
});

trial!(a_worker_with_a_subscriber_of_its_own_adds_the_layer, async || {
    let (_server, client) = start("spans_own_subscriber");
    let (seen, _guard) = listen();
    client.call::<u32>("work", (1_u64,)).await.unwrap();
    assert_eq!(seen.messages(), ["it is late", "deep"]);
    // Its own has been told as well.
    let call = client.checkout().timeout(Duration::from_millis(300)).call::<()>("hang", ());
    call.await.unwrap_err();
});

trial!(spans_that_a_worker_leaves_open_are_closed_by_the_caller, async || {
    let (_server, client) = start("spans");
    let (seen, _guard) = listen();
    client.call::<()>("leave_open", ()).await.unwrap();
    assert!(!seen.one("left open").open);
    assert!(tracing::Span::current().is_none());
});

trial!(calls_awaited_elsewhere_arrive_where_they_were_made, async || {
    let (_server, client) = start("spans");
    let (seen, dispatch) = capture();
    let checkout = client.checkout();
    let call = tracing::dispatcher::with_default(&dispatch, || {
        tracing::info_span!("request").in_scope(|| checkout.call::<u32>("work", (1_u64,)))
    });
    tokio::spawn(call).await.unwrap().unwrap();
    assert_eq!(seen.one("working").parent.as_deref(), Some("request"));
});

trial!(the_blocking_facade_replays_too, async || {
    let options =
        |address: taskfork::client::Address| Client::builder().address(address).max_workers(1);
    let server = taskfork::Server::spawn("spans").unwrap();
    let address = server.address();
    let messages = tokio::task::spawn_blocking(move || {
        let client = options(address).build_blocking().unwrap();
        let (seen, _guard) = listen();
        client.call::<u32>("work", (1_u64,)).unwrap();
        seen.messages()
    });
    assert_eq!(messages.await.unwrap(), ["it is late", "deep"]);
});

trial!(hostile_records_harm_no_result, async || {
    let array = |values: &[Value]| Value::Array(values.to_vec());
    let numbers = |values: &[u64]| Value::Array(values.iter().map(|&n| n.into()).collect());
    let site =
        map(&[("name", text("hostile")), ("span", true.into()), ("fields", array(&[text("one")]))]);
    let span = |span: u64, parent: u64| {
        let values = Value::Map(vec![(0.into(), array(&[])), (99.into(), 1.into())]);
        array(&[1.into(), span.into(), 1.into(), parent.into(), 1.into(), values])
    };
    let told = array(&[0.into(), 1.into(), site]);
    let traces = [
        text("no array"),
        array(&[text("no record"), array(&[]), numbers(&[77, 1])]),
        // Spans in a ring, one made twice, one of no site; left unentered, closed twice.
        array(&[
            told.clone(),
            span(1, 2),
            span(2, 1),
            span(2, 2),
            array(&[1.into(), 3.into(), 9.into(), 0.into(), 0.into(), map(&[])]),
            numbers(&[5, 1, 0]),
            numbers(&[6, 1, u64::MAX / 4]),
            numbers(&[6, 1, 0]),
            numbers(&[3, 2, 2]),
            numbers(&[4, 2, 5]),
            numbers(&[4, 2, 4]),
        ]),
        array(&[array(&[0.into(), 2.into(), map(&[("level", text("high"))])]), numbers(&[8, 5])]),
    ];
    let folder = tempfile::tempdir().unwrap();
    let frame_of = |trace: &Value| frame(vec![4.into(), map(&[("trace", trace.clone())])]);
    crate::logs::impostor(&folder, traces.iter().map(frame_of).collect());
    let options = Client::builder().address(address_in(&folder)).min_workers(0).max_workers(1);
    let client = options.build().unwrap();
    let (seen, _guard) = listen();
    assert_eq!(client.call::<i64>("any", ()).await.unwrap(), 42);
    assert_eq!(
        seen.messages(),
        ["what the worker recorded cannot be read", "the worker recorded more than it could keep"]
    );
    let all = seen.all();
    assert_eq!(all.iter().filter(|seen| seen.what == "span").count(), 2);
    assert!(all.iter().all(|seen| !seen.open));
    assert!(tracing::Span::current().is_none());
});
