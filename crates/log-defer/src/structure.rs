//! How a message is written and read in any format of serde: lines and timers as arrays, timers in
//! the older form as an object, times as numbers or as text.

use std::fmt;

use serde::de::{Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::message::{Entry, InvalidMessage, Message, TimerRecord};

/// A message as it was read.
#[derive(Deserialize)]
pub(crate) struct Unchecked {
    start: Seconds,
    #[serde(default)]
    end: Option<Seconds>,
    #[serde(default)]
    logs: Vec<Entry>,
    #[serde(default)]
    timers: Timers,
    #[serde(default)]
    data: Map<String, Value>,
}

impl TryFrom<Unchecked> for Message {
    type Error = InvalidMessage;

    fn try_from(message: Unchecked) -> Result<Self, InvalidMessage> {
        let Unchecked { start: Seconds(start), end, logs, timers: Timers(timers), data } = message;
        let end = end.map(|Seconds(end)| end);
        let check = |what: &str, time: f64| {
            if time.is_finite() {
                return Ok(());
            }
            Err(InvalidMessage(format!("the {what} is {time}, which is no time")))
        };
        check("start", start)?;
        end.map_or(Ok(()), |end| check("end", end))?;
        logs.iter().try_for_each(|entry| check("time of a log line", entry.time))?;
        for timer in &timers {
            check("start of a timer", timer.from)?;
            timer.to.map_or(Ok(()), |to| check("end of a timer", to))?;
        }
        Ok(Self { start, end, logs, timers, data })
    }
}

/// A time as a number, or as the text that Perl makes of one.
struct Seconds(f64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time in seconds")
            }

            fn visit_f64<E>(self, seconds: f64) -> Result<Seconds, E> {
                Ok(Seconds(seconds))
            }

            fn visit_i64<E>(self, seconds: i64) -> Result<Seconds, E> {
                Ok(Seconds(seconds as f64))
            }

            fn visit_u64<E>(self, seconds: u64) -> Result<Seconds, E> {
                Ok(Seconds(seconds as f64))
            }

            fn visit_str<E: serde::de::Error>(self, seconds: &str) -> Result<Seconds, E> {
                let parsed = seconds.parse().map(Seconds);
                parsed.map_err(|_| E::invalid_value(Unexpected::Str(seconds), &self))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_seq(Some(2 + self.items.len()))?;
        line.serialize_element(&self.time)?;
        line.serialize_element(&self.level)?;
        self.items.iter().try_for_each(|item| line.serialize_element(item))?;
        line.end()
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Line;
        impl<'de> Visitor<'de> for Line {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a log line: [time, level, item, …]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut line: A) -> Result<Entry, A::Error> {
                let Seconds(time) = line.next_element()?.ok_or_else(|| missing(0, &self))?;
                let level = line.next_element()?.ok_or_else(|| missing(1, &self))?;
                let mut items = Vec::new();
                while let Some(item) = line.next_element()? {
                    items.push(item);
                }
                Ok(Entry { time, level, items })
            }
        }
        deserializer.deserialize_seq(Line)
    }
}

fn missing<E: serde::de::Error>(length: usize, expected: &dyn serde::de::Expected) -> E {
    E::invalid_length(length, expected)
}

impl Serialize for TimerRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.to {
            Some(to) => (&self.name, self.from, to).serialize(serializer),
            None => (&self.name, self.from).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TimerRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Times;
        impl<'de> Visitor<'de> for Times {
            type Value = TimerRecord;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a timer: [name, from, to]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut times: A) -> Result<TimerRecord, A::Error> {
                let name = times.next_element()?.ok_or_else(|| missing(0, &self))?;
                let Seconds(from) = times.next_element()?.ok_or_else(|| missing(1, &self))?;
                let to = times.next_element::<Option<Seconds>>()?.flatten().map(|Seconds(to)| to);
                if times.next_element::<serde::de::IgnoredAny>()?.is_some() {
                    return Err(missing(4, &self));
                }
                Ok(TimerRecord { name, from, to })
            }
        }
        deserializer.deserialize_seq(Times)
    }
}

/// Timers in either form: a list, or an object of `[from, to]` by name.
#[derive(Default)]
struct Timers(Vec<TimerRecord>);

impl<'de> Deserialize<'de> for Timers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Timers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of timers, or an object of [from, to] by name")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Timers, A::Error> {
                let mut timers = Vec::new();
                while let Some(timer) = list.next_element()? {
                    timers.push(timer);
                }
                Ok(Timers(timers))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Timers, A::Error> {
                let mut timers = Vec::new();
                while let Some((name, times)) = map.next_entry::<String, Vec<Seconds>>()? {
                    let (from, to) = match times[..] {
                        [Seconds(from)] => (from, None),
                        [Seconds(from), Seconds(to)] => (from, Some(to)),
                        _ => {
                            let told = format!("the timer `{name}` has no [from, to]");
                            return Err(A::Error::custom(told));
                        }
                    };
                    timers.push(TimerRecord { name, from, to });
                }
                timers.sort_by(|left, right| left.from.total_cmp(&right.from));
                Ok(Timers(timers))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
