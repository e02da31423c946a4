//! Refusing a client: the message in its own protocol, and the log entry.

use std::os::fd::OwnedFd;

use rustix::net::{self, RecvFlags, SendFlags, Shutdown, recv, shutdown};

use super::log;
use crate::sys;
use crate::wire::Protocol;
use crate::wire::error_body::kind;
use crate::wire::refusal::encode;

/// The answer to a client that gets no worker.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The client's protocol, if it has sent anything.
    protocol: Option<Protocol>,
    kind: &'static str,
    pub(crate) reason: String,
    /// The preamble has been sent.
    is_preamble_sent: bool,
}

impl Refusal {
    /// The client may not use the server. A client that has sent nothing most likely speaks the
    /// native protocol.
    pub(crate) fn access(protocol: Option<Protocol>, reason: String) -> Self {
        let protocol = protocol.or(Some(Protocol::Native));
        Self { protocol, kind: kind::REFUSED, reason, is_preamble_sent: false }
    }

    /// The first message was wrong or late.
    pub(crate) fn handshake(protocol: Option<Protocol>, reason: String) -> Self {
        Self { protocol, kind: kind::REFUSED, reason, is_preamble_sent: false }
    }

    /// The server has no worker for the client now.
    pub(crate) fn busy(protocol: Protocol, reason: String) -> Self {
        Self { protocol: Some(protocol), kind: kind::BUSY, reason, is_preamble_sent: false }
    }

    /// Sets whether the client has been sent the preamble before.
    pub(crate) fn with_preamble_sent(self, is_preamble_sent: bool) -> Self {
        Self { is_preamble_sent, ..self }
    }
}

/// Sends the refusal, and ends the connection.
pub(crate) fn send(connection: &OwnedFd, refusal: &Refusal) {
    let encode =
        |protocol| encode(protocol, refusal.kind, &refusal.reason, refusal.is_preamble_sent);
    let out = refusal.protocol.map(encode).unwrap_or_default();
    if out.is_empty() {
        return;
    }
    // The client may be gone.
    let _ = net::send(connection, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    let _ = shutdown(connection, Shutdown::Write);
    // If a connection is closed with unread bytes, the kernel sends a reset, and the peer may not
    // see the refusal.
    let mut unread = [0; 4096];
    for _ in 0..16 {
        match recv(connection, &mut unread, RecvFlags::DONTWAIT) {
            Ok((_, length)) if length > 0 => {}
            _ => return,
        }
    }
}

/// Logs that a connection was refused.
pub(crate) fn log(name: &str, connection: &OwnedFd, reason: &str) {
    match sys::peer_credentials(connection) {
        Some(peer) => log::warn!(
            name,
            uid = peer.uid,
            gid = peer.gid,
            pid = peer.pid,
            "refused a connection: {reason}"
        ),
        None => match sys::peer_address(connection) {
            Some(address) => {
                log::warn!(name, %address, "refused a connection: {reason}");
            }
            None => log::warn!(name, "refused a connection: {reason}"),
        },
    }
}
