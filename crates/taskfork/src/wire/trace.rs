//! Records of the spans and events of a worker, in the order in which they were made. Each is an array. Spans are
//! numbered from 1 within their call. Times are nanoseconds since 1970.

use rmp::Marker;

use super::WireError;
use super::msgpack::{Reader, put_array, put_bin, put_bool, put_float, put_map, put_str, put_uint};

/// The most fields of a span or event that are sent.
pub(crate) const MAX_FIELDS: usize = 32;

const SITE: u64 = 0;
const SPAN: u64 = 1;
const VALUES: u64 = 2;
const FOLLOWS: u64 = 3;
const ENTER: u64 = 4;
const EXIT: u64 = 5;
const CLOSE: u64 = 6;
const EVENT: u64 = 7;
const DROPPED: u64 = 8;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record<'a> {
    /// An encoded [`Site`]; it precedes the site's first span or event.
    Site {
        number: u64,
        site: &'a [u8],
    },
    Span {
        span: u64,
        site: u64,
        parent: Option<u64>,
        time: u64,
        values: Values<'a>,
    },
    /// More values of a span's fields.
    Values {
        span: u64,
        values: Values<'a>,
    },
    Follows {
        span: u64,
        other: u64,
    },
    Enter {
        span: u64,
        time: u64,
    },
    Exit {
        span: u64,
        time: u64,
    },
    Close {
        span: u64,
        time: u64,
    },
    Event {
        site: u64,
        parent: Option<u64>,
        time: u64,
        values: Values<'a>,
    },
    /// The number of records that were omitted here.
    Dropped {
        count: u64,
    },
    /// A record of a later version.
    Unknown,
}

/// Values of fields, each with the index of its field.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Values<'a>(pub(crate) Vec<(usize, Value<'a>)>);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Str(&'a str),
    /// The text of a value that is known only by its `Debug` output.
    Shown(&'a str),
}

/// A place in the program that makes spans or events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Site<'a> {
    pub(crate) is_span: bool,
    pub(crate) name: &'a str,
    pub(crate) target: &'a str,
    /// 1 (error) to 5 (trace).
    pub(crate) level: u8,
    pub(crate) module: Option<&'a str>,
    pub(crate) file: Option<&'a str>,
    pub(crate) line: Option<u32>,
    pub(crate) fields: Vec<&'a str>,
}

/// The records in an encoded array.
pub(crate) fn records(encoded: &[u8]) -> Result<impl Iterator<Item = Record<'_>>, WireError> {
    let mut reader = Reader::new(encoded);
    let count = reader.array()?;
    let read = |record| Record::read(record).unwrap_or(Record::Unknown);
    Ok((0..count).map_while(move |_| reader.value().ok().map(read)))
}

impl<'a> Record<'a> {
    fn read(record: &'a [u8]) -> Result<Self, WireError> {
        let reader = &mut Reader::new(record);
        let fields = reader.array()?;
        let record = match (reader.int::<u64>()?, fields) {
            (SITE, 3) => Self::Site { number: reader.int()?, site: reader.value()? },
            (SPAN, 6) => Self::Span {
                span: reader.int()?,
                site: reader.int()?,
                parent: number(reader)?,
                time: reader.int()?,
                values: Values::read(reader)?,
            },
            (VALUES, 3) => Self::Values { span: reader.int()?, values: Values::read(reader)? },
            (FOLLOWS, 3) => Self::Follows { span: reader.int()?, other: reader.int()? },
            (ENTER, 3) => Self::Enter { span: reader.int()?, time: reader.int()? },
            (EXIT, 3) => Self::Exit { span: reader.int()?, time: reader.int()? },
            (CLOSE, 3) => Self::Close { span: reader.int()?, time: reader.int()? },
            (EVENT, 5) => Self::Event {
                site: reader.int()?,
                parent: number(reader)?,
                time: reader.int()?,
                values: Values::read(reader)?,
            },
            (DROPPED, 2) => Self::Dropped { count: reader.int()? },
            _ => Self::Unknown,
        };
        Ok(record)
    }

