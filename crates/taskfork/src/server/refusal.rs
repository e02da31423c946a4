//! Telling a client that it is not served, in its own protocol, and the log, without a flood of lines.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::sys;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::frame::{self, DEFAULT_LIMIT, PREAMBLE};
use crate::wire::{Protocol, WireError, native, perl};

/// The most refusals that are logged one by one in a second.
const LINES: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// The answer to a client that gets no worker.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The one that the client speaks, if it has said anything.
    protocol: Option<Protocol>,
    kind: &'static str,
    pub(crate) reason: String,
    /// The preamble has been sent.
    is_begun: bool,
}

impl Refusal {
    /// The client may not use the server. If it has sent nothing, it most likely speaks the native protocol.
    pub(crate) fn access(protocol: Option<Protocol>, reason: String) -> Self {
        let protocol = protocol.or(Some(Protocol::Native));
        Self { protocol, kind: kind::REFUSED, reason, is_begun: false }
    }

    /// Its first message was wrong or late.
    pub(crate) fn handshake(protocol: Option<Protocol>, reason: String) -> Self {
        Self { protocol, kind: kind::REFUSED, reason, is_begun: false }
    }

    /// The server has no worker for it now.
    pub(crate) fn busy(protocol: Protocol, reason: String) -> Self {
        Self { protocol: Some(protocol), kind: kind::BUSY, reason, is_begun: false }
    }

    /// The same for a client that may have been told something before.
    pub(crate) fn after_preamble(self, is_begun: bool) -> Self {
        Self { is_begun, ..self }
    }
}

/// Sends the refusal to the client, and ends the connection.
pub(crate) fn tell(connection: &OwnedFd, refusal: &Refusal) {
    let mut out = Vec::new();
    match refusal.protocol {
        None => {}
        Some(Protocol::Perl) => perl::error(&mut out, None, &refusal.reason),
        Some(Protocol::Native) => {
            let body =
                ErrorBody { kind: refusal.kind, message: &refusal.reason, ..ErrorBody::default() };
            if !refusal.is_begun {
                out.extend_from_slice(PREAMBLE);
            }
            let written = frame::write::<WireError>(&mut out, DEFAULT_LIMIT, |out| {
                native::put_error(out, None, &body);
                Ok(())
            });
            if written.is_err() {
                return;
            }
        }
    }
    if out.is_empty() {
        return;
    }
    // A client that is gone needs no word.
    let _ = send(connection, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    let _ = shutdown(connection, Shutdown::Write);
    // If the connection is closed with bytes unread, the peer sees a reset, before or instead of the
    // refusal.
    let mut unread = [0; 4096];
    for _ in 0..16 {
        match recv(connection, &mut unread, RecvFlags::DONTWAIT) {
            Ok((_, length)) if length > 0 => {}
            _ => return,
        }
    }
}

/// What has been logged of refusals lately.
#[derive(Debug)]
pub(crate) struct Refusals {
    since: Instant,
    lines: u32,
    omitted: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { since: Instant::now(), lines: 0, omitted: 0 }
    }
}

impl Refusals {
    pub(crate) fn log(&mut self, name: &str, connection: &OwnedFd, reason: &str) {
        let Some(omitted) = self.next(Instant::now()) else { return };
        if omitted > 0 {
            tracing::warn!(name, "refused {omitted} more connections since then");
        }
        match sys::peer(connection) {
            Some(peer) => tracing::warn!(
                name,
                uid = peer.uid,
                gid = peer.gid,
                pid = peer.pid,
                "refused a connection: {reason}"
            ),
            None => match sys::peer_address(connection) {
                Some(address) => {
                    tracing::warn!(name, %address, "refused a connection: {reason}");
                }
                None => tracing::warn!(name, "refused a connection: {reason}"),
            },
        }
    }

    /// If a line is to be logged now: how many refusals before it were not logged.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) >= SECOND {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines >= LINES {
            self.omitted += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.omitted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_logged_one_by_one() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let lines = (0..1000).filter(|_| refusals.next(start).is_some()).count();
        assert_eq!(lines, LINES as usize);
        assert_eq!(refusals.next(start + SECOND), Some(1000 - u64::from(LINES)));
        assert_eq!(refusals.next(start + SECOND), Some(0));
    }
}
