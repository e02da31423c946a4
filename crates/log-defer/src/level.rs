//! How important a log line is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How important a log line is: the lower, the more. Any number is a level; four have names.
///
/// ```
/// use log_defer::Level;
/// assert!(Level::ERROR < Level::new(15));
/// assert_eq!(Level::WARN.to_string(), "warn");
/// assert_eq!(Level::new(15).to_string(), "15");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Level(u32);

impl Level {
    /// Something failed: 10.
    pub const ERROR: Self = Self(10);
    /// Something is not as it should be: 20.
    pub const WARN: Self = Self(20);
    /// What happens: 30.
    pub const INFO: Self = Self(30);
    /// What helps to find a mistake: 40.
    pub const DEBUG: Self = Self(40);

    /// A level of one's own, between the named ones or beyond.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ERROR => f.pad("error"),
            Self::WARN => f.pad("warn"),
            Self::INFO => f.pad("info"),
            Self::DEBUG => f.pad("debug"),
            Self(number) => f.pad(&number.to_string()),
        }
    }
}
