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
use super::io::time;
use crate::sys::TOO_MANY_FILES;
use crate::wire::hello::WorkerHello;

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
        match pending.reader.read(&mut self.inbox) {
            Ok(Some(hello)) => self.establish(&hello),
            Ok(None) => return Ok(false),
            Err(HandshakeError::ServerBusy(reason)) => self.leave_server_queue(reason)?,
            Err(error) => return Err(no_handshake(error)),
        }
        Ok(true)
    }

    fn establish(&mut self, hello: &WorkerHello) {
        let Some(pending) = self.pending_handshake.take() else { return };
        self.pid = hello.pid;
        let limits = PeerLimits::of(hello, pending.max_frame, pending.files);
        (self.max_send, self.max_blob_sent) = (limits.max_send, limits.max_blob);
        (self.pipeline_window, self.files) = (limits.pipeline_window, limits.files);
        if let Some(observer) = pending.observer.upgrade() {
            let took = time::now().saturating_duration_since(pending.since);
            observer.handshake_completed(limits, took);
        }
    }

    /// Leaves the server's queue, because another worker may serve the calls sooner. But by now the server may
    /// have given this connection a worker, which has begun a call.
    ///
    /// # Errors
    /// Unless that worker's hello has come.
    fn leave_server_queue(&mut self, reason: String) -> Result<(), Disconnect> {
        // An error is found again below.
        let _ = self.receive_now();
        if let Some(pending) = &mut self.pending_handshake
            && let Ok(Some(hello)) = pending.reader.read(&mut self.inbox)
        {
            self.establish(&hello);
            return Ok(());
        }
        // A worker that cannot send its hello begins no call.
        self.stream.shut_down_reading();
        let has_more = self.receive_now().is_ok_and(|length| length > 0);
        Err(match has_more || !self.inbox.is_empty() {
            true => Disconnect::Closed,
            false => no_handshake(HandshakeError::ServerBusy(reason)),
        })
    }
}

fn no_handshake(error: HandshakeError) -> Disconnect {
    Disconnect::NoHandshake(error.into())
}
