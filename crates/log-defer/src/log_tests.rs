use std::sync::mpsc::{Receiver, channel};

use serde_json::json;

use super::*;

fn log_with(builder: Builder) -> (Log, Receiver<Message>) {
    let (sender, receiver) = channel();
    (builder.start(move |message| sender.send(message).unwrap()), receiver)
}

fn log() -> (Log, Receiver<Message>) {
    log_with(Log::builder())
}

#[test]
fn the_message_is_finished_once_with_the_last_handle() {
    let (log, messages) = log();
    let other = log.clone();
    let thread = std::thread::spawn(move || other.info("elsewhere"));
    log.info("here");
    thread.join().unwrap();
    assert!(messages.try_recv().is_err());
    drop(log);
    let message = messages.recv().unwrap();
    assert_eq!(message.logs.len(), 2);
    assert!(message.end.unwrap() >= message.logs[1].time);
    assert!(messages.recv().is_err());
}

#[test]
fn excluded_lines_are_never_built() {
    let (log, messages) = log_with(Log::builder().verbosity(Level::WARN));
    log.info(|| -> String { panic!("was made") });
    log.log(Level::new(15), || ("between", 1));
    log.log(Level::new(21), "beyond");
    drop(log);
    let message = messages.recv().unwrap();
    assert_eq!(message.logs.len(), 1);
    assert_eq!(message.logs[0].items, [json!("between"), json!(1)]);
}

#[test]
fn timers_are_stopped_by_their_drop_and_at_the_latest_with_the_message() {
    let (log, messages) = log();
    let open = log.timer("open");
    let short = log.timer("short");
    while log.0.now() == 0.0 {}
    short.stop();
    log.info("after");
    drop(log);
    drop(open);
    let message = messages.recv().unwrap();
    assert_eq!(message.timers[0].to, message.end);
    assert!(message.timers[1].to.unwrap() <= message.logs[0].time);
}

#[test]
fn a_running_timer_survives_a_merge_of_earlier_ones() {
    let (log, messages) = log();
    let mut other = log.message();
    other.start -= 1.0;
    other.timers.push(TimerRecord { name: "earlier".to_owned(), from: 0.0, to: Some(0.0) });
    while log.0.now() == 0.0 {}
    let timer = log.timer("ours");
    log.merge(other);
    assert_eq!(log.message().timers[0].name, "earlier");
    timer.stop();
    let stopped = log.message().timers[1].to;
    drop(log);
    let message = messages.recv().unwrap();
    assert_eq!((&*message.timers[1].name, message.timers[1].to), ("ours", stopped));
    assert!(stopped.is_some());
}

#[test]
fn later_data_replaces_earlier() {
    let (log, messages) = log();
    log.data("user", 1);
    log.data("user", json!({"id": 2}));
    drop(log);
    assert_eq!(json!(messages.recv().unwrap().data), json!({"user": {"id": 2}}));
}

#[test]
fn a_million_lines_occupy_bounded_memory_and_are_counted() {
    let (log, messages) = log_with(Log::builder().max_bytes(10_000));
    log.info("first");
    for number in 0..1_000_000 {
        log.info(("line", number));
    }
    log.error("x".repeat(10 << 20));
    log.data("large", "x".repeat(10 << 20));
    drop(log.timer("x".repeat(10 << 20)));
    drop(log);
    let message = messages.recv().unwrap();
    assert!(message.logs.len() < 200);
    assert_eq!(message.logs[0].items, ["first"]);
    let note = message.logs.last().unwrap();
    let kept = message.logs.len() - 2;
    let left_out = 1_000_000 - kept + 3;
    assert_eq!(note.level, Level::WARN);
    let text = note.items[0].as_str().unwrap();
    assert!(text.starts_with(&format!("{left_out} lines, timers or values")), "{text}");
}

#[test]
fn hostile_messages_are_merged_within_the_bounds() {
    let (log, messages) = log_with(Log::builder().max_bytes(10_000));
    let mut deep = json!(0);
    for _ in 0..1000 {
        deep = json!([deep]);
    }
    let mut other = log.message();
    other.data.insert("deep".to_owned(), deep.clone());
    other.logs = vec![Entry { time: 0.0, level: Level::INFO, items: vec![deep] }; 3];
    other.timers = vec![TimerRecord { name: "x".repeat(100), from: 0.0, to: None }; 1000];
    log.merge(other);
    drop(log);
    let message = messages.recv().unwrap();
    assert!(message.data.is_empty());
    assert!(message.timers.len() < 100);
    assert_eq!(message.logs.len(), 1);
}

#[test]
fn a_panic_of_the_callback_is_caught() {
    let log = Log::new(|_| panic!("as this test wants it"));
    drop(log);
}

#[test]
fn take_removes_the_message_and_running_timers_follow_later() {
    let (log, messages) = log();
    log.info("first");
    log.data("key", 1);
    let timer = log.timer("running");
    let taken = log.take();
    assert_eq!((taken.logs.len(), taken.data.len(), taken.timers.len()), (1, 1, 0));
    timer.stop();
    log.info("second");
    let taken = log.take();
    assert_eq!((&*taken.timers[0].name, taken.logs.len()), ("running", 1));
    drop(log);
    let rest = messages.recv().unwrap();
    assert_eq!(rest, Message { start: taken.start, end: rest.end, ..Message::default() });
}

#[test]
fn each_part_reports_its_omissions() {
    let (log, _messages) = log_with(Log::builder().max_bytes(100));
    for _ in 0..2 {
        log.info("x".repeat(100));
        let note = log.take().logs[0].items[0].clone();
        assert!(note.as_str().unwrap().starts_with("1 lines"), "{note}");
    }
    assert!(log.take().logs.is_empty());
}

