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
fn what_the_verbosity_excludes_is_never_made() {
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
fn a_timer_stays_itself_when_earlier_ones_are_merged() {
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
fn a_million_lines_take_bounded_room_and_are_counted() {
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
fn a_panic_of_the_callback_goes_no_further() {
    let log = Log::new(|_| panic!("as this test wants it"));
    drop(log);
}

#[test]
fn what_is_taken_is_gone_and_running_timers_follow() {
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
fn what_was_left_out_is_told_with_each_part() {
    let (log, _messages) = log_with(Log::builder().max_bytes(100));
    for _ in 0..2 {
        log.info("x".repeat(100));
        let note = log.take().logs[0].items[0].clone();
        assert!(note.as_str().unwrap().starts_with("1 lines"), "{note}");
    }
    assert!(log.take().logs.is_empty());
}

#[test]
fn a_closed_log_takes_nothing_and_calls_nobody() {
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
fn a_timer_can_count_from_before() {
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
fn data_that_is_replaced_takes_no_more_room() {
    let log = Log::builder().max_bytes(2000).start(drop);
    for number in 0..1000 {
        log.data("progress", number);
    }
    let message = log.close();
    assert_eq!(message.data["progress"], 999);
    assert!(message.logs.is_empty());
}
