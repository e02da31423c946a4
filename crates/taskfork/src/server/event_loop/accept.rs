//! Accepting connections, and reading first messages until a client can be given to a worker.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::EventLoop;
use super::state::Connections;
use crate::clock;
use crate::display::seconds;
use crate::server::access::Origin;
use crate::server::handshakes::{PendingHandshake, ReadOutcome};
use crate::server::log;
use crate::server::refusal::{self, Refusal};
use crate::server::supervisor::{ConnectionKey, HandshakeFailure};
use crate::wire::Protocol;
use crate::wire::first_message::{self, FirstMessage, Introduction, Progress};
use crate::worker::AcceptedClient;

/// How many connections are accepted before other events get their turn.
const BATCH: usize = 64;

/// How many bytes are peeked at when a connection is accepted. The hello of this crate's client is
/// shorter.
const PEEK_SIZE: usize = 1024;

impl EventLoop {
    /// Accepts connections until a worker has got one, since a fork takes long, or until other events
    /// get their turn.
    pub(super) fn accept(&mut self) {
        for _ in 0..BATCH {
            let Some(listener) = &self.connections.listener else { return };
            let origin = listener.origin();
            match listener.accept() {
                Ok(connection) => {
                    if self.admit(connection, origin) {
                        return;
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(errno) => {
                    if self.logs.limits.accept.acquire(Instant::now()) {
                        log::error!("cannot accept connections for a while: {errno}");
                    }
                    self.supervisor.handle_accept_failed(clock::now());
                    return;
                }
            }
        }
    }

    /// Passes a new connection to a worker if its first message has arrived. Otherwise it becomes a
    /// pending handshake. Returns whether a worker has the connection.
    pub(super) fn admit(&mut self, connection: OwnedFd, origin: Origin) -> bool {
        let mut room = [MaybeUninit::uninit(); PEEK_SIZE];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = recv(&connection, &mut room, flags).map(|((bytes, _), _)| &*bytes);
        if let Some(reason) = self.connections.rules.refusal(&connection) {
            let bytes = peeked.unwrap_or_default();
            self.refuse(connection, Refusal::access(first_message::protocol(bytes), reason));
            return false;
        }
        let bytes = match peeked {
            Ok([]) => return false,
            Ok(bytes) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => &[],
            Err(_) => return false,
        };
        match FirstMessage::default().scan(bytes, self.options.max_frame) {
            Ok(Progress::Complete(protocol)) => {
                let introduction = first_message::introduction(bytes);
                let client = AcceptedClient::new(connection, Vec::new(), None);
                self.route_client(client, protocol, origin, introduction);
                return true;
            }
            Ok(Progress::Needs(_) | Progress::TooLong(_)) => {}
            Err(error) => {
                self.connections.handshakes.failures += 1;
                let protocol = first_message::protocol(bytes);
                self.refuse(connection, Refusal::handshake(protocol, error.to_string()));
                return false;
            }
        }
        let Connections { handshakes, rules, .. } = &mut self.connections;
        let may_be_silent = handshakes.may_be_silent(&connection, origin, bytes.is_empty(), rules);
        match handshakes.add(connection, origin) {
            Ok(number) => {
                let key = ConnectionKey(number);
                self.supervisor.handle_connection(key, may_be_silent, clock::now());
                self.carry_out_actions();
                !bytes.is_empty() && self.read_handshake(number)
            }
            Err(errno) => {
                if self.logs.limits.accept.acquire(Instant::now()) {
                    log::error!("a connection cannot be watched: {errno}");
                }
                false
            }
        }
    }

    /// Reads from the connections that are readable, until a worker has got one of them.
    pub(super) fn read_handshakes(&mut self) {
        for number in self.connections.handshakes.ready() {
            if self.read_handshake(number) {
                return;
            }
        }
    }

    /// Reads from one connection. Returns whether a worker has got it.
    fn read_handshake(&mut self, number: u64) -> bool {
        let (key, now) = (ConnectionKey(number), clock::now());
        let outcome = self.connections.handshakes.read(number, self.options.max_frame);
        if self.connections.handshakes.has_bytes(number) {
            self.supervisor.handle_handshake_bytes(key, now);
        }
        let protocol = match &outcome {
            ReadOutcome::Incomplete => return false,
            ReadOutcome::Complete(protocol) | ReadOutcome::TooLong(protocol) => Some(*protocol),
            ReadOutcome::Invalid(_) | ReadOutcome::Closed => None,
        };
        let deadline = self.supervisor.handle_handshake_end(key);
        let Some(pending) = self.connections.handshakes.remove(number) else { return false };
        let Some(protocol) = protocol else {
            if let ReadOutcome::Invalid(reason) = outcome {
                self.refuse_handshake(pending, reason);
            }
            return false;
        };
        let deadline = deadline.filter(|_| matches!(outcome, ReadOutcome::TooLong(_)));
        let until = deadline.map(|deadline| Instant::now() + deadline.saturating_sub(now));
        let PendingHandshake { connection, received, origin, .. } = pending;
        let introduction = first_message::introduction(&received);
        let client = AcceptedClient::new(connection, received, until);
        self.route_client(client, protocol, origin, introduction);
        true
    }

    /// Refuses a connection whose first message is not complete.
    pub(super) fn end_handshake(&mut self, key: ConnectionKey, why: HandshakeFailure) {
        let handshakes = &mut self.connections.handshakes;
        let Some(pending) = handshakes.remove(key.0) else { return };
        let reason = match why {
            HandshakeFailure::TooMany => {
                format!("{} others wait with it (max_handshakes)", handshakes.limit())
            }
            HandshakeFailure::Late => {
                let after = seconds(handshakes.timeout().get().unwrap_or_default());
                format!("its greeting was not complete after {after} (handshake_timeout)")
            }
        };
        self.refuse_handshake(pending, reason);
    }

    fn refuse_handshake(&mut self, pending: PendingHandshake, reason: String) {
        self.connections.handshakes.failures += 1;
        let protocol = first_message::protocol(&pending.received);
        self.refuse(pending.connection, Refusal::handshake(protocol, reason));
    }

    /// Has a client with a complete first message placed. Refuses the client if `protocols` does not
    /// allow its protocol, and a gateway that may not be one.
    fn route_client(
        &mut self,
        mut client: AcceptedClient,
        protocol: Protocol,
        origin: Origin,
        introduction: Introduction,
    ) {
        let Introduction { client_number, relayed_peer } = introduction;
        let Connections { rules, client_ids, .. } = &self.connections;
        let names_peer = !matches!(relayed_peer, Ok(None));
        if let Some(reason) = rules.relay_refusal(&client.socket, names_peer) {
            return self.refuse(client.socket, Refusal::access(Some(protocol), reason));
        }
        client.relayed_peer = match relayed_peer {
            Ok(peer) => peer.map(Box::new),
            Err(error) => {
                let reason = format!("the `peer` of its first message is wrong: {error}");
                return self.refuse(client.socket, Refusal::access(Some(protocol), reason));
            }
        };
        if !rules.allows_protocol(protocol, origin) {
            let called = match protocol {
                Protocol::Native => "native protocol",
                Protocol::Perl => "JSON protocol",
            };
            let reason = format!("this server does not take the {called} here (protocols)");
            let refusal = Refusal::access(Some(protocol), reason).with_client(&client);
            self.refuse(client.socket, refusal);
        } else {
            let id =
                client_ids.identify(&client.socket, client_number, client.relayed_peer.as_deref());
            self.place_client(client, protocol, id);
        }
    }

    /// Sends a refusal to a client, and logs and counts it.
    pub(super) fn refuse(&mut self, connection: OwnedFd, refusal: Refusal) {
        if self.logs.limits.refusals.acquire(Instant::now()) {
            refusal::log(&self.options.name, &connection, &refusal);
        }
        self.status.counters.refused += 1;
        refusal::send(&connection, &refusal);
    }
}
