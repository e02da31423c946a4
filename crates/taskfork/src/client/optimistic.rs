//! The worker's greeting on a connection that is in use already: where another worker has greeted at once,
//! the first call goes with what the client says first, and the greeting comes before the answer.
//!
//! A worker greets before it begins anything, and what it has said can be read though it has died. So nothing has
//! begun on a connection that has ended without a greeting.

use std::task::{Context, Poll, ready};
use std::time::Instant;

use rustix::io::Errno;

use super::connection::Connection;
use super::disconnect::Disconnect;
use super::handshake::{HandshakeError, PeerLimits};
use crate::sys::TOO_MANY_FILES;

impl Connection {
    pub(crate) fn is_established(&self) -> bool {
        self.pending_handshake.is_none()
    }

    /// A checkout takes it over. Gives since when the greeting is waited for, if another has had it before: then
    /// nobody sees to it that it is not waited for too long.
    pub(crate) fn mark_held(&mut self) -> Option<Instant> {
        let pending = self.pending_handshake.as_mut()?;
        std::mem::replace(&mut pending.held, true).then_some(pending.since)
    }

    /// Waits for the greeting, if it has not come.
    pub(crate) fn poll_handshake(&mut self) -> Poll<Result<(), Disconnect>> {
        if self.is_established() { Poll::Ready(Ok(())) } else { self.poll_until_established() }
    }

    fn poll_until_established(&mut self) -> Poll<Result<(), Disconnect>> {
        while !self.read_handshake()? {
            self.reserve();
            let mut context = Context::from_waker(&self.waker);
            let files = &mut self.files_received;
            let read = self.stream.poll_read(&mut context, &mut self.inbox, files);
            match ready!(read) {
                Ok(0) => return Poll::Ready(Err(no_handshake(HandshakeError::Closed))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(no_handshake(HandshakeError::of(error)))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the greeting if it is there, whether the reactor has heard of it or not; tells whether it has come.
    pub(crate) fn read_handshake_now(&mut self) -> Result<bool, Disconnect> {
        while !self.read_handshake()? {
            match self.receive_now() {
                Ok(length) if length > 0 => {}
                Err(Errno::INTR) => {}
                Err(TOO_MANY_FILES) => {
                    return Err(no_handshake(HandshakeError::of(TOO_MANY_FILES.into())));
                }
                Ok(_) | Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Has the worker greet nobody any more, if it has not yet, so that it begins nothing; tells whether it
    /// has. In any case the connection is of no use from here on.
    pub(crate) fn abort_handshake(&mut self) -> bool {
        if !self.is_established() {
            self.stream.shut_down_reading();
        }
        matches!(self.read_handshake_now(), Ok(true))
    }

    /// Takes the greeting off what has been received; tells whether it has come.
    fn read_handshake(&mut self) -> Result<bool, Disconnect> {
        let Some(pending) = &mut self.pending_handshake else { return Ok(true) };
        let Some(hello) = pending.reader.read(&mut self.inbox).map_err(no_handshake)? else {
            return Ok(false);
        };
        self.pid = hello.pid;
        let limits = PeerLimits::of(&hello, pending.max_frame, pending.files);
        (self.max_send, self.max_blob_sent) = (limits.max_send, limits.max_blob);
        (self.pipeline_window, self.files) = (limits.pipeline_window, limits.files);
        if let Some(observer) = pending.observer.upgrade() {
            observer.handshake_completed(limits, pending.since.elapsed());
        }
        self.pending_handshake = None;
        Ok(true)
    }
}

fn no_handshake(error: HandshakeError) -> Disconnect {
    Disconnect::NoHandshake(error.to_string())
}
