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
    /// The lines, in the order of their times.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<Entry>,
    /// The timers, in the order in which they were started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timers: Vec<TimerRecord>,
    /// Values by name.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
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
    /// are then in the order of their times; data of the other replaces that of the same name here.
    ///
    /// Where the other clock seems to have been behind this one, its times begin at zero.
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
        self.sort();
    }

    /// As `merge`, but the order is left for later.
    pub(crate) fn append(&mut self, other: Self) {
        let delta = other.start - self.start;
        let shifted = |time: f64| (time + delta).max(0.0);
        self.logs.extend(
            other.logs.into_iter().map(|entry| Entry { time: shifted(entry.time), ..entry }),
        );
        self.timers.extend(other.timers.into_iter().map(|timer| TimerRecord {
            name: timer.name,
            from: shifted(timer.from),
            to: timer.to.map(shifted),
        }));
        self.data.extend(other.data);
    }

    pub(crate) fn sort(&mut self) {
        self.logs.sort_by(|left, right| left.time.total_cmp(&right.time));
        self.timers.sort_by(|left, right| left.from.total_cmp(&right.from));
    }

    /// The last time in it: its end, or that of what it holds.
    pub(crate) fn last_time(&self) -> f64 {
        let logs = self.logs.iter().map(|entry| entry.time);
        let timers = self.timers.iter().map(|timer| timer.to.unwrap_or(timer.from));
        logs.chain(timers).chain(self.end).fold(0.0, f64::max)
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
