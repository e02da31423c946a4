//! The state of one side of a session: numbers, credit, heartbeats. No I/O; time is an argument.
//!
//! Messages of the other side go in by [`Link::receive`]. Messages to send come out of the methods that
//! return bytes, and must be sent in that order. Both sides have the same rules.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::wire::{End, Gather, MAX_WINDOW, Malformed, Message, Offer, PIECE_COST, gather_piece};

/// In what time a window must be consumed for it to grow. Longer than a round trip between continents.
const GROWTH_TIME: Duration = Duration::from_millis(500);

/// One side of a session.
#[derive(Debug)]
pub(crate) struct Link {
    sending: Sending,
    receiving: Receiving,
    /// The interval of heartbeats. A side that is silent for two of them is lost.
    heartbeat: Duration,
    last_sent: Instant,
    last_heard: Instant,
    /// When this side last looked at the time.
    last_look: Instant,
}

#[derive(Debug)]
struct Sending {
    /// The number of the next message.
    next: u64,
    /// What all pieces have cost.
    cost: u64,
    /// What they may cost.
    limit: u64,
    /// The longest piece.
    piece: usize,
    finished: bool,
}

#[derive(Debug)]
struct Receiving {
    /// The number that the next message must have.
    next: u64,
    /// What all pieces have cost.
    cost: u64,
    /// What the consumed ones of them have cost.
    consumed: u64,
    /// What they may cost, as the other side knows it.
    limit: u64,
    window: u64,
    /// The largest window.
    max_window: u64,
    /// What had been consumed, and when, when the window could grow last.
    growth: (u64, Instant),
    /// The longest piece.
    piece: usize,
    finished: bool,
}

/// What a message meant.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Received {
    /// The next bytes of the stream. They count as unread until [`Link::consume`].
    Bytes(Bytes),
    /// The other side takes more.
    Credit,
    /// The other side is there.
    Heartbeat,
    /// The stream is at its end.
    Finished,
    /// The session is over.
    Ended(End),
}

/// What the time demands.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Timeout {
    /// Nothing, until the next timeout.
    Nothing,
    /// A heartbeat, as bytes to send.
    Heartbeat(Bytes),
    /// The other side has been silent for this long.
    Lost(Duration),
}

/// How the other side has broken the protocol.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("messages are missing: number {received} came where {expected} was expected")]
    Gap { expected: u64, received: u64 },
    #[error("a message was repeated: number {received} came where {expected} was expected")]
    Repeated { expected: u64, received: u64 },
    #[error("more came than was asked for: {cost} bytes of credit were used, and {limit} given")]
    Overrun { cost: u64, limit: u64 },
    #[error("a piece of {length} bytes came; the longest one allowed has {limit}")]
    LongPiece { length: usize, limit: usize },
    #[error("a credit of {received} came; it must be between {least} and {most}")]
    Credit { received: u64, least: u64, most: u64 },
    #[error("data came after the end of the stream")]
    AfterFinish,
    #[error("{0} came")]
    Malformed(#[from] Malformed),
}

impl Link {
    /// A side that has offered `own` and got the offer `peer`.
    pub(crate) fn new(own: Offer, peer: Offer, now: Instant) -> Self {
        let heartbeat = own.heartbeat_ms.min(peer.heartbeat_ms);
        Self {
            sending: Sending {
                next: 0,
                cost: 0,
                limit: peer.window.into(),
                piece: peer.piece.min(own.piece) as usize,
                finished: false,
            },
            receiving: Receiving {
                next: 0,
                cost: 0,
                consumed: 0,
                limit: own.window.into(),
                window: own.window.into(),
                max_window: own.window.into(),
                growth: (0, now),
                piece: own.piece as usize,
                finished: false,
            },
            heartbeat: Duration::from_millis(heartbeat.into()),
            last_sent: now,
            last_heard: now,
            last_look: now,
        }
    }

    /// Lets the window grow while the other side sends much.
    pub(crate) fn with_growth(mut self) -> Self {
        self.receiving.max_window = MAX_WINDOW.into();
        self
    }

    /// How much may be unread, in bytes of credit.
    pub(crate) fn window(&self) -> u64 {
        self.receiving.window
    }

    /// Takes a message of the other side. After an error the session is over.
    pub(crate) fn receive(&mut self, now: Instant, bytes: Bytes) -> Result<Received, Violation> {
        let (number, message) = Message::decode(bytes)?;
        let receiving = &mut self.receiving;
        let expected = receiving.next;
        match number {
            received if received > expected => return Err(Violation::Gap { expected, received }),
            received if received < expected => {
                return Err(Violation::Repeated { expected, received });
            }
            _ => receiving.next += 1,
        }
        self.last_heard = now;
        match message {
            Message::Piece(bytes) => receiving.piece(bytes),
            Message::Credit(limit) => self.sending.credit(limit),
            Message::Heartbeat => Ok(Received::Heartbeat),
            Message::Finish if receiving.finished => Err(Violation::AfterFinish),
            Message::Finish => {
                receiving.finished = true;
                Ok(Received::Finished)
            }
            Message::End(end) => Ok(Received::Ended(end)),
        }
    }

    /// The user has taken a piece of this many bytes.
    pub(crate) fn consume(&mut self, length: usize) {
        let receiving = &mut self.receiving;
        receiving.consumed = (receiving.consumed + cost(length)).min(receiving.cost);
    }

