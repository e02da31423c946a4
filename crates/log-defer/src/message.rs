//! The finished message.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::level::Level;
use crate::structure::Unchecked;

/// Everything that was logged for one request.
///
/// Times are seconds with microseconds: `start` since 1970 (UTC), all others since `start`. As JSON,
/// and in any other format of serde, it has the structure of Perl's Log::Defer 0.312; the older form,
/// in which `timers` is an object, is read as well.
///
/// What can be read of a message is read: numbers may be written as text, a level may be any number, and a
/// timer may have no name. What cannot be read is left out and counted in `left_out`. A message without a
/// `start` is an error.
///
/// ```
/// use log_defer::{Level, Message};
///
/// let json = r#"{
///     "start": 1700000000.25, "end": 0.5,
///     "logs": [[0.1, 30, "text", {"key": "value"}]],
///     "timers": [["work", 0.1, 0.4]],
///     "data": {"user": 17}
/// }"#;
/// let message: Message = serde_json::from_str(json)?;
/// assert_eq!(message.logs[0].level, Level::INFO);
/// assert_eq!(message.timers[0].to, Some(0.4));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Message {
    /// When it began.
    pub start: f64,
    /// When it was finished; absent in the part of a message that another process sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<f64>,
    /// The lines. A merge puts them in the order of their times; lines that are added later follow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<Entry>,
    /// The timers, in the order in which they were started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timers: Vec<TimerRecord>,
    /// Values by name.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
    /// How many lines, timers and values could not be read and are left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One line: in JSON the array `[time, level, item, …]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When.
    pub time: f64,
    /// How important.
    pub level: Level,
    /// What.
    pub items: Vec<Value>,
}

/// One timer: in JSON the array `[name, from, to]`.
#[derive(Debug, Clone, PartialEq)]
pub struct TimerRecord {
    /// What was timed.
    pub name: String,
    /// When it was started.
    pub from: f64,
    /// When it was stopped; absent while it runs.
    pub to: Option<f64>,
}

/// Why something is no message.
#[derive(Clone, PartialEq, Eq)]
pub struct InvalidMessage(pub(crate) String);

/// Its text, as a `main` that returns an error shows it by `Debug`.
impl fmt::Debug for InvalidMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for InvalidMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidMessage {}

impl Message {
    /// Adds what another message holds, its times counted from this one's start. Lines and timers
    /// are then in the order of their times, and those of this message come first where times are equal.
    /// Data of the other replaces that of the same name here.
    ///
    /// If the other message seems to have begun before this one, as its clock is behind, it counts as begun
    /// at the same time. So durations stay as they are.
    ///
    /// ```
    /// use log_defer::Message;
    /// # fn example() -> Result<(), serde_json::Error> {
    /// let mut ours: Message = serde_json::from_str(r#"{"start": 100}"#)?;
    /// let theirs = serde_json::from_str(r#"{"start": 102, "timers": [["work", 0.5, 1]]}"#)?;
    /// ours.merge(theirs);
    /// assert_eq!(ours.timers[0].from, 2.5);
    /// # Ok(()) }
    /// # example().unwrap();
    /// ```
    pub fn merge(&mut self, other: Self) {
        self.append(other);
        sort_lines(&mut self.logs);
        self.sort_timers();
    }

    /// As `merge`, but the order is left for later.
    pub(crate) fn append(&mut self, other: Self) {
        let offset = (other.start - self.start).max(0.0);
        let shifted = |time: f64| time + offset;
        self.logs.extend(
            other.logs.into_iter().map(|entry| Entry { time: shifted(entry.time), ..entry }),
        );
        self.timers.extend(other.timers.into_iter().map(|timer| TimerRecord {
            name: timer.name,
            from: shifted(timer.from),
            to: timer.to.map(shifted),
        }));
        self.data.extend(other.data);
        self.left_out = self.left_out.saturating_add(other.left_out);
    }

    pub(crate) fn sort_timers(&mut self) {
        self.timers.sort_by(|left, right| left.from.total_cmp(&right.from));
    }

    /// The last time in it: its end, or that of what it holds.
    pub(crate) fn last_time(&self) -> f64 {
        let logs = self.logs.iter().map(|entry| entry.time);
        let timers = self.timers.iter().map(|timer| timer.to.unwrap_or(timer.from));
        logs.chain(timers).chain(self.end).fold(0.0, f64::max)
    }
}

/// Lines with the same time keep their order.
pub(crate) fn sort_lines(lines: &mut [Entry]) {
    lines.sort_by(|left, right| left.time.total_cmp(&right.time));
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
