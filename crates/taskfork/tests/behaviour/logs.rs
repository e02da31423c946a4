//! What workers log, in their callers' logs.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskfork::client::Value;
use taskfork::log_defer::{Level, Log, Message};
use taskfork::worker::logger;
use taskfork::{BoxError, Client, Methods, ServerBuilder, ServerError};

use crate::support::processes::signal;
use crate::support::raw::{Raw, frame, map, of_call, text};
use crate::support::{address_in, start, start_with, trial, until};

/// What each worker does that logs.
pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("work", |text: String| {
            logger().info((&text, 17));
            let timer = logger().timer("inner");
            std::thread::sleep(Duration::from_millis(2));
            timer.stop();
            logger().data("answer", 42);
            Ok(text.len())
        })
        .function("fail", || -> Result<(), BoxError> {
            logger().warn("it will fail");
            Err("failed".into())
        })
        .function("panic", || -> Result<(), BoxError> {
            logger().warn("it will panic");
            panic!("panicked")
        })
        .function("hang", |line: String| -> Result<(), BoxError> {
            logger().info(line);
            loop {
                std::thread::park();
            }
        })
        .function("levels", || {
            logger().log(Level::new(15), "custom");
            logger().debug("debugging");
            Ok(logger().is_enabled(Level::DEBUG))
        })
        .function("slowly", |lines: u64| {
            for number in 0..lines {
                logger().info(number.to_string());
                logger().info("x".repeat(5000));
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })
        .function("flood", |lines: u64, bytes: usize| {
            for number in 0..lines {
                logger().info(("line", number));
            }
            logger().error("x".repeat(bytes));
            Ok(lines)
        })
        .function("pid", || Ok(std::process::id()));
    server
        .setup(|| {
            logger().info("set up");
            logger().debug("in detail");
            Ok::<_, BoxError>(())
        })
        .checkout_done(|_: &mut ()| {
            logger().info("cleaned up");
            Ok::<_, BoxError>(())
        })
        .interface(methods)
        .run()
}

/// A log, and where its message will be.
fn new_log() -> (Log, Arc<Mutex<Option<Message>>>) {
    let finished = Arc::new(Mutex::new(None));
    let place = finished.clone();
    (Log::new(move |message| *place.lock().unwrap() = Some(message)), finished)
}

fn lines(message: &Message) -> Vec<&str> {
    message.logs.iter().filter_map(|entry| entry.items[0].as_str()).collect()
}

fn timers(message: &Message) -> Vec<&str> {
    message.timers.iter().map(|timer| &*timer.name).collect()
}

trial!(a_workers_log_arrives_within_its_call, async || {
    let (_server, client) = start("logs");
    let (log, finished) = new_log();
    let checkout = client.checkout().log(&log);
    checkout.ready().await.unwrap();
    log.info("before");
    assert_eq!(checkout.call::<usize>("work", ("working",)).await.unwrap(), 7);
    log.info("after");
    drop((log, checkout));

    let message = finished.lock().unwrap().take().unwrap();
    let mut lines = lines(&message);
    lines.retain(|line| !matches!(*line, "set up" | "in detail"));
    assert_eq!(lines, ["before", "working", "after"]);
    assert_eq!(timers(&message), ["work", "inner"]);
    assert_eq!(message.data["answer"], 42);
    let (outer, inner) = (&message.timers[0], &message.timers[1]);
    // Two processes' clocks are compared, which give whole microseconds.
    let slack = 0.001;
    assert!(inner.from >= outer.from - slack, "{message:?}");
    assert!(inner.to.unwrap() <= outer.to.unwrap() + slack, "{message:?}");
    assert!(inner.to.unwrap() - inner.from >= 0.002, "{message:?}");
});

trial!(logs_survive_an_error_and_a_panic, async || {
    let (_server, client) = start("logs");
    let (log, _) = new_log();
    for method in ["fail", "panic"] {
        client.checkout().log(&log).call::<()>(method, ()).await.unwrap_err();
    }
    let message = log.message();
    assert!(lines(&message).contains(&"it will fail"), "{message:?}");
    assert!(lines(&message).contains(&"it will panic"), "{message:?}");
});

