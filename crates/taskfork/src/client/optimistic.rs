//! The handshake on a connection that is already in use. If the last worker sent its hello quickly, the first
//! call is sent with the client's hello, and the worker's hello is read before the answer.
//!
//! A worker sends its hello before it begins a call, and the hello can be read after the worker's death. So on a
//! connection that ended without a hello, no call has begun.

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

    /// Records that a checkout holds the connection. If another one held it before, returns since when the
    /// handshake is pending: the new holder must set its time limit again.
    pub(crate) fn mark_held(&mut self) -> Option<Instant> {
        let pending = self.pending_handshake.as_mut()?;
        std::mem::replace(&mut pending.held, true).then_some(pending.since)
    }

    /// Waits for the worker's hello.
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

    /// Reads the worker's hello without asking the reactor. Returns whether the handshake is complete.
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

    /// Prevents the worker from sending its hello, so that it begins no call. Returns whether it had sent the
    /// hello before. The connection cannot be used after this.
    pub(crate) fn abort_handshake(&mut self) -> bool {
        if !self.is_established() {
            self.stream.shut_down_reading();
        }
        matches!(self.read_handshake_now(), Ok(true))
    }

    /// Takes the worker's hello from the inbox. Returns whether the handshake is complete.
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
    Disconnect::NoHandshake(error.into())
}
