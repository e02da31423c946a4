//! Connections whose first message is not complete: how many there may be, and how long each may take.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Supervisor;
use super::action::{Action, ConnectionKey, HandshakeFailure};

#[derive(Debug, Default)]
pub(super) struct Handshakes {
    /// In the order of arrival, each with its deadline.
    pending: BTreeMap<ConnectionKey, Option<Duration>>,
    deadlines: BTreeSet<(Duration, ConnectionKey)>,
}

impl Handshakes {
    /// The earliest deadline.
    pub(super) fn due(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.deadlines.clear();
    }

    fn set_deadline(&mut self, connection: ConnectionKey, deadline: Duration) {
        if let Some(pending @ None) = self.pending.get_mut(&connection) {
            *pending = Some(deadline);
            self.deadlines.insert((deadline, connection));
        }
    }

    fn remove(&mut self, connection: ConnectionKey) {
        if let Some(Some(deadline)) = self.pending.remove(&connection) {
            self.deadlines.remove(&(deadline, connection));
        }
    }
}

impl Supervisor {
    /// A connection whose first message is not complete. Its time counts from now, or from its first byte
    /// if it `may_be_silent`. With too many of them, the oldest ends.
    pub(crate) fn handle_connection(
        &mut self,
        connection: ConnectionKey,
        may_be_silent: bool,
        now: Duration,
    ) {
        self.handshakes.pending.insert(connection, None);
        if self.handshakes.pending.len() > self.config.max_handshakes
            && let Some((&oldest, _)) = self.handshakes.pending.first_key_value()
        {
            self.end_handshake(oldest, HandshakeFailure::TooMany);
        }
        if !may_be_silent {
            self.handle_handshake_bytes(connection, now);
        }
    }

    /// Bytes of the first message have arrived.
    pub(crate) fn handle_handshake_bytes(&mut self, connection: ConnectionKey, now: Duration) {
        if let Some(timeout) = self.config.handshake_timeout {
            self.handshakes.set_deadline(connection, now.saturating_add(timeout));
        }
    }

    /// The connection has ended, or its first message is complete or invalid. Returns the time by which
    /// the message had to be complete.
    pub(crate) fn handle_handshake_end(&mut self, connection: ConnectionKey) -> Option<Duration> {
        let deadline = self.handshakes.pending.get(&connection).copied().flatten();
        self.handshakes.remove(connection);
        deadline
    }

    pub(super) fn end_late_handshakes(&mut self, now: Duration) {
        while let Some(&(deadline, connection)) = self.handshakes.deadlines.first()
            && deadline <= now
        {
            self.end_handshake(connection, HandshakeFailure::Late);
        }
    }

    fn end_handshake(&mut self, connection: ConnectionKey, why: HandshakeFailure) {
        self.handshakes.remove(connection);
        self.actions.push_back(Action::EndHandshake { connection, why });
    }
}
