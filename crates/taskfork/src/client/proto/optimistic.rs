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
        let is_reading = match &pending.stage {
            Stage::Hello => true,
            Stage::Leaving { has_looked, .. } | Stage::Stopped { has_looked, .. } => *has_looked,
            Stage::Stopping(_) => false,
        };
        if !is_reading {
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
            (Stage::Hello, Err(HandshakeError::ServerBusy(reason))) => {
                // Another worker may serve the calls sooner.
                pending.stage = Stage::Leaving { reason, has_looked: false };
                return None;
            }
            (Stage::Hello, Err(error)) => return Some(no_handshake(error)),
            (Stage::Stopped { why: Stop::Aborted, .. }, Ok(Some(hello))) => {
                self.pid = hello.pid;
                return Some(Event::HandshakeAborted { has_hello: true });
            }
            (Stage::Stopped { why: Stop::Aborted, .. }, Err(_)) => {
                return Some(Event::HandshakeAborted { has_hello: false });
            }
            // It came too late for this connection.
            (Stage::Stopped { why: Stop::Left(_), .. }, Ok(Some(_)) | Err(_)) => {
                return Some(Event::Ended(Disconnect::Closed));
            }
            _ => {}
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
            Stage::Leaving { reason, .. } => {
                // A worker that cannot send its hello begins no call.
                pending.stage = Stage::Stopping(Stop::Left(std::mem::take(reason)));
                None
            }
            Stage::Stopped { why: Stop::Left(reason), has_input, .. } => {
                Some(match *has_input || !self.inbox.is_empty() {
                    true => Event::Ended(Disconnect::Closed),
                    false => no_handshake(HandshakeError::ServerBusy(std::mem::take(reason))),
                })
            }
            Stage::Stopped { why: Stop::Aborted, is_exhausted: true, .. } => {
                Some(Event::HandshakeAborted { has_hello: false })
            }
            Stage::Stopped { why: Stop::Aborted, .. } | Stage::Stopping(_) => None,
        }
    }

    fn establish(&mut self, hello: &WorkerHello, now: &Now) -> Event {
        let handshake = std::mem::replace(&mut self.handshake, Handshake::Done);
        let Handshake::Pending(pending) = handshake else { return Event::Handled };
        self.pid = hello.pid;
        let limits = PeerLimits::of(hello, pending.max_frame, pending.files);
        (self.max_send, self.max_blob_sent) = (limits.max_send, limits.max_blob);
        (self.pipeline_window, self.files) = (limits.pipeline_window, limits.files);
        Event::Established(limits, now.get().saturating_duration_since(pending.since))
    }
}

fn no_handshake(error: HandshakeError) -> Event {
    Event::Ended(Disconnect::NoHandshake(error.into()))
}
