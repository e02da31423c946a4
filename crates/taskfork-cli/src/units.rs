//! Times and sizes in the command line and in files.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A time: a number of seconds, or a text such as `500ms` or `5m`. A time beyond the range, such as `inf`, becomes
/// the longest possible one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

impl Time {
    /// The time as a limit, where 0 means no limit.
    pub(crate) fn limit(self) -> Option<Duration> {
        Some(self.0).filter(|time| !time.is_zero())
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = match text.parse::<f64>() {
            Ok(seconds) if seconds.is_nan() => Err("it is not a number".to_owned()),
            Ok(seconds) if seconds < 0.0 => Err("it is negative".to_owned()),
            Ok(seconds) => Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
            Err(_) => match humantime::parse_duration(text) {
                Err(humantime::DurationError::NumberOverflow) => Ok(Duration::MAX),
                time => time.map_err(|error| error.to_string()),
            },
        };
        let advice = "write seconds, or a time such as 500ms, 30s or 5m";
        time.map(Self).map_err(|reason| format!("`{text}` is no time ({reason}): {advice}"))
    }
}

/// A number of bytes, or a text such as `200MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = bytesize::ByteSize::from_str(text);
        let advice = "write bytes, or a size such as 64KiB, 200MiB or 1GiB";
        size.map(|size| Self(size.as_u64())).map_err(|_| format!("`{text}` is no size: {advice}"))
    }
}

macro_rules! read_from_files {
    ($($type:ident, $what:literal;)+) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Read;

                impl Visitor<'_> for Read {
                    type Value = $type;

                    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                        out.write_str($what)
                    }

                    fn visit_i64<E: de::Error>(self, value: i64) -> Result<$type, E> {
                        value.to_string().parse().map_err(E::custom)
                    }

                    fn visit_f64<E: de::Error>(self, value: f64) -> Result<$type, E> {
                        value.to_string().parse().map_err(E::custom)
                    }

                    fn visit_str<E: de::Error>(self, value: &str) -> Result<$type, E> {
                        value.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_any(Read)
            }
        }
    )+};
}

read_from_files! {
    Time, "a number of seconds, or a time such as \"500ms\"";
    Size, "a number of bytes, or a size such as \"200MiB\"";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_as_people_write_them() {
        let time = |text: &str| text.parse::<Time>().map(|time| time.0);
        assert_eq!(time("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("5m"), Ok(Duration::from_secs(300)));
        assert!(time("-1").unwrap_err().contains("such as 500ms"));
        assert_eq!(time("1e15"), Ok(Duration::from_secs(1_000_000_000_000_000)));
        for longest in ["inf", "infinity", "1e300", "99999999999999999999", "99999999999999999999y"]
        {
            assert_eq!(time(longest), Ok(Duration::MAX), "{longest}");
        }
        for wrong in ["NaN", "-inf", "-1e300", "-5m", ""] {
            assert!(time(wrong).unwrap_err().contains("is no time"), "{wrong}");
        }
        assert_eq!(time("1e-9"), Ok(Duration::from_nanos(1)));
        assert!(time("soon").unwrap_err().contains("`soon` is no time"));
        assert_eq!("0".parse::<Time>().unwrap().limit(), None);
        assert_eq!("200MiB".parse(), Ok(Size(200 << 20)));
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert!("much".parse::<Size>().unwrap_err().contains("`much` is no size"));
    }
}
