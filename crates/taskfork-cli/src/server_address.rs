//! The address of a server in the command line and in files, where a path needs no scheme.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer};
use taskfork::client::{Address, AddressError};

/// An address before parsing. Text without a scheme is a path if it contains a slash or names an existing file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ServerAddress(OsString);

impl ServerAddress {
    /// Parses the address.
    pub(crate) fn parse(&self) -> Result<Address, AddressError> {
        if let Some(path) = self.socket_path() {
            return Address::unix(path);
        }
        self.0.to_string_lossy().parse()
    }

    /// The path of the server's socket, if it listens at a unix socket.
    pub(crate) fn socket_path(&self) -> Option<PathBuf> {
        let bytes = self.0.as_bytes();
        if let Some(path) = bytes.strip_prefix(b"unix:") {
            return Some(OsString::from_vec(path.to_vec()).into());
        }
        if bytes.starts_with(b"unix-percent:") {
            let address: Address = self.0.to_str()?.parse().ok()?;
            return address.path().map(Path::to_path_buf);
        }
        // Paths may have two slashes in a row, but hardly behind a colon: that is the URL of something else.
        let is_url = bytes.windows(3).any(|part| part == b"://");
        let may_be_path = !self.has_scheme() && !is_url;
        let is_path = may_be_path && (bytes.contains(&b'/') || Path::new(&self.0).exists());
        is_path.then(|| PathBuf::from(&self.0))
    }

    /// Whether the text begins with the scheme of an address.
    pub(crate) fn has_scheme(&self) -> bool {
        let bytes = self.0.as_bytes();
        [&b"unix:"[..], b"unix-percent:", b"tcp:", b"tls:", b"nats:", b"nats+tls:", b"fd:"]
            .iter()
            .any(|scheme| bytes.starts_with(scheme))
    }

    /// Whether it is that of a service at NATS.
    pub(crate) fn is_nats(&self) -> bool {
        let bytes = self.0.as_bytes();
        bytes.starts_with(b"nats:") || bytes.starts_with(b"nats+tls:")
    }

    pub(crate) fn as_os_str(&self) -> &OsStr {
        &self.0
    }
}

impl From<OsString> for ServerAddress {
    fn from(text: OsString) -> Self {
        Self(text)
    }
}

/// As it was given, but without users and passwords of NATS.
impl fmt::Display for ServerAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_nats(), self.parse()) {
            (true, Ok(address)) => address.fmt(out),
            (true, Err(_)) => out.write_str("a service at NATS"),
            // Its text has no password.
            (false, Err(AddressError::Unknown { text })) => text.fmt(out),
            (false, _) => self.0.display().fmt(out),
        }
    }
}

/// As it is displayed.
impl fmt::Debug for ServerAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ServerAddress({self})")
    }
}

impl<'de> Deserialize<'de> for ServerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(String::deserialize(deserializer)?.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, AddressError> {
        Ok(ServerAddress(text.into()).parse()?.to_string())
    }

    #[test]
    fn a_path_needs_no_scheme() {
        assert_eq!(shown("/run/app.sock").unwrap(), "unix:/run/app.sock");
        assert_eq!(shown("./app.sock").unwrap(), "unix:./app.sock");
        assert_eq!(shown("Cargo.toml").unwrap(), "unix:Cargo.toml");
        assert_eq!(shown("unix:app.sock").unwrap(), "unix:app.sock");
        assert_eq!(shown("tcp:localhost:80").unwrap(), "tcp:localhost:80");
        assert_eq!(shown("tls:host:80").unwrap(), "tls:host:80");
        assert!(shown("app.sock").unwrap_err().to_string().contains("write unix:PATH"));
        assert!(shown("https://host:80").unwrap_err().to_string().contains("write unix:PATH"));
        assert!(shown("").is_err() && shown("unix:").is_err() && shown("tcp:/x").is_err());
    }

    #[test]
    fn passwords_are_not_shown() {
        for text in ["nats://me:pa%2Css@a:1,b/s", "nats://me:pa,ss@a/s", "nats+tls://me:pass@a/s"] {
            let address = ServerAddress(text.into());
            let shown = format!("{address} {address:?}");
            assert!(!shown.contains("me") && !shown.contains("ss@"), "{shown}");
        }
        let address = ServerAddress("nats://me:pass@a/s".into());
        assert_eq!(address.to_string(), "nats://a/s");
        assert_eq!(ServerAddress("/run/me@a".into()).to_string(), "/run/me@a");
        assert_eq!(ServerAddress("me:pass@a".into()).to_string(), "…@a");
    }

    #[test]
    fn a_path_may_have_any_bytes() {
        let address = ServerAddress(OsString::from_vec(b"unix:/tmp/\xff".to_vec()));
        assert_eq!(address.parse().unwrap().path().unwrap().as_os_str().as_bytes(), b"/tmp/\xff");
    }
}
