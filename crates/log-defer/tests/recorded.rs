//! A session recorded between two Perl programs: what the worker sent, and what the client's
//! callback saw of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use log_defer::Message;
use serde_json::Value;

/// What the worker sent beside its answer.
fn sent() -> Message {
    let lines = include_str!("data/log.jsonl").lines();
    let mut answers = lines.filter_map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let bytes: Value = serde_json::from_str(line["bytes"].as_str()?).unwrap();
        (bytes[0] == "ok").then(|| serde_json::from_value(bytes[1]["ld"].clone()).unwrap())
    });
    answers.next().unwrap()
}

/// What the client saw at the end.
fn seen() -> Message {
    let seen: Value = serde_json::from_str(include_str!("data/log.seen.json")).unwrap();
    let message = seen.as_array().unwrap().iter().find(|event| event[0] == "ld").unwrap();
    serde_json::from_value(message[1].clone()).unwrap()
}

#[test]
fn the_recorded_message_merges_to_what_the_original_showed() {
    let (sent, seen) = (sent(), seen());
    // The client's own part: its line and its timer. Its start was printed with five decimals only,
    // so it is taken from the offset that it gave to the worker's first line.
    let start = sent.start - (seen.logs[1].time - sent.logs[0].time);
    assert!((start - seen.start).abs() < 1e-5);
    let mut merged = Message {
        start,
        end: seen.end,
        logs: vec![seen.logs[0].clone()],
        timers: vec![seen.timers[0].clone()],
        ..Message::default()
    };
    merged.merge(sent);

    assert_eq!(merged.data, seen.data);
    let close = |left: f64, right: f64| assert!((left - right).abs() < 1e-6, "{left} {right}");
    assert_eq!(merged.logs.len(), seen.logs.len());
    for (merged, seen) in merged.logs.iter().zip(&seen.logs) {
        close(merged.time, seen.time);
        assert_eq!((merged.level, &merged.items), (seen.level, &seen.items));
    }
    assert_eq!(merged.timers.len(), seen.timers.len());
    for (merged, seen) in merged.timers.iter().zip(&seen.timers) {
        assert_eq!(merged.name, seen.name);
        close(merged.from, seen.from);
        close(merged.to.unwrap(), seen.to.unwrap());
    }
}