    /// Appends the record. An unknown record appends nothing.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let parent_number = |parent: &Option<u64>| parent.unwrap_or(0);
        match self {
            Self::Site { number, site } => {
                put_numbers(out, SITE, &[*number], 1);
                out.extend_from_slice(site);
            }
            Self::Span { span, site, parent, time, values } => {
                put_numbers(out, SPAN, &[*span, *site, parent_number(parent), *time], 1);
                values.write(out);
            }
            Self::Values { span, values } => {
                put_numbers(out, VALUES, &[*span], 1);
                values.write(out);
            }
            Self::Follows { span, other } => put_numbers(out, FOLLOWS, &[*span, *other], 0),
            Self::Enter { span, time } => put_numbers(out, ENTER, &[*span, *time], 0),
            Self::Exit { span, time } => put_numbers(out, EXIT, &[*span, *time], 0),
            Self::Close { span, time } => put_numbers(out, CLOSE, &[*span, *time], 0),
            Self::Event { site, parent, time, values } => {
                put_numbers(out, EVENT, &[*site, parent_number(parent), *time], 1);
                values.write(out);
            }
            Self::Dropped { count } => put_numbers(out, DROPPED, &[*count], 0),
            Self::Unknown => {}
        }
    }
}

/// Reads the number of a span; 0 means none.
fn number(reader: &mut Reader<'_>) -> Result<Option<u64>, WireError> {
    reader.int().map(|number| Some(number).filter(|&number| number != 0))
}

fn put_numbers(out: &mut Vec<u8>, kind: u64, numbers: &[u64], more: usize) {
    put_array(out, (1 + numbers.len() + more) as u32);
    put_uint(out, kind);
    numbers.iter().for_each(|&number| put_uint(out, number));
}

impl<'a> Values<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let mut values = Vec::new();
        for _ in 0..reader.map()? {
            let field = reader.int()?;
            if let Some(value) = Value::read(reader.value()?)
                && field < MAX_FIELDS
                && values.len() < MAX_FIELDS
            {
                values.push((field, value));
            }
        }
        Ok(Self(values))
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_map(out, self.0.len() as u32);
        for (field, value) in &self.0 {
            put_uint(out, *field as u64);
            value.write(out);
        }
    }
}

impl<'a> Value<'a> {
    fn read(mut encoded: &'a [u8]) -> Option<Self> {
        use rmp::decode as read;
        match Marker::from_u8(*encoded.first()?) {
            Marker::True => Some(Self::Bool(true)),
            Marker::False => Some(Self::Bool(false)),
            Marker::F32 => read::read_f32(&mut encoded).ok().map(|value| Self::Float(value.into())),
            Marker::F64 => read::read_f64(&mut encoded).ok().map(Self::Float),
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                Reader::new(encoded).str().ok().map(Self::Str)
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let length = read::read_bin_len(&mut encoded).ok()? as usize;
                std::str::from_utf8(encoded.get(..length)?).ok().map(Self::Shown)
            }
            Marker::U8 | Marker::U16 | Marker::U32 | Marker::U64 | Marker::FixPos(_) => {
                read::read_int(&mut encoded).ok().map(Self::Uint)
            }
            Marker::I8 | Marker::I16 | Marker::I32 | Marker::I64 | Marker::FixNeg(_) => {
                read::read_int(&mut encoded).ok().map(Self::Int)
            }
            _ => None,
        }
    }

    fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Bool(value) => put_bool(out, value),
            // In the widest encoding, which the reader recognizes as signed.
            Self::Int(value) => {
                out.push(Marker::I64.to_u8());
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::Uint(value) => put_uint(out, value),
            Self::Float(value) => put_float(out, value),
            Self::Str(value) => put_str(out, value),
            Self::Shown(value) => put_bin(out, value.as_bytes()),
        }
    }
}

