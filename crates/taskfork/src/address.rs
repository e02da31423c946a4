//! Parses and formats addresses. `server::listener` and `client::io::transport` open the sockets.

#[cfg(feature = "nats")]
pub(crate) mod nats;

use std::any::Any;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

#[cfg(feature = "nats")]
use self::nats::NatsAddress;
use crate::display::debug_as_text;

/// Prefix of a path with percent-encoded bytes.
const PERCENT: &str = "unix-percent:";

/// The longest path that fits a `sockaddr_un`, without the terminating zero byte.
const MAX_SOCKET_PATH: usize = 107;

/// The address on which a server listens, or to which a client connects.
///
/// | text | meaning |
/// |---|---|
/// | `unix:PATH` | a unix socket in the file system |
/// | `unix-percent:PATH` | a unix socket; `%` and two hexadecimal digits stand for a byte |
/// | `tcp:HOST:PORT` | TCP; write an IPv6 host in brackets; with port 0 the kernel chooses one |
/// | `tls:HOST:PORT` | the gateway of a server, through TLS (clients only, with the feature `tls`) |
/// | `nats://HOST:PORT/SERVICE` | any node of a service at NATS (clients only, with the feature `nats`) |
/// | `nats+tls://HOST:PORT/SERVICE` | the same with TLS to the NATS server |
/// | `fd:NUMBER` | a listening socket inherited from the parent process (servers only) |
///
/// `Display` writes the same forms: `unix:PATH` if the path is UTF-8, `unix-percent:PATH` otherwise.
/// All texts can be parsed again, except that of a [`ServerHandle`](crate::server::ServerHandle)'s
/// address.
///
/// The port of a NATS server defaults to 4222. Several servers have commas between them, as in
/// `nats://a:4222,b:4222/SERVICE`. Each may have a user and a password, as in
/// `nats://USER:PASSWORD@HOST/SERVICE`, which `Display` leaves out.
///
/// ```
/// use taskfork::client::Address;
///
/// let address: Address = "unix:/run/passwords.sock".parse()?;
/// assert_eq!(address.to_string(), "unix:/run/passwords.sock");
///
/// let mistake = "passwords.sock".parse::<Address>().unwrap_err();
/// assert!(mistake.to_string().contains("unix:PATH"));
/// # Ok::<(), taskfork::client::AddressError>(())
/// ```
#[derive(Clone)]
pub struct Address(pub(crate) AddressKind);

/// The kinds of addresses.
#[derive(Clone)]
pub(crate) enum AddressKind {
    Unix(PathBuf),
    Tcp {
        host: String,
        port: u16,
    },
    /// A gateway.
    #[cfg(feature = "tls")]
    Tls {
        host: String,
        port: u16,
    },
    /// A service.
    #[cfg(feature = "nats")]
    Nats(NatsAddress),
    Inherited(RawFd),
    /// A server that this program started, without a socket in the file system. Clients connect
    /// through its control socket.
    Spawned(Arc<dyn LocalServer>),
    /// A server of a test in this process.
    #[cfg(test)]
    Memory(Arc<dyn MemoryServer>),
}

impl AddressKind {
    /// Whether workers are threads of this process.
    pub(crate) fn is_in_process(&self) -> bool {
        matches!(self, Self::Spawned(server) if server.runs_in_this_process())
    }

    /// Whether this is the name of several servers, of which any may take a connection.
    pub(crate) fn is_service(&self) -> bool {
        match self {
            #[cfg(feature = "nats")]
            Self::Nats(_) => true,
            _ => false,
        }
    }

    /// Whether connections can carry open files.
    pub(crate) fn carries_files(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Inherited(_) | Self::Spawned(_) => true,
            Self::Tcp { .. } => false,
            #[cfg(feature = "tls")]
            Self::Tls { .. } => false,
            #[cfg(feature = "nats")]
            Self::Nats(_) => false,
            #[cfg(test)]
            Self::Memory(_) => true,
        }
    }
}

