use proptest::prelude::*;
use serde_json::json;

use super::*;

fn read(json: Value) -> Message {
    serde_json::from_value(json).unwrap()
}

fn refused(json: Value) -> String {
    serde_json::from_value::<Message>(json).unwrap_err().to_string()
}

#[test]
fn what_the_first_users_printed_is_read() {
    // Timers as an object, times as texts.
    let message = read(json!({
        "start": "1363232705.96839",
        "end": "1.027309",
        "logs": [["0.000179", 30, "going to compute some operation in a worker"]],
        "timers": {
            "later": ["0.5", "0.75"],
            "computing some operation": ["0.024089061050415", "1.02470206105041"],
        },
    }));
    assert_eq!(message.start, 1_363_232_705.968_39);
    assert_eq!(message.end, Some(1.027_309));
    assert_eq!(message.logs[0].time, 0.000_179);
    let names: Vec<&str> = message.timers.iter().map(|timer| &*timer.name).collect();
    assert_eq!(names, ["computing some operation", "later"]);
    assert_eq!(message.timers[0].to, Some(1.024_702_061_050_41));
}

#[test]
fn what_is_no_message_is_refused_with_the_reason() {
    assert!(refused(json!({"logs": []})).contains("missing field `start`"));
    assert!(refused(json!({"start": "soon"})).contains("a time in seconds"));
    assert!(refused(json!({"start": 1, "logs": [[]]})).contains("[time, level, item, …]"));
    assert!(refused(json!({"start": 1, "timers": [["a"]]})).contains("[name, from, to]"));
    assert!(refused(json!({"start": 1, "timers": [["a", 1, 2, 3]]})).contains("[name, from, to]"));
    assert!(refused(json!({"start": 1, "timers": {"a": []}})).contains("`a` has no [from, to]"));
    assert!(refused(json!({"start": 1, "timers": 5})).contains("a list of timers"));
    assert!(refused(json!({"start": "NaN"})).contains("the start is NaN"));
    assert!(refused(json!({"start": 1, "end": "inf"})).contains("the end is inf"));
    assert!(refused(json!({"start": 1, "logs": [["NaN", 10]]})).contains("time of a log line"));
    assert!(refused(json!({"start": 1, "timers": [["a", 0, "NaN"]]})).contains("end of a timer"));
}

#[test]
fn a_timer_that_runs_has_no_end() {
    for timer in [json!(["a", 1.5]), json!(["a", 1.5, null])] {
        let message = read(json!({"start": 1, "timers": [timer]}));
        assert_eq!(message.timers[0].to, None);
        assert_eq!(json!(message), json!({"start": 1.0, "timers": [["a", 1.5]]}));
    }
}

#[test]
fn unknown_keys_are_passed_over() {
    assert_eq!(read(json!({"start": 1, "newer": {}})).start, 1.0);
}

#[test]
fn a_clock_that_was_set_back_gives_no_negative_times() {
    let mut ours = read(json!({"start": 100}));
    ours.merge(read(json!({"start": 99, "logs": [[0.5, 30]], "timers": [["a", 0.5, 1.5]]})));
    assert_eq!(ours.logs[0].time, 0.0);
    assert_eq!((ours.timers[0].from, ours.timers[0].to), (0.0, Some(0.5)));
}

fn times() -> impl Strategy<Value = f64> {
    (0..10_000_000u32).prop_map(|micros| f64::from(micros) / 1e6)
}

fn messages() -> impl Strategy<Value = Message> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        prop::collection::vec(any::<u8>(), 0..3).prop_map(|list| json!({ "list": list })),
    ];
    let entry = (times(), any::<u32>(), prop::collection::vec(value.clone(), 0..3))
        .prop_map(|(time, level, items)| Entry { time, level: Level::new(level), items });
    let timer = (".*", times(), prop::option::of(times()))
        .prop_map(|(name, from, to)| TimerRecord { name, from, to });
    (
        times(),
        prop::option::of(times()),
        prop::collection::vec(entry, 0..5),
        prop::collection::vec(timer, 0..5),
        prop::collection::btree_map(".*", value, 0..3),
    )
        .prop_map(|(start, end, logs, timers, data)| Message {
            start,
            end,
            logs,
            timers,
            data: data.into_iter().collect(),
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(message in messages()) {
        let json = serde_json::to_string(&message).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Message>(&json).unwrap(), &message);
        let packed = rmp_serde::to_vec_named(&message).unwrap();
        prop_assert_eq!(&rmp_serde::from_slice::<Message>(&packed).unwrap(), &message);
    }

    #[test]
    fn a_merge_loses_nothing_and_sorts(mut ours in messages(), theirs in messages()) {
        let (logs, timers) = (ours.logs.len(), ours.timers.len());
        ours.merge(theirs.clone());
        prop_assert_eq!(ours.logs.len(), logs + theirs.logs.len());
        prop_assert_eq!(ours.timers.len(), timers + theirs.timers.len());
        prop_assert!(ours.logs.is_sorted_by(|left, right| left.time <= right.time));
        prop_assert!(ours.timers.is_sorted_by(|left, right| left.from <= right.from));
        prop_assert!(ours.logs.iter().all(|entry| entry.time >= 0.0));
        for (name, value) in &theirs.data {
            prop_assert_eq!(&ours.data[name], value);
        }
    }
}