trial!(every_call_is_a_timer_however_it_ends, async || {
    let (_server, client) = start("logs");
    let (log, _) = new_log();
    let checkout = client.checkout().log(&log);
    let (work, failed, behind) = (
        checkout.call::<usize>("work", ("x",)),
        checkout.call::<()>("fail", ()),
        checkout.call::<()>("behind", ()),
    );
    work.await.unwrap();
    behind.await.unwrap_err();
    failed.await.unwrap_err();
    checkout.call::<()>("no_such_method", ()).await.unwrap_err();
    checkout.invoke::<()>(()).await.unwrap_err();
    let hang = checkout.call::<()>("hang", ("hanging",));
    until("hanging", || lines(&log.message()).contains(&"hanging")).await;
    checkout.abort("enough");
    hang.await.unwrap_err();
    checkout.call::<()>("over", ()).await.unwrap_err();

    let message = log.message();
    let mut names = timers(&message);
    names.retain(|name| *name != "inner");
    names.sort_unstable();
    let expected = ["->()", "behind", "fail", "hang", "no_such_method", "over", "work"];
    assert_eq!(names, expected);
    assert!(message.timers.iter().all(|timer| timer.to.is_some()), "{message:?}");
});

trial!(a_call_whose_turn_never_comes_is_a_timer_too, async || {
    let (_server, client) = start_with("logs", |client| client.max_workers(1));
    let (log, finished) = new_log();
    let holder = client.checkout();
    holder.ready().await.unwrap();
    let timeout = Duration::from_millis(30);
    let waiting = client.checkout().timeout(timeout).log(&log);
    // One that is taken back is none.
    drop(waiting.call::<usize>("taken_back", ()));
    waiting.call::<usize>("work", ("x",)).await.unwrap_err();
    drop((waiting, log));
    let message = finished.lock().unwrap().take().unwrap();
    assert_eq!(timers(&message), ["work"]);
    assert!(message.timers[0].to.unwrap() - message.timers[0].from >= 0.029, "{message:?}");
});

trial!(the_verbosity_travels_with_the_call, async || {
    let (_server, client) = start("logs");
    for (level, expected, debug) in [
        (Level::WARN, &["custom"][..], false),
        (Level::DEBUG, &["custom", "debugging"], true),
        (Level::new(12), &[], false),
    ] {
        let log = Log::builder().verbosity(level).start(drop);
        let checkout = client.checkout().log(&log);
        assert_eq!(checkout.call::<bool>("levels", ()).await.unwrap(), debug);
        let message = log.message();
        let mut lines = lines(&message);
        lines.retain(|line| expected.contains(line) || level < Level::INFO);
        assert_eq!(lines, expected);
    }
});

trial!(without_a_log_nothing_is_recorded, async || {
    let (_server, client) = start("logs");
    let checkout = client.checkout();
    assert!(!checkout.call::<bool>("levels", ()).await.unwrap());
    assert_eq!(checkout.call::<usize>("work", ("x",)).await.unwrap(), 1);
    // Nor is anything of it sent with a later call that has one.
    let log = Log::builder().verbosity(Level::DEBUG).start(drop);
    checkout.log(&log).call::<u32>("pid", ()).await.unwrap();
    assert!(log.message().logs.is_empty(), "{log:?}");
});

trial!(the_message_is_finished_with_the_checkout, async || {
    let (_server, client) = start("logs");
    let (log, finished) = new_log();
    let checkout = client.checkout().log(&log);
    drop(log);
    let call = checkout.call::<usize>("work", ("x",));
    drop(checkout);
    call.await.unwrap();
    let message = finished.lock().unwrap().take().unwrap();
    assert_eq!(timers(&message), ["work", "inner"]);

    // A dropped call ends, and its timer ends with it.
    let (log, finished) = new_log();
    let checkout = client.checkout().log(&log);
    let call = checkout.call::<()>("hang", ("hanging",));
    until("hanging", || lines(&log.message()).contains(&"hanging")).await;
    drop((log, call));
    assert!(finished.lock().unwrap().is_none());
    drop(checkout);
    let message = finished.lock().unwrap().take().unwrap();
    assert_eq!(timers(&message), ["hang"]);
});

trial!(a_killed_workers_last_log_lines_arrive, async || {
    let (_server, client) = start("logs");
    let (log, finished) = new_log();
    let checkout = client.checkout().log(&log);
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let call = checkout.call::<()>("hang", ("last words",));
    until("last words", || lines(&log.message()).contains(&"last words")).await;
    signal(pid, 9);
    let error = call.await.unwrap_err();
    assert!(error.to_string().contains("SIGKILL"), "{error}");
    drop((checkout, log));
    let message = finished.lock().unwrap().take().unwrap();
    assert_eq!(timers(&message), ["pid", "hang"]);
    assert_eq!(lines(&message).iter().filter(|line| **line == "last words").count(), 1);
});

