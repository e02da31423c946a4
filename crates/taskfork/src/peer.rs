//! Who is at the other end of a worker's connection.

use std::fmt;

use log_defer::printable;
use serde::{Deserialize, Serialize};

use crate::sys::Credentials;

/// Who is at the other end of a worker's connection. See [`Context::peer`](crate::worker::Context::peer) and
/// [`WorkerStatus::peer`](crate::server::WorkerStatus::peer).
///
/// As text it is one line that is safe to show in a terminal. As JSON it is a map whose `kind` is `process`,
/// `tls` or `nats`, and whose other keys are the fields.
///
/// ```
/// use taskfork::worker::Peer;
///
/// fn may_write(peer: &Peer) -> bool {
///     match peer {
///         Peer::Process { uid, .. } => *uid == 0,
///         Peer::Tls { names, .. } => names.iter().any(|name| name == "writer.example"),
///         _ => false,
///     }
/// }
/// # let _ = may_write;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Peer {
    /// A process of this machine, as the kernel recorded it when the process connected to the unix socket.
    #[non_exhaustive]
    Process {
        /// Its effective user id.
        uid: u32,
        /// Its effective group id.
        gid: u32,
        /// Its process id, or 0 if the process is not visible in the worker's PID namespace. The process may
        /// have ended meanwhile, and its process id may belong to another process.
        pid: u32,
    },
    /// A client on another machine, whose TLS connection a gateway relays.
    #[non_exhaustive]
    Tls {
        /// The subject alternative names of its certificate, which the gateway has verified. Empty if the client
        /// has none.
        names: Vec<String>,
        /// Its address, usually `IP:PORT`. It does not authenticate the client.
        address: Option<String>,
    },
    /// A client that has found the server's node by NATS. Its user at the NATS server is not known: messages of NATS do not have it.
    #[non_exhaustive]
    Nats {
        /// The name that it has given itself. It does not authenticate the client.
        #[serde(default)]
        name: Option<String>,
        /// Its address, usually `IP:PORT`, if it is connected to the gateway directly. `None` if its session passes NATS. It
        /// does not authenticate the client.
        address: Option<String>,
    },
}

impl Peer {
    /// The address of a client on another machine, as its gateway has reported it.
    pub(crate) fn address(&self) -> Option<&str> {
        match self {
            Self::Process { .. } => None,
            Self::Tls { address, .. } | Self::Nats { address, .. } => address.as_deref(),
        }
    }
}

impl From<Credentials> for Peer {
    fn from(Credentials { uid, gid, pid }: Credentials) -> Self {
        Self::Process { uid, gid, pid }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { uid, pid: 0, .. } => return write!(out, "a process of user {uid}"),
            Self::Process { uid, pid, .. } => return write!(out, "process {pid} of user {uid}"),
            Self::Tls { names, .. } => {
                out.write_str("TLS client")?;
                // A certificate may have many names, and a line of the log must stay readable.
                if let Some((first, more)) = names.split_first() {
                    write!(out, " `{}`", printable(first))?;
                    match more.len() {
                        0 => {}
                        1 => out.write_str(" and 1 more name")?,
                        count => write!(out, " and {count} more names")?,
                    }
                }
            }
            Self::Nats { name, .. } => {
                out.write_str("NATS client")?;
                if let Some(name) = name {
                    write!(out, " named `{}`", printable(name))?;
                }
            }
        }
        match self.address() {
            Some(address) => write!(out, " at {}", printable(address)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(names: &[&str], address: Option<&str>) -> Peer {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        Peer::Tls { names, address: address.map(str::to_owned) }
    }

    #[test]
    fn a_peer_is_one_line_of_text() {
        let nats = |name: Option<&str>, address: Option<&str>| {
            let (name, address) = (name.map(str::to_owned), address.map(str::to_owned));
            Peer::Nats { name, address }
        };
        for (peer, text) in [
            (Peer::Process { uid: 7, gid: 8, pid: 9 }, "process 9 of user 7"),
            (Peer::Process { uid: 7, gid: 8, pid: 0 }, "a process of user 7"),
            (tls(&[], Some("10.0.0.1:5")), "TLS client at 10.0.0.1:5"),
            (tls(&["a"], None), "TLS client `a`"),
            (tls(&["a", "b"], Some("h\n")), "TLS client `a` and 1 more name at h\\n"),
            (tls(&["a", "b", "c"], None), "TLS client `a` and 2 more names"),
            (nats(None, None), "NATS client"),
            (nats(Some("web\n\u{1b}[2J"), None), "NATS client named `web\\n\\x1b[2J`"),
            (nats(Some("web"), Some("10.0.0.1:5")), "NATS client named `web` at 10.0.0.1:5"),
        ] {
            assert_eq!(peer.to_string(), text);
        }
    }

    #[test]
    fn a_peer_is_a_map_in_json() {
        for (peer, json) in [
            (
                Peer::Process { uid: 7, gid: 8, pid: 9 },
                r#"{"kind":"process","uid":7,"gid":8,"pid":9}"#,
            ),
            (tls(&["a"], None), r#"{"kind":"tls","names":["a"],"address":null}"#),
        ] {
            assert_eq!(serde_json::to_string(&peer).unwrap(), json);
            assert_eq!(serde_json::from_str::<Peer>(json).unwrap(), peer);
        }
    }
}
