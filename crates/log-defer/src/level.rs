//! The levels of log lines.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::structure::Number;

/// How important a log line is. A lower number is more important. Any finite number is a level; four have names.
///
/// ```
/// use log_defer::Level;
/// assert!(Level::ERROR < Level::new(15));
/// assert_eq!(Level::WARN.to_string(), "warn");
/// assert_eq!(Level::new(15).to_string(), "15");
/// assert_eq!(Level::INFO.number(), 30.0);
/// ```
#[derive(Debug, Clone, Copy)]
// Never NaN or negative zero, so that equality is that of numbers.
pub struct Level(f64);

impl Level {
    /// Something failed: 10.
    pub const ERROR: Self = Self(10.0);
    /// Something is unusual: 20.
    pub const WARN: Self = Self(20.0);
    /// Normal operation: 30.
    pub const INFO: Self = Self(30.0);
    /// Details for finding a fault: 40.
    pub const DEBUG: Self = Self(40.0);
    /// As a verbosity, it includes lines of every level. This is the default of [`Builder::verbosity`](crate::Builder::verbosity).
    pub const ALL: Self = Self::new(u32::MAX);

    /// A level with this number.
    ///
    /// ```
    /// use log_defer::Level;
    /// assert_eq!(Level::new(30), Level::INFO);
    /// ```
    pub const fn new(number: u32) -> Self {
        // Exact for each u32; `From` is not const.
        Self(number as f64)
    }

    /// A level with any number, as in Perl's Log::Defer. Returns `None` for infinities and NaN.
    ///
    /// ```
    /// use log_defer::Level;
    /// assert_eq!(Level::from_number(12.5).map(Level::number), Some(12.5));
    /// assert_eq!(Level::from_number(f64::NAN), None);
    /// ```
    pub fn from_number(number: f64) -> Option<Self> {
        // Negative zero becomes zero.
        number.is_finite().then_some(Self(number + 0.0))
    }

    /// The number of the level.
    ///
    /// ```
    /// assert_eq!(log_defer::Level::ERROR.number(), 10.0);
    /// ```
    pub const fn number(self) -> f64 {
        self.0
    }

    /// The number rounded up to an integer, and clamped to `u32`.
    ///
    /// As a verbosity, the result includes the same integer levels.
    ///
    /// ```
    /// use log_defer::Level;
    /// assert_eq!(Level::from_number(12.5).map(Level::rounded_up), Some(13));
    /// ```
    pub const fn rounded_up(self) -> u32 {
        // The cast saturates.
        self.0.ceil() as u32
    }
}

impl PartialEq for Level {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Level {}

impl PartialOrd for Level {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Level {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Hash for Level {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl Serialize for Level {
    /// Serializes whole numbers as integers, and others as floats.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The cast saturates, so a number out of range differs from the result.
        let whole = self.0 as i64;
        match whole as f64 == self.0 && whole != i64::MAX {
            true => serializer.serialize_i64(whole),
            false => serializer.serialize_f64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Number(number) = Number::deserialize(deserializer)?;
        // `Number` is finite.
        Ok(Self(number + 0.0))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::ERROR, "error"),
            (Self::WARN, "warn"),
            (Self::INFO, "info"),
            (Self::DEBUG, "debug"),
        ];
        match names.into_iter().find(|(level, _)| level == self) {
            Some((_, name)) => f.pad(name),
            None => f.pad(&self.0.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_is_a_level() {
        let level = |number: f64| Level::from_number(number).unwrap();
        assert!(level(-5.0) < level(0.0) && level(12.5) < Level::new(13));
        assert_eq!(level(-0.0), Level::new(0));
        assert_eq!((level(10.0), Level::from_number(f64::NAN)), (Level::ERROR, None));
        for (number, up, text, json) in [
            (-5.0, 0, "-5", "-5"),
            (12.5, 13, "12.5", "12.5"),
            (30.0, 30, "info", "30"),
            (1e10, u32::MAX, "10000000000", "10000000000"),
            (1e300, u32::MAX, &format!("1{}", "0".repeat(300)), "1e+300"),
        ] {
            let level = level(number);
            assert_eq!((level.rounded_up(), &*level.to_string()), (up, text));
            assert_eq!(serde_json::to_string(&level).unwrap(), json);
            assert_eq!(serde_json::from_str::<Level>(json).unwrap(), level);
        }
        assert_eq!(Level::new(Level::ALL.rounded_up()), Level::ALL);
        assert!(serde_json::from_str::<Level>("\"NaN\"").is_err());
    }
}
