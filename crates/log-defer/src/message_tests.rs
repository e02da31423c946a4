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
fn messages_of_the_older_form_are_read() {
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
fn other_values_are_refused_with_a_reason() {
    assert!(refused(json!([1, 2])).contains("it is no map but [1,2]"));
    assert!(refused(json!({"logs": []})).contains("it has no `start`"));
    assert!(refused(json!({"start": "soon"})).contains("the start is \"soon\", which is no time"));
    assert!(refused(json!({"start": "NaN"})).contains("which is no time"));
    assert!(refused(json!({"start": null})).contains("which is no time"));
    let long = refused(json!({"start": "x".repeat(1000)}));
    assert!(long.len() < 100, "{long}");
    let line = serde_json::from_value::<Entry>(json!([1])).unwrap_err().to_string();
    assert!(line.contains("expected a log line, [time, level, item, …], got [1]"), "{line}");
    let timer = serde_json::from_value::<TimerRecord>(json!(["a"])).unwrap_err().to_string();
    assert!(timer.contains("expected a timer, [name, from, to], got [\"a\"]"), "{timer}");
}

#[test]
fn messages_of_perl_programs_are_read() {
    let message = read(json!({
        "start": "100.5", "end": null,
        "logs": [
            [0.1, -5, "below"], ["0.2", 12.5, "between"], [0.3, "15", "text"], ["4e-1", " 30 "],
        ],
        "timers": [[null, "0.1", "0.2"], [7, 0, 1], ["twice", 0, 1, 2], ["runs", "0.5"]],
        "data": null,
    }));
    let levels: Vec<_> = message.logs.iter().map(|entry| entry.level.number()).collect();
    assert_eq!(levels, [-5.0, 12.5, 15.0, 30.0]);
    assert_eq!(message.logs[3], Entry { time: 0.4, level: Level::INFO, items: Vec::new() });
    let timers: Vec<_> =
        message.timers.iter().map(|timer| (&*timer.name, timer.from, timer.to)).collect();
    let expected = [
        ("", 0.1, Some(0.2)),
        ("7", 0.0, Some(1.0)),
        ("twice", 0.0, Some(1.0)),
        ("runs", 0.5, None),
    ];
    assert_eq!(timers, expected);
    // The second end of a timer.
    assert_eq!((message.data.len(), message.left_out), (0, 1));
    for absent in ["logs", "timers", "data", "end"] {
        assert_eq!(read(json!({"start": 1, absent: null})).left_out, 0);
    }
}

#[test]
fn unreadable_parts_are_omitted_and_counted() {
    let message = read(json!({
        "start": 1, "end": "soon",
        "logs": [
            [0.1, 30, "kept"], [], [0.1], ["x", 30], [0.1, "high"], [0.1, null, "x"], "line",
            ["inf", 30], [0.1, "NaN"], null,
        ],
        "timers": [["kept", 0, 1], ["a"], ["a", "x"], ["a", 0, "NaN"], [[], 0, 1], 5],
        "data": [1],
    }));
    assert_eq!((message.logs.len(), message.timers.len(), message.end), (1, 1, None));
    assert_eq!(message.left_out, 1 + 9 + 5 + 1);
    let older = read(json!({"start": 1, "timers": {"a": [], "b": [0, 1], "c": 5}, "logs": {}}));
    assert_eq!((older.timers.len(), older.left_out), (1, 3));
    assert_eq!(read(json!({"start": 1, "timers": 5, "data": "x"})).left_out, 2);
    // The count goes on with the message, and adds up.
    let mut again = read(json!(message));
    assert_eq!(again, message);
    again.merge(older);
    assert_eq!(again.left_out, 19);
}

#[test]
fn values_that_json_cannot_express_occupy_little_memory() {
    // A line with an extension type, NaN, binary data and a map, and data; keys of maps are no strings.
    let packed = b"\x83\xa5start\x01\xa4logs\x91\x96\xca\x3f\0\0\0\x1e\xd5\x05\x01\x02\
        \xcb\x7f\xf8\0\0\0\0\0\0\xc4\x02\x01\x02\x82\x01\x02\xc0\x03\
        \xa4data\x81\x07\xa5seven";
    let message: Message = rmp_serde::from_slice(packed).unwrap();
    let expected = json!([null, "NaN", [1, 2], {"1": 2, "null": 3}]);
    assert_eq!((json!(message.logs[0].items), &message.data["7"]), (expected, &json!("seven")));
    assert_eq!(message.left_out, 0);
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
fn unknown_keys_are_ignored() {
    assert_eq!(read(json!({"start": 1, "newer": {}})).start, 1.0);
}

#[test]
fn durations_of_a_worker_whose_clock_is_behind_are_kept() {
    let mut ours = read(json!({"start": 100}));
    ours.merge(read(json!({
        "start": 99, "logs": [[0.5, 30]], "timers": [["a", 0.1, 0.2], ["b", 0.5, 1.5]],
    })));
    assert_eq!(ours.logs[0].time, 0.5);
    let times: Vec<_> = ours.timers.iter().map(|timer| (timer.from, timer.to)).collect();
    assert_eq!(times, [(0.1, Some(0.2)), (0.5, Some(1.5))]);
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
    let level = prop_oneof![
        any::<u32>().prop_map(Level::new),
        any::<i32>()
            .prop_filter_map("a number", |number| Level::from_number(f64::from(number) / 8.0)),
    ];
    let entry = (times(), level, prop::collection::vec(value.clone(), 0..3))
        .prop_map(|(time, level, items)| Entry { time, level, items });
    let timer = (".*", times(), prop::option::of(times()))
        .prop_map(|(name, from, to)| TimerRecord { name, from, to });
    (
        times(),
        prop::option::of(times()),
        prop::collection::vec(entry, 0..5),
        prop::collection::vec(timer, 0..5),
        prop::collection::btree_map(".*", value, 0..3),
        0..3u64,
    )
        .prop_map(|(start, end, logs, timers, data, left_out)| Message {
            left_out,
            start,
            end,
            logs,
            timers,
            data: data.into_iter().collect(),
        })
}

proptest! {
    #[test]
    fn a_message_is_read_as_it_was_written(message in messages()) {
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
