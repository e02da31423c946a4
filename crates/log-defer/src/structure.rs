//! Serializing and deserializing messages. Lines and timers are arrays; in the older form timers are an object. Programs
//! in Perl write some numbers as strings, and some invalid values: valid parts are read, and others are counted.

use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::level::Level;
use crate::message::{Entry, InvalidMessage, Message, TimerRecord};

/// A message as deserialized, before validation.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Unchecked(Item);

impl TryFrom<Unchecked> for Message {
    type Error = InvalidMessage;

    fn try_from(Unchecked(Item(message)): Unchecked) -> Result<Self, InvalidMessage> {
        let Value::Object(mut fields) = message else {
            return Err(InvalidMessage(format!("it is no map but {}", shown(&message))));
        };
        let start = match fields.get("start") {
            None => return Err(InvalidMessage("it has no `start`".to_owned())),
            Some(start) => number(start).ok_or_else(|| {
                InvalidMessage(format!("the start is {}, which is no time", shown(start)))
            })?,
        };
        let mut left_out = fields.get("left_out").and_then(Value::as_u64).unwrap_or(0);
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let mut reads = Reading { left_out: &mut left_out };
        Ok(Self {
            start,
            end: take("end").and_then(|end| reads.keep(number(&end))),
            logs: take("logs").map_or_else(Vec::new, |logs| reads.logs(logs)),
            timers: take("timers").map_or_else(Vec::new, |timers| reads.timers(timers)),
            data: take("data").map_or_else(Map::new, |data| reads.data(data)),
            left_out,
        })
    }
}

/// Counts the parts that cannot be read.
struct Reading<'a> {
    left_out: &'a mut u64,
}

impl Reading<'_> {
    fn keep<T>(&mut self, read: Option<T>) -> Option<T> {
        if read.is_none() {
            *self.left_out = self.left_out.saturating_add(1);
        }
        read
    }

    fn logs(&mut self, logs: Value) -> Vec<Entry> {
        match logs {
            Value::Array(lines) => {
                lines.into_iter().filter_map(|line| self.keep(Entry::read(line).ok())).collect()
            }
            _ => self.keep(None).unwrap_or_default(),
        }
    }

    fn timers(&mut self, timers: Value) -> Vec<TimerRecord> {
        match timers {
            Value::Array(timers) => timers
                .into_iter()
                .filter_map(|timer| {
                    // The timer was stopped more than once: the first end is kept.
                    if timer.as_array().is_some_and(|fields| fields.len() > 3) {
                        self.keep::<()>(None);
                    }
                    self.keep(TimerRecord::read(timer).ok())
                })
                .collect(),
            Value::Object(timers) => {
                let timers = timers
                    .into_iter()
                    .filter_map(|(name, times)| self.keep(TimerRecord::with_times(name, &times)));
                let mut timers = timers.collect::<Vec<_>>();
                timers.sort_by(|left, right| left.from.total_cmp(&right.from));
                timers
            }
            _ => self.keep(None).unwrap_or_default(),
        }
    }

    fn data(&mut self, data: Value) -> Map<String, Value> {
        match data {
            Value::Object(data) => data,
            _ => self.keep(None).unwrap_or_default(),
        }
    }
}

/// Reads a finite number, which may be a string.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|number: &f64| number.is_finite())
}

/// The beginning of a value, for an error text.
fn shown(value: &Value) -> String {
    const SHOWN: usize = 40;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl Entry {
    fn read(line: Value) -> Result<Self, InvalidMessage> {
        let Value::Array(mut items) = line else { return Err(no_line(&line)) };
        let time = items.first().and_then(number);
        let level = items.get(1).and_then(number).and_then(Level::from_number);
        let (Some(time), Some(level)) = (time, level) else {
            return Err(no_line(&Value::Array(items)));
        };
        items.drain(..2);
        Ok(Self { time, level, items })
    }
}

fn no_line(line: &Value) -> InvalidMessage {
    InvalidMessage(format!("expected a log line, [time, level, item, …], got {}", shown(line)))
}

impl TimerRecord {
    fn read(timer: Value) -> Result<Self, InvalidMessage> {
        let no_timer =
            || InvalidMessage(format!("expected a timer, [name, from, to], got {}", shown(&timer)));
        let Value::Array(fields) = &timer else { return Err(no_timer()) };
        let name = match fields.first() {
            // Programs in Perl write null for a timer without a name.
            Some(Value::Null) => String::new(),
            Some(Value::String(name)) => name.clone(),
            Some(name @ (Value::Number(_) | Value::Bool(_))) => name.to_string(),
            _ => return Err(no_timer()),
        };
        let (from, to) = times(&fields[1..]).ok_or_else(no_timer)?;
        Ok(Self { name, from, to })
    }

    fn with_times(name: String, value: &Value) -> Option<Self> {
        let (from, to) = times(value.as_array()?)?;
        Some(Self { name, from, to })
    }
}

/// The start of a timer, and its end if it was stopped.
fn times(times: &[Value]) -> Option<(f64, Option<f64>)> {
    match times {
        [from] | [from, Value::Null] => Some((number(from)?, None)),
        [from, to, ..] => Some((number(from)?, Some(number(to)?))),
        _ => None,
    }
}

/// A finite number, which may be a string.
pub(crate) struct Number(pub(crate) f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Item(value) = Item::deserialize(deserializer)?;
        let invalid = || D::Error::custom(format!("expected a number, got {}", shown(&value)));
        number(&value).map(Self).ok_or_else(invalid)
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
        let Item(line) = Item::deserialize(deserializer)?;
        Self::read(line).map_err(D::Error::custom)
    }
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
        let Item(timer) = Item::deserialize(deserializer)?;
        Self::read(timer).map_err(D::Error::custom)
    }
}

/// A value of any format, converted to JSON. A value that JSON cannot express occupies no more memory than its encoding
/// suggests.
struct Item(Value);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor).map(Self)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    /// Infinities and NaN become their names.
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(match value.is_finite() {
            true => value.into(),
            false => value.to_string().into(),
        })
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    /// Bytes become a list of numbers.
    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<Value, D::Error> {
        value.deserialize_any(self)
    }

    /// An extension type becomes null.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<Value, D::Error> {
        value.deserialize_any(IgnoredAny)?;
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Item(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    /// The last of several entries with the same key is kept.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some((Key(key), Item(value))) = map.next_entry()? {
            entries.insert(key, value);
        }
        Ok(Value::Object(entries))
    }
}

/// A key of a map, converted to a string.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(ItemVisitor)? {
            Value::String(key) => Ok(Self(key)),
            // As JSON text, its length would double with each level of such keys.
            Value::Array(_) => Ok(Self("(a list)".to_owned())),
            Value::Object(_) => Ok(Self("(a map)".to_owned())),
            key => Ok(Self(key.to_string())),
        }
    }
}