trial!(long_calls_send_many_lines_once_each, async || {
    let (_server, client) = start("logs");
    let (log, _) = new_log();
    let checkout = client.checkout().log(&log);
    let call = checkout.call::<()>("slowly", (60,));
    // The first lines come while it runs; those too long for it come with the answer.
    until("0", || lines(&log.message()).contains(&"0")).await;
    assert!(!lines(&log.message()).contains(&"59"));
    call.await.unwrap();
    let message = log.message();
    for number in 0..60u64 {
        let count = lines(&message).iter().filter(|line| **line == number.to_string()).count();
        assert_eq!(count, 1, "{number}");
    }
    assert_eq!(lines(&message).iter().filter(|line| line.len() == 5000).count(), 60);
});

trial!(setup_and_checkout_done_log_to_the_next_call, async || {
    let (_server, client) = start("logs");
    let (log, _) = new_log();
    let checkout = client.checkout().log(&log);
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    assert_eq!(lines(&log.message()), ["set up", "in detail"]);
    drop(checkout);

    let (log, _) = new_log();
    let checkout = client.checkout().log(&log);
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
    assert_eq!(lines(&log.message()), ["cleaned up"]);
});

trial!(logs_of_setup_arrive_with_the_next_call, async || {
    let (_server, client) = start("logs");
    let log = Log::builder().verbosity(Level::INFO).start(drop);
    client.checkout().log(&log).call::<u32>("pid", ()).await.unwrap();
    assert_eq!(lines(&log.message()), ["set up"]);
});

/// What Perl programs write, of a worker whose clock is far behind.
const FROM_PERL: &str = r#"["ok",{"ld":{"start":"1.5","data":null,
    "logs":[[0.1,-5,"below"],["0.2",12.5,"between"],[0.3,"15","text"],[0.4,20,"warned"],
        [0.5,30,"informed"],[0.6,null,"odd"]],
    "timers":[[null,"0.1","0.2"],["query",0.1,0.35],["odd"]]}},"done"]"#;

fn check_what_perl_logged(message: &Message) {
    assert_eq!(lines(message), ["below", "between", "text", "warned"]);
    let levels: Vec<_> = message.logs.iter().map(|entry| entry.level.number()).collect();
    assert_eq!(levels, [-5.0, 12.5, 15.0, 20.0]);
    let durations: Vec<_> = message
        .timers
        .iter()
        .filter_map(|timer| Some((&*timer.name, timer.to? - timer.from)))
        .filter(|(name, _)| *name != "raw")
        .collect();
    assert_eq!(durations.len(), 2, "{message:?}");
    for ((name, took), (expected, time)) in durations.into_iter().zip([("", 0.1), ("query", 0.25)])
    {
        assert!(name == expected && (took - time).abs() < 1e-6, "{name} {took}");
    }
    assert_eq!(message.left_out, 2);
}

trial!(logs_of_perl_programs_are_filtered_and_keep_their_durations, async || {
    // Through a worker of ours, and straight from a server.
    let (_server, native) = start("executable");
    let (_folder, perl) = crate::perl::answered_with([FROM_PERL.to_owned()]);
    for client in [native, perl] {
        let log = Log::builder().verbosity(Level::WARN).start(drop);
        let checkout = client.checkout().log(&log);
        let done = checkout.call::<String>("raw", (FROM_PERL,)).await.unwrap();
        assert_eq!(done, "done");
        check_what_perl_logged(&log.message());
    }
});

trial!(floods_are_bounded_and_harm_no_result, async || {
    let (_server, client) = start("logs");
    let (log, _) = new_log();
    let checkout = client.checkout().log(&log);
    let lines_of = 1_000_000;
    assert_eq!(checkout.call::<u64>("flood", (lines_of, 10 << 20)).await.unwrap(), lines_of);
    let message = log.message();
    assert!(lines(&message).len() < 200_000);
    let told = lines(&message).iter().any(|line| line.contains("were left out: a message takes"));
    assert!(told, "{:?}", message.logs.last());
    assert_eq!(checkout.call::<usize>("work", ("still",)).await.unwrap(), 5);
});

trial!(the_caller_learns_of_logs_too_long_for_the_connection, async || {
    let (_server, client) = start("logs_small_frames");
    let (log, _) = new_log();
    let checkout = client.checkout().log(&log);
    assert_eq!(checkout.call::<u64>("flood", (1, 2000)).await.unwrap(), 1);
    let message = log.message();
    let told = lines(&message).iter().any(|line| line.contains("could not be sent"));
    assert!(told, "{message:?}");
});

