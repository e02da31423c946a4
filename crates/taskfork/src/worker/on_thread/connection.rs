//! The worker's end of the connection, which several threads write to.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::sync::lock;
use crate::wire::WireError;
use crate::wire::attachments::Attachments;
use crate::wire::frame::{self, DEFAULT_MAX_FRAME};

/// How many bytes are received at a time.
const PIECE: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Connection {
    output: Arc<Output>,
    inbox: BytesMut,
}

/// What writes whole frames to the client.
#[derive(Debug)]
pub(super) struct Output {
    stream: UnixStream,
    /// Held while a frame is written, so that no other comes into its middle.
    writing: Mutex<()>,
}

impl Output {
    /// Keeps other threads from writing meanwhile.
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        lock(&self.writing)
    }

    /// Writes whole frames, while `_locked` is held.
    pub(super) fn write(&self, _locked: &MutexGuard<'_, ()>, frames: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(frames)
    }
}

/// What accompanies a message: nothing, because all blobs are in it.
pub(super) fn attachments() -> Attachments {
    Attachments { max_inlined: DEFAULT_MAX_FRAME, ..Attachments::default() }
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        let output = Output { stream, writing: Mutex::new(()) };
        Self { output: Arc::new(output), inbox: BytesMut::new() }
    }

    pub(super) fn output(&self) -> &Arc<Output> {
        &self.output
    }

    /// Writes whole frames. Waits while the client does not read.
    pub(super) fn write(&self, frames: &[u8]) -> io::Result<()> {
        self.output.write(&self.output.lock(), frames)
    }

    /// Waits for what each side sends first. Returns false if the client has left.
    pub(super) fn read_preamble(&mut self) -> Result<bool, WireError> {
        while !frame::take_preamble(&mut self.inbox)? {
            if !self.receive() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits for a message. Returns `None` if the client has left.
    pub(super) fn read(&mut self) -> Result<Option<Bytes>, WireError> {
        loop {
            if let Some(message) = self.take_received()? {
                return Ok(Some(message));
            }
            if !self.receive() {
                return Ok(None);
            }
        }
    }

    /// The next message that has come already.
    pub(super) fn take_received(&mut self) -> Result<Option<Bytes>, WireError> {
        frame::take(&mut self.inbox, DEFAULT_MAX_FRAME)
    }

    /// Receives what has come already. Returns false at the end of the connection.
    pub(super) fn receive_available(&mut self) -> bool {
        let mut bytes = [0; PIECE];
        loop {
            match recv(&self.output.stream, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return false,
                Ok((_, length)) => self.inbox.extend_from_slice(&bytes[..length]),
                Err(Errno::INTR) => {}
                Err(error) => return error == Errno::AGAIN,
            }
        }
    }

    /// Waits for some bytes. Returns false at the end of the connection.
    fn receive(&mut self) -> bool {
        let mut bytes = [0; PIECE];
        loop {
            match (&self.output.stream).read(&mut bytes) {
                Ok(0) => return false,
                Ok(length) => {
                    self.inbox.extend_from_slice(&bytes[..length]);
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}