/// A server without sockets. What it makes connections to is known to the module `client::io::transport::memory`.
#[cfg(test)]
pub(crate) trait MemoryServer: Any + Send + Sync + UnwindSafe + RefUnwindSafe {}

/// A server that this program started, or threads of it that serve. The trait lets an address refer to one without knowing the module `server`,
/// which parses addresses itself.
pub(crate) trait LocalServer: Any + Send + Sync + UnwindSafe + RefUnwindSafe {
    /// Returns the id of the server's process.
    fn pid(&self) -> u32;

    /// Returns the two ends of a new connection. The second is for the server.
    ///
    /// # Errors
    /// If the server does not run, or the system has no file descriptor left.
    fn connection(&self) -> io::Result<[OwnedFd; 2]>;

    /// Passes the server its end of a connection. The server forks a worker at once if the client's first
    /// message has been sent before.
    ///
    /// # Errors
    /// If the server does not run.
    fn pass(&self, connection: &OwnedFd) -> io::Result<()>;

    /// Whether its workers are threads of this process, so that nobody can kill them.
    fn runs_in_this_process(&self) -> bool {
        false
    }
}

/// Why a text or a path is not a valid address.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The text has an unknown form.
    #[error(
        "`{text}` is not an address: write unix:PATH, tcp:HOST:PORT, tls:HOST:PORT, \
         nats://HOST:PORT/SERVICE or fd:NUMBER"
    )]
    Unknown {
        /// The text as it was given.
        text: String,
    },
    /// The path is empty or contains a zero byte.
    #[error("`{text}` names no usable socket path: write unix:PATH, as in unix:/run/app.sock")]
    Path {
        /// The text as it was given.
        text: String,
    },
    /// Two hexadecimal digits must follow each percent sign.
    #[error(
        "`{text}` has a `%` without two hexadecimal digits: write %25 for the percent sign itself"
    )]
    Percent {
        /// The text as it was given.
        text: String,
    },
    /// The path is too long for the kernel's socket address.
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
    /// The host or the port is missing, or the port is not a number up to 65535.
    #[error(
        "`{text}` names no TCP port: write tcp:HOST:PORT, as in tcp:127.0.0.1:4000 or tcp:[::1]:4000"
    )]
    Tcp {
        /// The text as it was given.
        text: String,
    },
    /// The host or the port of a gateway is missing, or the port is not a number up to 65535.
    #[error(
        "`{text}` names no gateway: write tls:HOST:PORT, as in tls:adder.example:7000 or tls:[::1]:7000; or \
         nats+tls://HOST:PORT/SERVICE for a service at NATS"
    )]
    Tls {
        /// The text as it was given.
        text: String,
    },
    /// The address needs a feature of this crate that the program was built without.
    #[error(
        "`{text}` needs TLS, which this program was built without: enable the feature `tls` of the \
         crate taskfork"
    )]
    NoTls {
        /// The text as it was given.
        text: String,
    },
    /// A host, a port or the name of the service at NATS is wrong.
    #[error(
        "`{text}` names no service at NATS: {why}; write nats://HOST:PORT/SERVICE, as in \
         nats://nats.example:4222/resize"
    )]
    Nats {
        /// The text as it was given, without passwords.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// The address needs a feature of this crate that the program was built without.
    #[error(
        "`{text}` needs NATS, which this program was built without: enable the feature `nats` of the \
         crate taskfork"
    )]
    NoNats {
        /// The text as it was given, without users and passwords.
        text: String,
    },
    /// The number of the descriptor is missing.
    #[error("`{text}` names no descriptor: write fd:NUMBER, as in fd:3")]
    Descriptor {
        /// The text as it was given.
        text: String,
    },
}

debug_as_text!(AddressError);