trial!(the_blocking_facade_logs_too, async || {
    let (server, _) = start("logs");
    let address = server.address();
    let work = move || {
        let log = Log::new(drop);
        let client = Client::builder().address(address).build_blocking().unwrap();
        client.checkout().log(&log).call::<usize>("work", ("x",)).unwrap();
        log.message()
    };
    let message = tokio::task::spawn_blocking(work).await.unwrap();
    assert!(lines(&message).contains(&"x"), "{message:?}");
    drop(server);
});

trial!(logs_can_be_read_by_hand, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listen = address_in(&folder);
    let command = crate::support::programs::command(&["serve_logs", &listen]).spawn().unwrap();
    let _program = crate::support::processes::Program::new(command);
    let (mut raw, _) = Raw::greeted(&path).await;
    let call = |log: Option<u32>, method: &str| {
        let meta = log.map_or(map(&[]), |level| map(&[("log", level.into())]));
        vec![1.into(), meta, text(method), Value::Array(vec![text("text")])]
    };
    // Entries from before the first call belong to the first call only.
    raw.send_message(call(None, "work"));
    assert_eq!(raw.receive().unwrap()[0], 1.into());
    raw.send_message(call(Some(30), "work"));
    let notes = raw.receive().unwrap();
    assert_eq!(notes[0], 4.into());
    let log: Message = rmpv::ext::from_value(notes[1]["ld"].clone()).unwrap();
    assert_eq!((log.logs[0].level, log.end), (Level::INFO, None));
    assert_eq!(raw.receive().unwrap()[0], 1.into());
});

/// A server whose one worker sends these bytes before it answers 42.
/// Takes one call, sends these frames, and answers 42.
pub(crate) fn impostor(folder: &tempfile::TempDir, notes: Vec<Vec<u8>>) {
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    std::thread::spawn(move || {
        use std::io::Read;
        let mut raw = Raw::accept(&listener);
        raw.0.read_exact(&mut [0; 8]).unwrap();
        raw.receive().unwrap();
        raw.send(b"taskfork");
        let hello = [("version", 1.into()), ("pid", 1.into()), ("server", text("impostor"))];
        raw.send_message(vec![0.into(), map(&hello)]);
        raw.receive().unwrap();
        notes.iter().for_each(|notes| raw.send(notes));
        raw.send_message(vec![1.into(), of_call(1), 42.into()]);
        raw.drain();
    });
}

trial!(hostile_logs_harm_no_result, async || {
    let notes = |log: Value| frame(vec![4.into(), map(&[("ld", log)])]);
    let start = ("start", Value::from(1.0));
    let mut deep = vec![0x92, 0x04, 0x81, 0xa2, b'l', b'd', 0x82];
    deep.extend(b"\xa5start\x01\xa4data\x81\xa1x");
    deep.extend([0x91; 100_000]);
    deep.push(0xc0);
    let mut deep_frame = (deep.len() as u32).to_le_bytes().to_vec();
    deep_frame.extend(deep);
    let long = Value::Array(vec![Value::Nil; 5 << 20]);
    let hostile = [
        (notes(map(&[])), "it has no `start`"),
        (notes(map(&[("start", f64::NAN.into())])), "the start is \"NaN\", which is no time"),
        (notes(text("no map")), "no map"),
        (notes(map(&[start.clone(), ("data", long)])), "the limit is 4194304"),
        (deep_frame, "nested deeper than 128 levels"),
    ];
    // Of these the rest can be read.
    let odd_line = Value::Array(vec![f64::INFINITY.into(), 30.into()]);
    let odd = [
        notes(map(&[start.clone(), ("logs", Value::Array(vec![odd_line]))])),
        notes(map(&[start.clone(), ("logs", 5.into())])),
    ];
    let folder = tempfile::tempdir().unwrap();
    let sent = hostile.iter().map(|(bytes, _)| bytes.clone());
    impostor(&folder, sent.chain(odd.clone()).collect());
    let options = Client::builder().address(address_in(&folder)).min_workers(0).max_workers(1);
    let client = options.build().unwrap();
    let (log, _) = new_log();
    let checkout = client.checkout().log(&log);
    assert_eq!(checkout.call::<i64>("any", ()).await.unwrap(), 42);
    let message = log.message();
    assert_eq!(message.logs.len(), hostile.len(), "{message:?}");
    assert_eq!(message.left_out, odd.len() as u64);
    for ((_, reason), entry) in hostile.iter().zip(&message.logs) {
        let line = entry.items[0].as_str().unwrap();
        assert!(line.starts_with("what the worker logged cannot be read: "), "{line}");
        assert!(line.contains(reason), "{line} lacks {reason}");
    }
});
