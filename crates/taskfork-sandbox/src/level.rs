//! The names of the levels.

use std::fmt;
use std::str::FromStr;

/// What a sandbox starts from, before openings such as [`Sandbox::read`](crate::Sandbox::read).
///
/// A level has a name for options and files: [`Display`](fmt::Display) writes it and [`FromStr`] reads it.
///
/// ```
/// use taskfork_sandbox::Level;
///
/// assert_eq!(Level::NoNetwork.to_string(), "no-network");
/// assert_eq!("compute".parse(), Ok(Level::Compute));
/// assert!("strict".parse::<Level>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Nothing is forbidden.
    Off,
    /// See [`Sandbox::no_network`](crate::Sandbox::no_network).
    NoNetwork,
    /// See [`Sandbox::files`](crate::Sandbox::files).
    Files,
    /// See [`Sandbox::compute`](crate::Sandbox::compute).
    Compute,
    /// See [`Sandbox::gateway`](crate::Sandbox::gateway).
    Gateway,
    /// See [`Sandbox::python`](crate::Sandbox::python).
    Python,
    /// See [`Sandbox::node`](crate::Sandbox::node).
    Node,
    /// See [`Sandbox::perl`](crate::Sandbox::perl).
    Perl,
}

impl Level {
    /// All levels: from the weakest to the strongest, then that of gateways, then those of interpreters.
    pub const ALL: [Self; 8] = [
        Self::Off,
        Self::NoNetwork,
        Self::Files,
        Self::Compute,
        Self::Gateway,
        Self::Python,
        Self::Node,
        Self::Perl,
    ];

    /// The level's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NoNetwork => "no-network",
            Self::Files => "files",
            Self::Compute => "compute",
            Self::Gateway => "gateway",
            Self::Python => "python",
            Self::Node => "node",
            Self::Perl => "perl",
        }
    }

    /// Whether the level is made for a program that an interpreter runs.
    pub const fn is_interpreter(self) -> bool {
        matches!(self, Self::Python | Self::Node | Self::Perl)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no level has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a level of a sandbox; the levels are {}", level_names())]
pub struct UnknownLevel {
    name: String,
}

fn level_names() -> String {
    Level::ALL.map(Level::name).join(", ")
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        let found = Self::ALL.into_iter().find(|level| level.name() == name);
        found.ok_or_else(|| UnknownLevel { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_read_as_the_level_that_has_it() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_levels() {
        let error = "Compute".parse::<Level>().unwrap_err().to_string();
        assert_eq!(
            error,
            "`Compute` is not a level of a sandbox; the levels are off, no-network, files, compute, gateway, python, node, perl"
        );
    }
}
