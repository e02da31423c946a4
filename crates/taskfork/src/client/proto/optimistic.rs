//! The handshake on a connection that is already in use. If the last worker sent its hello quickly, the first
//! call is sent with the client's hello, and the worker's hello is read before the answer.
//!
//! A worker sends its hello before it begins a call, and the hello can be read after the worker's death. So on a
//! connection that ended without a hello, no call has begun.

use super::connection::Connection;
use super::disconnect::Disconnect;
use super::handshake::{Handshake, HandshakeError, PeerLimits, Stage, Stop};
use super::input::Input;
use super::io_types::{End, Event};
use crate::client::now::Now;
use crate::wire::hello::WorkerHello;

impl Connection {
    /// What a pending handshake has come to.
    pub(super) fn poll_handshake(&mut self, now: &Now) -> Option<Event> {
        let Handshake::Pending(pending) = &mut self.handshake else { return None };
        if let Stage::Stopping(_) = pending.stage {
            return None;
        }
        let read = loop {
            match (&pending.stage, pending.reader.read(&mut self.inbox)) {
                (
                    Stage::Leaving { .. } | Stage::Stopped { .. },
                    Err(HandshakeError::ServerBusy(_)),
                ) => {}
                (_, read) => break read,
            }
        };
        match (&mut pending.stage, read) {
            (Stage::Hello | Stage::Leaving { .. }, Ok(Some(hello))) => {
                return Some(self.establish(&hello, now));
            }
            (Stage::Stopped { why, .. }, Ok(Some(hello))) => {
                self.pid = hello.pid;
                return Some(match why {
                    Stop::Aborted => Event::HandshakeAborted { has_hello: true },
                    // It came too late for this connection.
                    Stop::Left(_) => Event::Ended(Disconnect::Closed),
                });
            }
            (Stage::Hello, Err(HandshakeError::ServerBusy(reason))) => {
                // Another worker may serve the calls sooner.
                pending.stage = Stage::Leaving { why: Stop::Left(reason), is_exhausted: false };
                return None;
            }
            (_, Err(error)) => return Some(no_handshake(error)),
            (Stage::Stopping(_), Ok(Some(_))) | (_, Ok(None)) => {}
        }
        match &mut pending.stage {
            Stage::Hello => match &mut self.input {
                Input::Open | Input::LastMessage { is_exhausted: false, .. } => None,
                Input::Ended(End::Failed(error)) => {
                    let error = std::mem::replace(error, std::io::ErrorKind::Other.into());
                    Some(no_handshake(HandshakeError::of(error)))
                }
                Input::Ended(End::Closed { .. }) | Input::LastMessage { .. } => {
                    Some(no_handshake(HandshakeError::Closed))
                }
            },
            Stage::Leaving { why, is_exhausted: true } => {
                // A worker that cannot send its hello begins no call.
                pending.stage = Stage::Stopping(std::mem::replace(why, Stop::Aborted));
                None
            }
            // A worker that has sent only a part of its hello has begun no call either.
            Stage::Stopped { why, is_exhausted: true } => Some(match why {
                Stop::Left(reason) => {
                    no_handshake(HandshakeError::ServerBusy(std::mem::take(reason)))
                }
                Stop::Aborted => Event::HandshakeAborted { has_hello: false },
            }),
            Stage::Leaving { .. } | Stage::Stopped { .. } | Stage::Stopping(_) => None,
        }
    }

    fn establish(&mut self, hello: &WorkerHello, now: &Now) -> Event {
        let handshake =
            std::mem::replace(&mut self.handshake, Handshake::after_hello(hello.announces_setup));
        let Handshake::Pending(pending) = handshake else { return Event::Handled };
        self.pid = hello.pid;
        let limits = PeerLimits::of(hello, pending.max_frame, pending.files);
        (self.max_send, self.max_blob_sent) = (limits.max_send, limits.max_blob);
        (self.pipeline_window, self.files) = (limits.pipeline_window, limits.files);
        self.accepts_single_calls = limits.accepts_single_calls;
        (self.sends_items, self.takes_input) = (limits.sends_items, limits.takes_input);
        Event::Established(limits, now.get().saturating_duration_since(pending.since))
    }
}

fn no_handshake(error: HandshakeError) -> Event {
    Event::Ended(Disconnect::NoHandshake(error.into()))
}
