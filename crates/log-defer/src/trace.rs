//! Files for trace viewers.

use serde_json::{Value, json};

use crate::message::{Message, TimerRecord};

/// Returns messages as JSON in the Trace Event Format, for Perfetto, `chrome://tracing` and other viewers.
///
/// Each message is a process with one slice for all of it, whose arguments are the message's data. Timers are slices;
/// timers that overlap without nesting are on separate tracks. Lines are instants.
///
/// ```
/// let message: log_defer::Message =
///     serde_json::from_str(r#"{"start": 1, "end": 2, "timers": [["work", 0.5, 1]]}"#)?;
/// let trace = log_defer::chrome_trace([&message]);
/// std::fs::write(std::env::temp_dir().join("trace.json"), trace.to_string())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn chrome_trace<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Value {
    let mut events = Vec::new();
    for (number, message) in messages.into_iter().enumerate() {
        add(&mut events, number + 1, message);
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

fn add(events: &mut Vec<Value>, pid: usize, message: &Message) {
    let micros = |offset: f64| ((message.start + offset) * 1e6).round();
    let end = message.end.unwrap_or_else(|| message.last_time());
    let slice = |name: &str, category: &str, track: usize, from: f64, to: f64, args: Value| {
        json!({
            "name": name, "cat": category, "ph": "X", "pid": pid, "tid": track, "args": args,
            "ts": micros(from), "dur": (micros(to) - micros(from)).max(0.0),
        })
    };
    events.push(json!({
        "name": "process_name", "ph": "M", "pid": pid, "tid": 0,
        "args": { "name": format!("message {pid}") },
    }));
    events.push(slice("message", "message", 0, 0.0, end, json!(message.data)));
    let mut tracks = Vec::new();
    let mut timers: Vec<(&TimerRecord, f64)> =
        message.timers.iter().map(|timer| (timer, timer.to.unwrap_or(end))).collect();
    timers.sort_by(|(left, left_to), (right, right_to)| {
        left.from.total_cmp(&right.from).then(right_to.total_cmp(left_to))
    });
    for (timer, to) in timers {
        let track = track_for(&mut tracks, timer.from, to);
        events.push(slice(&timer.name, "timer", track + 1, timer.from, to, json!({})));
    }
    for entry in &message.logs {
        let name = crate::items::line_of(&entry.items);
        events.push(json!({
            "name": name, "cat": entry.level.to_string(), "ph": "i", "s": "t", "pid": pid,
            "tid": 0, "ts": micros(entry.time), "args": { "items": entry.items },
        }));
    }
}

/// The first track where the slice overlaps no other slice, or is nested in every slice that it overlaps.
/// A track is a stack of the ends of its open slices. Slices come in the order of their starts.
fn track_for(tracks: &mut Vec<Vec<f64>>, from: f64, to: f64) -> usize {
    for (number, open) in tracks.iter_mut().enumerate() {
        open.retain(|&end| end > from);
        if open.last().is_none_or(|&end| to <= end) {
            open.push(to);
            return number;
        }
    }
    tracks.push(vec![to]);
    tracks.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace_of(message: Value) -> Vec<Value> {
        let message: Message = serde_json::from_value(message).unwrap();
        chrome_trace([&message])["traceEvents"].as_array().unwrap().clone()
    }

    #[test]
    fn slices_of_a_track_are_nested_or_disjoint() {
        let events = trace_of(json!({
            "start": 1_700_000_000.5, "end": 10,
            "timers": [["a", 0, 4], ["b", 1, 2], ["c", 1.5, 3], ["d", 5, 6], ["e", 0, 9]],
        }));
        let track = |name: &str| {
            let event = events.iter().find(|event| event["name"] == name).unwrap();
            event["tid"].as_u64().unwrap()
        };
        assert_eq!(["e", "a", "b", "c", "d"].map(track), [1, 1, 1, 2, 1]);
    }

    #[test]
    fn times_are_microseconds_since_1970() {
        let events = trace_of(json!({
            "start": 1_700_000_000.5, "end": 2, "data": {"user": 7},
            "timers": [["work", 0.25, 1.5]], "logs": [[1, 20, "odd", {"n": 1}]],
        }));
        let named = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
        assert_eq!(named("message")["args"]["user"], 7);
        assert_eq!(named("work")["ts"], 1_700_000_000_750_000.0);
        assert_eq!(named("work")["dur"], 1_250_000.0);
        let line = named(r#"odd {"n":1}"#);
        assert_eq!((&line["ph"], &line["ts"]), (&json!("i"), &json!(1_700_000_001_500_000.0)));
    }
}
