//! Where a server listens and a client connects. Parsing and naming only; the sockets are opened
//! by `server::listener` and `client::connect`.

use std::convert::Infallible;
use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::server::Link;

/// The longest path that fits a `sockaddr_un`, its closing zero byte left out.
const MAX_SOCKET_PATH: usize = 107;

/// Where a server listens and a client connects.
///
/// | text | meaning |
/// |---|---|
/// | `unix:PATH` | a unix socket in the file system |
/// | `tcp:HOST:PORT` | TCP; an IPv6 host stands in brackets, port 0 lets the kernel choose |
/// | `fd:NUMBER` | a listening socket inherited from the parent process (servers only) |
///
/// ```
/// use taskfork::Address;
///
/// let address: Address = "unix:/run/passwords.sock".parse()?;
/// assert_eq!(address.to_string(), "unix:/run/passwords.sock");
///
/// let mistake = "passwords.sock".parse::<Address>().unwrap_err();
/// assert!(mistake.to_string().contains("unix:PATH"));
/// # Ok::<(), taskfork::AddressError>(())
/// ```
#[derive(Clone)]
pub struct Address(pub(crate) Place);

/// What an [`Address`] stands for.
#[derive(Clone)]
pub(crate) enum Place {
    Unix(PathBuf),
    Tcp {
        host: String,
        port: u16,
    },
    Inherited(RawFd),
    /// A server of this very program that has no name in the file system: connections are made
    /// through its control socket.
    Handle(Link),
}

/// Why a text or a value is no usable address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The text has none of the known forms.
    #[error("`{text}` is not an address: write unix:PATH, tcp:HOST:PORT or fd:NUMBER")]
    Unknown {
        /// The text as it was given.
        text: String,
    },
    /// `unix:` without a path, or a path with a zero byte in it.
    #[error("`{text}` names no usable socket path: write unix:PATH, as in unix:/run/app.sock")]
    Path {
        /// The text as it was given.
        text: String,
    },
    /// The path does not fit the kernel's socket address.
    #[error(
        "the socket path {} is {length} bytes long and the kernel takes at most {max}: \
         use a shorter one, or a relative path", path.display()
    )]
    PathTooLong {
        /// The path as it was given.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// The most bytes that fit.
        max: usize,
    },
    /// `tcp:` without host or port, or with a port that is no number up to 65535.
    #[error(
        "`{text}` names no TCP port: write tcp:HOST:PORT, as in tcp:127.0.0.1:4000 or tcp:[::1]:4000"
    )]
    Tcp {
        /// The text as it was given.
        text: String,
    },
    /// `fd:` without a descriptor number.
    #[error("`{text}` names no descriptor: write fd:NUMBER, as in fd:3")]
    Descriptor {
        /// The text as it was given.
        text: String,
    },
}

impl Address {
    /// A unix socket in the file system.
    ///
    /// # Errors
    /// [`AddressError::Path`] for an empty path or one with a zero byte in it,
    /// [`AddressError::PathTooLong`] for one that the kernel cannot take.
    ///
    /// ```
    /// let address = taskfork::Address::unix("/run/passwords.sock")?;
    /// # Ok::<(), taskfork::AddressError>(())
    /// ```
    pub fn unix(path: impl Into<PathBuf>) -> Result<Self, AddressError> {
        use std::os::unix::ffi::OsStrExt;

        let path = path.into();
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(AddressError::Path { text: format!("unix:{}", path.display()) });
        }
        if bytes.len() > MAX_SOCKET_PATH {
            let length = bytes.len();
            return Err(AddressError::PathTooLong { path, length, max: MAX_SOCKET_PATH });
        }
        Ok(Self(Place::Unix(path)))
    }

    /// TCP to or on `host` (a name or an IP address, IPv6 without brackets) and `port`.
    ///
    /// ```
    /// assert_eq!(taskfork::Address::tcp("::1", 4000).to_string(), "tcp:[::1]:4000");
    /// ```
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self(Place::Tcp { host: host.into(), port })
    }

    /// A listening socket that this process inherited, by its descriptor's number.
    ///
    /// ```
    /// // The first descriptor that a service manager passes on.
    /// assert_eq!(taskfork::Address::inherited(3).to_string(), "fd:3");
    /// ```
    pub fn inherited(descriptor: RawFd) -> Self {
        Self(Place::Inherited(descriptor))
    }

    /// The path of a unix socket, or nothing for every other address.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Place::Unix(path) => Some(path),
            _ => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text_owned = || text.to_owned();
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::unix(path);
        }
        if let Some(rest) = text.strip_prefix("tcp:") {
            return parse_tcp(rest).ok_or_else(|| AddressError::Tcp { text: text_owned() });
        }
        if let Some(number) = text.strip_prefix("fd:") {
            return match number.parse() {
                Ok(descriptor) if descriptor >= 0 => Ok(Self::inherited(descriptor)),
                _ => Err(AddressError::Descriptor { text: text_owned() }),
            };
        }
        Err(AddressError::Unknown { text: text_owned() })
    }
}

fn parse_tcp(rest: &str) -> Option<Address> {
    let (host, port) = rest.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty() && !host.contains(['[', ']'])).then(|| Address::tcp(host, port))
}

impl TryFrom<&str> for Address {
    type Error = AddressError;

    fn try_from(text: &str) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl TryFrom<&String> for Address {
    type Error = AddressError;

    fn try_from(text: &String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl From<Infallible> for AddressError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Unix(path) => write!(out, "unix:{}", path.display()),
            Place::Tcp { host, port } if host.contains(':') => write!(out, "tcp:[{host}]:{port}"),
            Place::Tcp { host, port } => write!(out, "tcp:{host}:{port}"),
            Place::Inherited(descriptor) => write!(out, "fd:{descriptor}"),
            Place::Handle(link) => write!(out, "the server in process {}", link.pid()),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        text.parse::<Address>().unwrap_err().to_string()
    }

    #[test]
    fn every_form_comes_back_as_it_was_written() {
        for text in ["unix:/run/a.sock", "unix:a.sock", "tcp:localhost:80", "tcp:[::1]:0", "fd:3"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_mistake_is_named_with_the_form_to_write() {
        assert!(error_of("/run/a.sock").contains("unix:PATH"));
        assert!(error_of("unix:").contains("unix:PATH"));
        assert!(error_of("fd:x").contains("fd:NUMBER"));
        assert!(error_of("fd:-1").contains("fd:NUMBER"));
        for text in [
            "tcp:host",
            "tcp:host:port",
            "tcp::80",
            "tcp:host:70000",
            "tcp:::1:80",
            "tcp:[::1:80",
            "tcp:[[1]:0",
        ] {
            assert!(error_of(text).contains("tcp:HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn a_path_too_long_for_the_kernel_is_refused_with_both_lengths() {
        let fits = format!("unix:/{}", "a".repeat(MAX_SOCKET_PATH - 1));
        assert!(fits.parse::<Address>().is_ok());

        let long = error_of(&format!("unix:/{}", "a".repeat(MAX_SOCKET_PATH)));
        assert!(long.contains("108 bytes") && long.contains("at most 107"), "{long}");
    }
}