impl Address {
    /// Returns the address of a unix socket in the file system.
    ///
    /// # Errors
    /// [`AddressError::Path`] if the path is empty or contains a zero byte,
    /// [`AddressError::PathTooLong`] if it has more than 107 bytes.
    ///
    /// ```
    /// let address = taskfork::client::Address::unix("/run/passwords.sock")?;
    /// # Ok::<(), taskfork::client::AddressError>(())
    /// ```
    pub fn unix(path: impl Into<PathBuf>) -> Result<Self, AddressError> {
        let path = path.into();
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(AddressError::Path { text: format!("unix:{}", path.display()) });
        }
        if bytes.len() > MAX_SOCKET_PATH {
            let length = bytes.len();
            return Err(AddressError::PathTooLong { path, length, max: MAX_SOCKET_PATH });
        }
        Ok(Self(AddressKind::Unix(path)))
    }

    /// Returns a TCP address. `host` is a name or an IP address, IPv6 without brackets.
    ///
    /// ```
    /// assert_eq!(taskfork::client::Address::tcp("::1", 4000).to_string(), "tcp:[::1]:4000");
    /// ```
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self(AddressKind::Tcp { host: host.into(), port })
    }

    /// Returns the address of a gateway, to which clients connect through TLS. `host` is a name or an IP
    /// address, IPv6 without brackets.
    ///
    /// ```
    /// let address = taskfork::client::Address::tls("adder.example", 7000);
    /// assert_eq!(address.to_string(), "tls:adder.example:7000");
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls(host: impl Into<String>, port: u16) -> Self {
        Self(AddressKind::Tls { host: host.into(), port })
    }

    #[cfg(feature = "tls")]
    fn of_gateway(host: &str, port: u16, _: &str) -> Result<Self, AddressError> {
        Ok(Self::tls(host, port))
    }

    #[cfg(not(feature = "tls"))]
    fn of_gateway(_: &str, _: u16, text: &str) -> Result<Self, AddressError> {
        Err(AddressError::NoTls { text: text.to_owned() })
    }

    #[cfg(feature = "nats")]
    fn of_service(text: &str) -> Result<Self, AddressError> {
        match NatsAddress::parse(text) {
            Ok(address) => Ok(Self(AddressKind::Nats(address))),
            Err(why) => Err(AddressError::Nats { text: nats::shown(text), why }),
        }
    }

    #[cfg(not(feature = "nats"))]
    fn of_service(text: &str) -> Result<Self, AddressError> {
        Err(AddressError::NoNats { text: without_credentials(text) })
    }

    /// Returns the address of a listening socket that this process inherited as this descriptor.
    ///
    /// ```
    /// // The first descriptor that a service manager passes on.
    /// assert_eq!(taskfork::client::Address::inherited(3).to_string(), "fd:3");
    /// ```
    pub fn inherited(descriptor: RawFd) -> Self {
        Self(AddressKind::Inherited(descriptor))
    }

    /// The path of a unix socket, or `None` for other addresses.
    ///
    /// ```
    /// use taskfork::client::Address;
    ///
    /// let address = Address::tcp("localhost", 4000);
    /// assert_eq!(address.path(), None);
    /// ```
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            AddressKind::Unix(path) => Some(path),
            _ => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text_owned = || without_credentials(text);
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::unix(path);
        }
        if let Some(path) = text.strip_prefix(PERCENT) {
            let path =
                decoded(path).ok_or_else(|| AddressError::Percent { text: text.to_owned() })?;
            return Self::unix(OsString::from_vec(path));
        }
        if let Some(rest) = text.strip_prefix("tcp:") {
            let (host, port) =
                parse_port(rest).ok_or_else(|| AddressError::Tcp { text: text_owned() })?;
            return Ok(Self::tcp(host, port));
        }
        if let Some(rest) = text.strip_prefix("tls:") {
            let (host, port) =
                parse_port(rest).ok_or_else(|| AddressError::Tls { text: text_owned() })?;
            return Self::of_gateway(host, port, text);
        }
        if text.starts_with("nats://") || text.starts_with("nats+tls://") {
            return Self::of_service(text);
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

/// The text of a wrong address without what may be a password: errors are logged. What stands behind the scheme of a URL, or in
/// front of an `@`, may be one.
fn without_credentials(text: &str) -> String {
    let is_scheme =
        |scheme: &str| scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'+');
    match text.split_once("://") {
        Some((scheme, _)) if is_scheme(scheme) => return format!("{scheme}://…"),
        Some(_) => return "…".to_owned(),
        None => {}
    }
    if let Some((scheme, _)) = text.split_once(':').filter(|(scheme, _)| scheme.starts_with("nats"))
    {
        return format!("{scheme}:…");
    }
    // It may be written as `%40`.
    let behind = ["@", "%40"].into_iter().filter_map(|at| Some(text.rsplit_once(at)?.1));
    match behind.min_by_key(|rest| rest.len()) {
        Some(rest) => format!("…@{rest}"),
        None => text.to_owned(),
    }
}

