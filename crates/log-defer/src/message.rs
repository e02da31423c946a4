//! Finished messages.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::level::Level;
use crate::structure::Unchecked;

/// Everything that was logged for one request.
///
/// Times are seconds with a precision of microseconds: `start` since 1970 (UTC), all others since `start`. In JSON and
/// in any other format of serde, a message has the structure of Perl's Log::Defer 0.312. The older form, in which
/// `timers` is an object, is also accepted.
///
/// Deserializing is lenient: numbers may be strings, a level may be any number, and a timer may have no name. Parts that
/// cannot be read are omitted and counted in `left_out`.
///
/// # Errors
/// Deserializing fails if the message is not a map, or if its `start` is missing or is not a number.
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
    /// When the message began.
    pub start: f64,
    /// When the message was finished. `None` for a part of a message, as [`Log::take`](crate::Log::take) returns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<f64>,
    /// The lines. A merge sorts them by time; later lines follow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<Entry>,
    /// The timers, in the order in which they were started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timers: Vec<TimerRecord>,
    /// The values, by name.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
    /// How many lines, timers and values could not be read.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One line: in JSON the array `[time, level, item, …]`.
///
/// ```
/// use log_defer::{Level, Log};
/// let log = Log::new(|message| {
///     let warned = message.logs.iter().filter(|entry| entry.level <= Level::WARN);
///     warned.for_each(|entry| println!("after {} s: {:?}", entry.time, entry.items));
/// });
/// log.warn("the cache is cold");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When the line was logged, in seconds since the start of the message.
    pub time: f64,
    /// The level of the line.
    pub level: Level,
    /// The content of the line.
    pub items: Vec<Value>,
}

/// One timer: in JSON the array `[name, from, to]`.
///
/// ```
/// let log = log_defer::Log::new(|message| {
///     for timer in &message.timers {
///         println!("{} took {:?} s", timer.name, timer.to.map(|to| to - timer.from));
///     }
/// });
/// log.timer("query").stop();
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TimerRecord {
    /// The name of the timer.
    pub name: String,
    /// When it was started, in seconds since the start of the message.
    pub from: f64,
    /// When it was stopped, in seconds since the start of the message. `None` while it runs.
    pub to: Option<f64>,
}

/// Why a value is not a message.
///
/// ```
/// use log_defer::Message;
/// let error = serde_json::from_str::<Message>("{}").unwrap_err();
/// assert_eq!(error.to_string(), "it has no `start`");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct InvalidMessage(pub(crate) String);

/// The same text as `Display`, because a `main` that returns the error prints it by `Debug`.
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
    /// Adds the content of another message, with its times relative to this message's start.
    ///
    /// Lines and timers are sorted by time; for equal times those of this message come first. A value of the other
    /// message replaces one of the same name here.
    ///
    /// If the other message began before this one, because its clock is behind, it is treated as begun at the same time.
    /// So durations are preserved.
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

    /// As `merge`, without sorting.
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

    /// The latest time in the message.
    pub(crate) fn last_time(&self) -> f64 {
        let logs = self.logs.iter().map(|entry| entry.time);
        let timers = self.timers.iter().map(|timer| timer.to.unwrap_or(timer.from));
        logs.chain(timers).chain(self.end).fold(0.0, f64::max)
    }
}

/// Sorts lines by time. Lines with the same time keep their order.
pub(crate) fn sort_lines(lines: &mut [Entry]) {
    lines.sort_by(|left, right| left.time.total_cmp(&right.time));
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
