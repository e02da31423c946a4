//! Frames of the log that travels to the caller.

use log_defer::{Entry, Level, Message};

use crate::wire::WireError;
use crate::wire::frame::{self, ATOMIC_WRITE};
use crate::wire::native;

/// Appends frames with these messages. A line replaces a message that is too long.
pub(super) fn write(out: &mut Vec<u8>, limit: usize, messages: Vec<Message>) {
    for mut message in messages {
        // This is a part of the caller's message, which has its own end.
        let end = message.end.take();
        if let Err(error) = write_one(out, limit, &message) {
            let note = format!("what the worker logged could not be sent: {error}");
            let time = end.unwrap_or_default();
            let entry = Entry { time, level: Level::WARN, items: vec![note.into()] };
            let note = Message { start: message.start, logs: vec![entry], ..Message::default() };
            // A limit below the length of this line allows no other message.
            let _ = write_one(out, limit, &note);
        }
    }
}

fn write_one(out: &mut Vec<u8>, limit: usize, message: &Message) -> Result<(), WireError> {
    frame::write(out, limit, |out| native::put_log(out, message))
}

/// Splits a message into frames that the kernel sends whole. So the server can send a death notice after
/// any of them. Returns the parts that are too long for such a frame.
pub(super) fn split(message: Message, frames: &mut Vec<Vec<u8>>) -> Vec<Message> {
    if is_empty(&message) {
        return Vec::new();
    }
    let mut frame = Vec::new();
    if write_one(&mut frame, ATOMIC_WRITE - frame::HEADER_LEN, &message).is_ok() {
        frames.push(frame);
        return Vec::new();
    }
    let Message { start, mut logs, mut timers, mut data, left_out, .. } = message;
    let part = || Message { start, ..Message::default() };
    let halves = if logs.len() > 1 || !logs.is_empty() && (timers.len() + data.len()) > 0 {
        let half = logs.len().div_ceil(2);
        let later = logs.split_off(half);
        [Message { logs, left_out, ..part() }, Message { logs: later, timers, data, ..part() }]
    } else if timers.len() > 1 || !timers.is_empty() && !data.is_empty() {
        let half = timers.len().div_ceil(2);
        let later = timers.split_off(half);
        [Message { timers, left_out, ..part() }, Message { timers: later, data, ..part() }]
    } else if data.len() > 1 {
        let half: Vec<String> = data.keys().take(data.len() / 2).cloned().collect();
        let first = half.iter().filter_map(|key| data.remove_entry(key)).collect();
        [Message { data: first, left_out, ..part() }, Message { data, ..part() }]
    } else {
        return vec![Message { logs, timers, data, left_out, ..part() }];
    };
    halves.into_iter().flat_map(|half| split(half, frames)).collect()
}

pub(super) fn is_empty(message: &Message) -> bool {
    message.logs.is_empty()
        && message.timers.is_empty()
        && message.data.is_empty()
        && message.left_out == 0
}

#[cfg(test)]
mod tests {
    use log_defer::TimerRecord;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::native::{FromWorker, Telemetry};

    proptest! {
        #[test]
        fn split_messages_fit_and_lose_nothing(
            lines in prop::collection::vec(0..6000usize, 0..40),
            timers in prop::collection::vec(0..6000usize, 0..10),
            data in prop::collection::vec(0..6000usize, 0..10),
            left_out in 0..3u64,
        ) {
            let text = |length: usize| "x".repeat(length);
            let message = Message {
                start: 1.0,
                end: None,
                logs: lines
                    .iter()
                    .map(|&length| Entry {
                        time: length as f64,
                        level: Level::INFO,
                        items: vec![text(length).into()],
                    })
                    .collect(),
                timers: timers
                    .iter()
                    .map(|&length| TimerRecord { name: text(length), from: 0.0, to: Some(1.0) })
                    .collect(),
                data: data
                    .iter()
                    .enumerate()
                    .map(|(number, &length)| (number.to_string(), text(length).into()))
                    .collect(),
                left_out,
            };
            let mut frames = Vec::new();
            let kept = split(message.clone(), &mut frames);
            let mut whole = Message { start: 1.0, ..Message::default() };
            for frame in &frames {
                prop_assert!(frame.len() <= ATOMIC_WRITE);
                let Ok(FromWorker::Telemetry(Telemetry { log: Some(log), .. })) =
                    FromWorker::decode(&frame[frame::HEADER_LEN..])
                else {
                    return Err(TestCaseError::fail("this is no telemetry"));
                };
                whole.merge(rmp_serde::from_slice(log).unwrap());
            }
            for message in kept {
                let count = message.logs.len() + message.timers.len() + message.data.len();
                prop_assert_eq!(count, 1);
                whole.merge(message);
            }
            let mut expected = Message { start: 1.0, ..Message::default() };
            expected.merge(message);
            whole.timers.sort_by_key(|timer| timer.name.len());
            expected.timers.sort_by_key(|timer| timer.name.len());
            prop_assert_eq!(whole, expected);
        }
    }
}