/// Decodes a percent-encoded path.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut pieces = text.as_bytes().split(|&byte| byte == b'%');
    let mut path = pieces.next()?.to_owned();
    for piece in pieces {
        let (digits, rest) = piece.split_first_chunk::<2>()?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = digit(digits[0])? << 4 | digit(digits[1])?;
        path.push(u8::try_from(byte).ok()?);
        path.extend_from_slice(rest);
    }
    Some(path)
}

/// Writes a path as part of an address.
fn show_path(path: &Path, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(text) = path.to_str() {
        return write!(out, "unix:{text}");
    }
    out.write_str(PERCENT)?;
    path.as_os_str().as_bytes().iter().try_for_each(|&byte| match byte {
        b'%' | 0..b'!' | 0x7f.. => write!(out, "%{byte:02X}"),
        byte => write!(out, "{}", char::from(byte)),
    })
}

/// Writes a host and a port as an address.
fn show_port(kind: &str, host: &str, port: u16, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    match host.contains(':') {
        true => write!(out, "{kind}:[{host}]:{port}"),
        false => write!(out, "{kind}:{host}:{port}"),
    }
}

/// Splits `HOST:PORT`.
pub(crate) fn parse_port(rest: &str) -> Option<(&str, u16)> {
    let (host, port) = rest.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    // What stands before an `@` may be a password, and addresses are shown.
    let is_wrong = host.contains(['[', ']', '@', '/']) || host.contains("%40");
    (!host.is_empty() && !is_wrong).then_some((host, port))
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

/// Parses an address whose path need not be UTF-8.
impl TryFrom<&OsStr> for Address {
    type Error = AddressError;

    fn try_from(text: &OsStr) -> Result<Self, AddressError> {
        match (text.to_str(), text.as_bytes().strip_prefix(b"unix:")) {
            (Some(text), _) => text.parse(),
            (None, Some(path)) => Self::unix(OsStr::from_bytes(path)),
            (None, None) => {
                Err(AddressError::Unknown { text: text.to_string_lossy().into_owned() })
            }
        }
    }
}

/// Parses an address whose path need not be UTF-8.
impl TryFrom<OsString> for Address {
    type Error = AddressError;

    fn try_from(text: OsString) -> Result<Self, AddressError> {
        Self::try_from(text.as_os_str())
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
            AddressKind::Unix(path) => show_path(path, out),
            AddressKind::Tcp { host, port } => show_port("tcp", host, *port, out),
            #[cfg(feature = "tls")]
            AddressKind::Tls { host, port } => show_port("tls", host, *port, out),
            #[cfg(feature = "nats")]
            AddressKind::Nats(address) => address.fmt(out),
            AddressKind::Inherited(descriptor) => write!(out, "fd:{descriptor}"),
            AddressKind::Spawned(server) if server.runs_in_this_process() => {
                out.write_str("threads of this process")
            }
            AddressKind::Spawned(server) => write!(out, "process {}", server.pid()),
            #[cfg(test)]
            AddressKind::Memory(_) => out.write_str("a server of a test"),
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
    use proptest::prelude::*;

    use super::*;

    fn error_of(text: &str) -> String {
        text.parse::<Address>().unwrap_err().to_string()
    }

    #[test]
    fn every_form_is_displayed_as_it_was_parsed() {
        for text in ["unix:/run/a.sock", "unix:a.sock", "tcp:localhost:80", "tcp:[::1]:0", "fd:3"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn every_path_survives_display_and_parse(
            path in prop::collection::vec(prop_oneof![1..=255_u8, Just(b'%')], 1..=MAX_SOCKET_PATH),
        ) {
            let path = PathBuf::from(OsString::from_vec(path));
            let address = Address::unix(&path).unwrap();
            let text = address.to_string();
            let again: Address = text.parse().unwrap();
            prop_assert_eq!(again.path(), Some(&*path), "{}", text);
            let given = OsString::from_vec([b"unix:", path.as_os_str().as_bytes()].concat());
            let again = Address::try_from(given).unwrap();
            prop_assert_eq!(again.path(), Some(&*path));
        }
    }

    #[test]
    fn percent_signs_are_decoded_only_after_unix_percent() {
        let path = |text: &str| text.parse::<Address>().unwrap().path().map(Path::to_owned);
        assert_eq!(path("unix:/run/a%20b"), Some("/run/a%20b".into()));
        assert_eq!(path("unix-percent:/run/a%20b"), Some("/run/a b".into()));
        let bytes = OsStr::from_bytes(b"/run/100% \xff");
        let address = Address::unix(bytes).unwrap();
        assert_eq!(address.to_string(), "unix-percent:/run/100%25%20%FF");
        for text in ["unix-percent:%", "unix-percent:%2", "unix-percent:%zz", "unix-percent:%+1"] {
            assert!(error_of(text).contains("hexadecimal"), "{text}");
        }
        assert!(error_of("unix-percent:%00").contains("names no usable socket path"));
        let wrong = Address::try_from(OsStr::from_bytes(b"/run/\xff")).unwrap_err();
        assert!(wrong.to_string().contains("unix:PATH"), "{wrong}");
    }

    #[test]
    fn an_error_names_the_form_to_write() {
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
            "tcp://host:80",
        ] {
            assert!(error_of(text).contains("tcp:HOST:PORT"), "{text}");
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn a_gateway_has_a_host_and_a_port() {
        for text in ["tls:adder.example:7000", "tls:[::1]:7000"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["tls:adder.example", "tls://adder.example:7000", "tls://nats.example:4222/s"] {
            let error = error_of(text);
            assert!(error.contains("tls:HOST:PORT") && error.contains("nats+tls://"), "{error}");
        }
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn the_address_of_a_gateway_needs_a_feature() {
        assert!(error_of("tls:adder.example:7000").contains("feature `tls`"));
        assert!(error_of("tls:adder.example").contains("tls:HOST:PORT"));
    }

    #[test]
    fn what_may_be_a_password_is_not_in_an_error() {
        for text in [
            "nats:me:zqxv@a/s",
            "nats:me:zqxv",
            "mats://me:zqxv/s",
            "me:zqxv://a/s",
            "me:zqxv@a",
            "me:zqxv%40a",
            "tcp:me:zqxv@a:1",
            "tcp:zqxv@a:1",
            "tls:me:zqxv@a:1",
            "tls:zqxv%40a:1",
            "nats://me:zqxv%40a/s",
            "nats://me:zqxv/s.t",
            "nats+tls://me:zqxv%40a/s",
        ] {
            let error = error_of(text);
            assert!(!error.contains("zqxv"), "{error}");
        }
        // Paths have no passwords.
        assert!(error_of("unix-percent:/run/me@a%").contains("/run/me@a%"));
    }

    #[test]
    #[cfg(not(feature = "nats"))]
    fn the_address_of_a_service_needs_a_feature() {
        let error = error_of("nats://me:pass@nats.example/resize");
        assert!(error.contains("feature `nats`") && !error.contains("pass@"), "{error}");
    }

    #[test]
    fn a_path_too_long_for_the_kernel_is_refused_with_both_lengths() {
        let fits = format!("unix:/{}", "a".repeat(MAX_SOCKET_PATH - 1));
        assert!(fits.parse::<Address>().is_ok());

        let long = error_of(&format!("unix:/{}", "a".repeat(MAX_SOCKET_PATH)));
        assert!(long.contains("108 bytes") && long.contains("at most 107"), "{long}");
    }
}
