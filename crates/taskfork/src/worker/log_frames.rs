//! Frames of the log that travels to the caller.

use log_defer::{Entry, Level, Message};

use crate::wire::WireError;
use crate::wire::frame::{self, ATOMIC_WRITE};
use crate::wire::native;

/// Appends frames with these messages; one that is too long is replaced by a line that says so.
pub(super) fn write(out: &mut Vec<u8>, limit: usize, messages: Vec<Message>) {
    for mut message in messages {
        // A part of the caller's message has no end of its own.
        let end = message.end.take();
        if let Err(error) = write_one(out, limit, &message) {
            let note = format!("what the worker logged could not be sent: {error}");
            let time = end.unwrap_or_default();
            let entry = Entry { time, level: Level::WARN, items: vec![note.into()] };
            let note = Message { start: message.start, logs: vec![entry], ..Message::default() };
            // A limit that leaves no room for this line leaves none for anything.
            let _ = write_one(out, limit, &note);
        }
    }
}

fn write_one(out: &mut Vec<u8>, limit: usize, message: &Message) -> Result<(), WireError> {
    frame::write(out, limit, |out| native::put_log(out, message))
}

/// Cuts a message into frames that the kernel takes whole, so that a death between two of them can
/// be told on the same connection; gives back what cannot be cut.
pub(super) fn cut(message: Message, frames: &mut Vec<Vec<u8>>) -> Vec<Message> {
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
    halves.into_iter().flat_map(|half| cut(half, frames)).collect()
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
        fn a_cut_loses_nothing_and_fits(
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
            let kept = cut(message.clone(), &mut frames);
            let mut whole = Message { start: 1.0, ..Message::default() };
            for frame in &frames {
                prop_assert!(frame.len() <= ATOMIC_WRITE);
                let Ok(FromWorker::Telemetry(Telemetry { log: Some(log), .. })) =
                    FromWorker::decode(&frame[frame::HEADER_LEN..])
                else {
                    return Err(TestCaseError::fail("it is no message of notes"));
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