#[test]
fn a_closed_log_ignores_lines_and_calls_no_callback() {
    let (log, messages) = log();
    let other = log.clone();
    let timer = log.timer("open");
    let message = log.close();
    assert_eq!(message.timers[0].to, message.end);
    other.info("too late");
    drop((log, other, timer));
    assert!(messages.recv().is_err());
}

#[test]
fn a_timer_can_start_in_the_past() {
    let early = Instant::now();
    let (log, _messages) = log();
    let later = Instant::now();
    while log.0.now() == 0.0 {}
    log.timer_since("before it all", early).stop();
    log.timer_since("later", later).stop();
    let timers = log.take().timers;
    assert_eq!(timers[0].from, 0.0);
    assert!(timers[1].from <= timers[1].to.unwrap());
}

#[test]
fn replaced_data_releases_its_memory() {
    let log = Log::builder().max_bytes(2000).start(drop);
    for number in 0..1000 {
        log.data("progress", number);
    }
    let message = log.close();
    assert_eq!(message.data["progress"], 999);
    assert!(message.logs.is_empty());
}

/// The message of Log::Defer's own test of merges, and what it expects.
#[test]
fn lines_are_sorted_at_a_merge_and_later_ones_follow() {
    let (log, messages) = log();
    log.info("A");
    log.info("B");
    while log.0.now() < 1e-3 {}
    let timer = log.timer("junk");
    let mut other = log.message();
    other.start += log.0.now();
    let line = |time: f64, text: &str| Entry { time, level: Level::INFO, items: vec![text.into()] };
    other.logs = vec![line(100.0, "E"), line(-10.0, "D"), line(20.0, "C")];
    other.timers = vec![TimerRecord { name: "blah".to_owned(), from: 1.0, to: Some(2.0) }];
    log.merge(other);
    timer.stop();
    log.info("F");
    let texts = |message: &Message| {
        message
            .logs
            .iter()
            .map(|entry| entry.items[0].as_str().unwrap().to_owned())
            .collect::<String>()
    };
    assert_eq!(texts(&log.message()), "DABCEF");
    assert_eq!(texts(&log.message()), "DABCEF");
    drop(log);
    let message = messages.recv().unwrap();
    assert_eq!(texts(&message), "DABCEF");
    let names: Vec<_> = message.timers.iter().map(|timer| &*timer.name).collect();
    assert_eq!(names, ["junk", "blah"]);
    assert!(message.timers[1].from >= 1.001 && message.logs[0].time < -9.9);
}

#[test]
fn timers_that_begin_at_one_time_keep_their_order() {
    let (log, messages) = log();
    let since = log.0.started;
    let open = log.timer_since("open", since);
    log.timer_since("short", since).stop();
    let mut other = log.message();
    other.timers = vec![TimerRecord { name: "merged".to_owned(), from: 0.0, to: Some(1.0) }];
    log.merge(other);
    let late = log.timer_since("late", since);
    let names = |message: &Message| {
        message.timers.iter().map(|timer| timer.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&log.message()), ["open", "short", "merged", "late"]);
    drop((open, log, late));
    assert_eq!(names(&messages.recv().unwrap()), ["open", "short", "merged", "late"]);
}

#[test]
fn every_line_is_kept_unless_a_verbosity_is_set() {
    let (log, messages) = log();
    log.debug("debugging");
    log.log(Level::new(1000), "beyond");
    log.log(Level::from_number(1e12).unwrap(), "far beyond");
    assert!(log.is_enabled(Level::new(u32::MAX)));
    assert_eq!(log.verbosity(), Level::ALL);
    drop(log);
    assert_eq!(messages.recv().unwrap().logs.len(), 3);
}

#[test]
fn the_verbosity_applies_to_merged_lines() {
    let (log, messages) = log_with(Log::builder().verbosity(Level::WARN));
    let mut other = log.message();
    other.logs = [-5.0, 20.0, 20.5, 40.0]
        .map(|level| Entry {
            time: 0.0,
            level: Level::from_number(level).unwrap(),
            items: Vec::new(),
        })
        .to_vec();
    other.left_out = 2;
    log.merge(other);
    drop(log);
    let message = messages.recv().unwrap();
    let levels: Vec<_> = message.logs.iter().map(|entry| entry.level.number()).collect();
    assert_eq!((levels, message.left_out), (vec![-5.0, 20.0], 2));
}

#[test]
fn a_timer_takes_at_least_a_microsecond() {
    let (log, messages) = log();
    let mut other = log.message();
    let timer = |from: f64, to| TimerRecord { name: "merged".to_owned(), from, to };
    other.timers = vec![timer(0.0, Some(0.0)), timer(0.25, None), timer(50.0, Some(50.0))];
    log.merge(other);
    // Its start is the last time there is.
    log.timer_at("shortest".to_owned(), 1000.0).stop();
    let open = log.timer("open");
    drop(log);
    drop(open);
    let message = messages.recv().unwrap();
    for timer in &message.timers {
        let took = timer.to.unwrap() - timer.from;
        assert!(took >= 0.9e-6, "{timer:?}");
    }
    let shortest = message.timers.iter().find(|timer| timer.name == "shortest").unwrap();
    assert_eq!(shortest.to, Some(1_000.000_001));
    let text = serde_json::to_string(&message.timers).unwrap();
    assert!(text.contains(r#"["shortest",1000.0,1000.000001]"#), "{text}");
}