impl<'a> Site<'a> {
    pub(crate) fn read(encoded: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(encoded);
        let mut site = Self::default();
        for _ in 0..reader.map()? {
            match reader.str()? {
                "span" => site.is_span = reader.value()? == [Marker::True.to_u8()],
                "name" => site.name = reader.str()?,
                "target" => site.target = reader.str()?,
                "level" => site.level = reader.int()?,
                "module" => site.module = Some(reader.str()?),
                "file" => site.file = Some(reader.str()?),
                "line" => site.line = Some(reader.int()?),
                "fields" => {
                    for _ in 0..reader.array()? {
                        let name = reader.str()?;
                        if site.fields.len() < MAX_FIELDS {
                            site.fields.push(name);
                        }
                    }
                }
                _ => drop(reader.value()?),
            }
        }
        Ok(site)
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let texts = [
            ("name", Some(self.name)),
            ("target", Some(self.target)),
            ("module", self.module),
            ("file", self.file),
        ];
        let texts = texts.into_iter().filter_map(|(key, text)| Some((key, text?)));
        put_map(out, texts.clone().count() as u32 + 3 + u32::from(self.line.is_some()));
        for (key, text) in texts {
            put_str(out, key);
            put_str(out, text);
        }
        put_str(out, "span");
        put_bool(out, self.is_span);
        put_str(out, "level");
        put_uint(out, self.level.into());
        if let Some(line) = self.line {
            put_str(out, "line");
            put_uint(out, line.into());
        }
        put_str(out, "fields");
        put_array(out, self.fields.len() as u32);
        self.fields.iter().for_each(|name| put_str(out, name));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value<'static>> {
        prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(Value::Uint),
            any::<f64>()
                .prop_filter("it equals itself", |value| !value.is_nan())
                .prop_map(Value::Float),
            Just(Value::Str("text")),
            Just(Value::Shown("[1, 2]")),
        ]
    }

    fn values() -> impl Strategy<Value = Values<'static>> {
        prop::collection::vec((0..MAX_FIELDS, value()), 0..MAX_FIELDS).prop_map(Values)
    }

    fn number() -> impl Strategy<Value = u64> {
        1..i64::MAX as u64
    }

    fn record() -> impl Strategy<Value = Record<'static>> {
        let parent = || prop::option::of(number());
        prop_oneof![
            number().prop_map(|number| Record::Site { number, site: &[0xc0] }),
            (number(), number(), parent(), number(), values()).prop_map(
                |(span, site, parent, time, values)| Record::Span {
                    span,
                    site,
                    parent,
                    time,
                    values
                }
            ),
            (number(), values()).prop_map(|(span, values)| Record::Values { span, values }),
            (number(), number()).prop_map(|(span, other)| Record::Follows { span, other }),
            (number(), number()).prop_map(|(span, time)| Record::Enter { span, time }),
            (number(), number()).prop_map(|(span, time)| Record::Exit { span, time }),
            (number(), number()).prop_map(|(span, time)| Record::Close { span, time }),
            (number(), parent(), number(), values()).prop_map(|(site, parent, time, values)| {
                Record::Event { site, parent, time, values }
            }),
            number().prop_map(|count| Record::Dropped { count }),
        ]
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(written in prop::collection::vec(record(), 0..20)) {
            let mut out = Vec::new();
            put_array(&mut out, written.len() as u32);
            written.iter().for_each(|record| record.write(&mut out));
            prop_assert_eq!(records(&out).unwrap().collect::<Vec<_>>(), written);
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(records) = records(&bytes) {
                records.take(1000).for_each(drop);
            }
            let _ = Site::read(&bytes);
        }
    }

    #[test]
    fn a_site_is_read_as_it_was_written() {
        let whole = Site {
            is_span: true,
            name: "name",
            target: "target",
            level: 3,
            module: Some("module"),
            file: Some("file"),
            line: Some(7),
            fields: vec!["message", "count"],
        };
        for site in [whole, Site { name: "only", ..Site::default() }] {
            let mut out = Vec::new();
            site.write(&mut out);
            assert_eq!(Site::read(&out).unwrap(), site);
        }
    }
}