    /// By how much the window should grow. It doubles if a whole window was consumed within [`GROWTH_TIME`], so that a
    /// sender that is far away, or not scheduled at once, is not kept waiting for credit.
    pub(crate) fn growth(&mut self, now: Instant) -> Option<u64> {
        let receiving = &mut self.receiving;
        let (consumed, since) = receiving.growth;
        if receiving.consumed - consumed < receiving.window {
            return None;
        }
        receiving.growth = (receiving.consumed, now);
        let growth = receiving.window.min(receiving.max_window - receiving.window);
        (growth > 0 && now.saturating_duration_since(since) < GROWTH_TIME).then_some(growth)
    }

    /// Enlarges the window.
    pub(crate) fn grow(&mut self, bytes: u64) {
        self.receiving.window += bytes;
    }

    /// A credit to send, once half of the window has been consumed. So there is one for many pieces.
    pub(crate) fn credit(&mut self, now: Instant) -> Option<Bytes> {
        let receiving = &mut self.receiving;
        let limit = receiving.consumed + receiving.window;
        if receiving.finished || limit - receiving.limit < receiving.window / 2 {
            return None;
        }
        receiving.limit = limit;
        Some(self.send(now, &Message::Credit(limit)))
    }

    /// The next piece to send and how many bytes of `data` it has. `None` if the other side takes
    /// no more now, or this side has finished.
    pub(crate) fn piece(&mut self, now: Instant, data: &mut Gather<'_>) -> Option<(Bytes, usize)> {
        let length = self.room().min(data.left());
        if length == 0 {
            return None;
        }
        let sending = &mut self.sending;
        sending.cost += cost(length);
        let bytes = gather_piece(sending.next, data, length);
        sending.next += 1;
        self.last_sent = now;
        Some((bytes, length))
    }

    /// How many bytes the next piece may have.
    pub(crate) fn room(&self) -> usize {
        let sending = &self.sending;
        if sending.finished {
            return 0;
        }
        let credit = (sending.limit - sending.cost).saturating_sub(PIECE_COST);
        usize::try_from(credit).unwrap_or(usize::MAX).min(sending.piece)
    }

    /// The end of this side's stream. `None` if it was sent before.
    pub(crate) fn finish(&mut self, now: Instant) -> Option<Bytes> {
        if std::mem::replace(&mut self.sending.finished, true) {
            return None;
        }
        Some(self.send(now, &Message::Finish))
    }

    /// The end of the session.
    pub(crate) fn end(&mut self, now: Instant, end: End) -> Bytes {
        self.send(now, &Message::End(end))
    }

    /// A heartbeat, whether or not one is due.
    pub(crate) fn heartbeat(&mut self, now: Instant) -> Bytes {
        self.send(now, &Message::Heartbeat)
    }

    /// Whether both streams are at their ends, so that nothing can follow.
    pub(crate) fn is_over(&self) -> bool {
        self.sending.finished && self.receiving.finished
    }

    /// Whether this side has ended its stream.
    pub(crate) fn has_finished(&self) -> bool {
        self.sending.finished
    }

    /// Whether the other side has ended its stream.
    pub(crate) fn peer_has_finished(&self) -> bool {
        self.receiving.finished
    }

    /// When to call [`Link::timeout`] at the latest.
    pub(crate) fn next_timeout(&self) -> Instant {
        (self.last_sent + self.heartbeat).min(self.last_heard + 2 * self.heartbeat)
    }

    /// What is due at this time. All messages that have come must have been taken before.
    pub(crate) fn timeout(&mut self, now: Instant) -> Timeout {
        // A process that was stopped looks at the time late. Messages may wait in its sockets, so the
        // other side gets another interval.
        let looked = std::mem::replace(&mut self.last_look, now);
        if now.saturating_duration_since(looked) >= self.heartbeat * 3 / 2 {
            let since = now.checked_sub(self.heartbeat).unwrap_or(now);
            self.last_heard = self.last_heard.max(since);
        }
        let silent = now.saturating_duration_since(self.last_heard);
        if silent >= 2 * self.heartbeat {
            return Timeout::Lost(silent);
        }
        if now.saturating_duration_since(self.last_sent) >= self.heartbeat {
            return Timeout::Heartbeat(self.heartbeat(now));
        }
        Timeout::Nothing
    }

    fn send(&mut self, now: Instant, message: &Message) -> Bytes {
        let bytes = message.encode(self.sending.next);
        self.sending.next += 1;
        self.last_sent = now;
        bytes
    }
}

impl Receiving {
    fn piece(&mut self, bytes: Bytes) -> Result<Received, Violation> {
        if self.finished {
            return Err(Violation::AfterFinish);
        }
        if bytes.len() > self.piece {
            return Err(Violation::LongPiece { length: bytes.len(), limit: self.piece });
        }
        let cost = self.cost + cost(bytes.len());
        if cost > self.limit {
            return Err(Violation::Overrun { cost, limit: self.limit });
        }
        self.cost = cost;
        Ok(Received::Bytes(bytes))
    }
}

impl Sending {
    fn credit(&mut self, limit: u64) -> Result<Received, Violation> {
        let most = self.cost + u64::from(MAX_WINDOW);
        if !(self.limit..=most).contains(&limit) {
            return Err(Violation::Credit { received: limit, least: self.limit, most });
        }
        self.limit = limit;
        Ok(Received::Credit)
    }
}

fn cost(length: usize) -> u64 {
    length as u64 + PIECE_COST
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
