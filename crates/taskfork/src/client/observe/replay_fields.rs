//! The fields of replayed spans and events, as `tracing` takes them.

use std::time::{Duration, SystemTime};

use tracing::field::{DisplayValue, Field, ValueSet, display};

use super::sites::Site;
use crate::wire::trace::{MAX_FIELDS, Value, Values};

/// The most fields of a span or event: those of the worker, and five that the client adds.
const FIELDS: usize = MAX_FIELDS + 5;

/// What a value occupies in a subscriber beyond its name and its text, in bytes.
const VALUE: usize = 32;

/// The value of a field that the client adds.
#[derive(Clone, Copy)]
pub(super) enum OwnValue {
    Number(u32),
    Seconds(f64),
    /// In nanoseconds since 1970.
    Time(u64),
}

/// A value as `tracing` takes it.
enum FieldValue<'a> {
    Plain(Value<'a>),
    Shown(DisplayValue<&'a str>),
    Time(DisplayValue<humantime::Rfc3339Timestamp>),
}

impl FieldValue<'_> {
    fn as_value(&self) -> &dyn tracing::Value {
        match self {
            Self::Plain(Value::Bool(value)) => value,
            Self::Plain(Value::Int(value)) => value,
            Self::Plain(Value::Uint(value)) => value,
            Self::Plain(Value::Float(value)) => value,
            Self::Plain(Value::Str(value) | Value::Shown(value)) => value,
            Self::Shown(value) => value,
            Self::Time(value) => value,
        }
    }
}

impl From<OwnValue> for FieldValue<'_> {
    fn from(own: OwnValue) -> Self {
        match own {
            OwnValue::Number(number) => Self::Plain(Value::Uint(number.into())),
            OwnValue::Seconds(seconds) => Self::Plain(Value::Float(seconds)),
            OwnValue::Time(nanoseconds) => {
                let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
                Self::Time(display(humantime::format_rfc3339_micros(time)))
            }
        }
    }
}

/// Calls `then` with the values of the worker's fields, followed by those that the client adds.
pub(super) fn with_fields<T>(
    site: &'static Site,
    values: &Values<'_>,
    own: &[(&'static str, OwnValue)],
    then: impl FnOnce(&ValueSet<'_>) -> T,
) -> T {
    let fields = site.known().fields();
    let names: Vec<Field> = fields.iter().collect();
    let worker_fields = values.0.iter().filter_map(|&(index, value)| {
        let value = match value {
            Value::Shown(text) => FieldValue::Shown(display(text)),
            plain => FieldValue::Plain(plain),
        };
        Some((names.get(index)?, value))
    });
    let own_fields = own.iter().filter_map(|&(name, value)| {
        let mut added = names.iter().skip(site.worker_fields());
        Some((added.find(|field| field.name() == name)?, FieldValue::from(value)))
    });
    let present: Vec<(&Field, FieldValue<'_>)> = worker_fields.chain(own_fields).collect();
    let set: [(&Field, Option<&dyn tracing::Value>); FIELDS] =
        std::array::from_fn(|index| match present.get(index) {
            Some((field, value)) => (*field, Some(value.as_value())),
            None => (&names[0], None),
        });
    then(&fields.value_set(&set))
}

/// About how many bytes a subscriber needs to keep these values of a span as text.
pub(super) fn memory_of(site: &Site, values: &Values<'_>) -> usize {
    let names = site.known().fields();
    let name = |index| names.iter().nth(index).map_or(0, |field| field.name().len());
    let text = |value: &Value<'_>| match value {
        Value::Str(text) | Value::Shown(text) => text.len(),
        Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Float(_) => 0,
    };
    values.0.iter().map(|(index, value)| VALUE + name(*index) + text(value)).sum()
}
