//! A connection to one worker, once it has been greeted: frames out, messages in, never blocking.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::look::{Look, Looking};
use super::signal::Signal;
use crate::wire::WireError;
use crate::wire::frame;
use crate::wire::native;

/// The two kinds of sockets that tokio has.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    inbox: BytesMut,
    /// Small messages that nobody waits for; sent before anything else.
    outbox: Vec<u8>,
    pub(crate) signal: Arc<Signal>,
    waker: Waker,
    pub(crate) pid: u32,
    /// Calls sent in full.
    pub(crate) calls: u64,
    /// The longest frame to be sent, and to be taken.
    pub(crate) max_send: usize,
    max_receive: usize,
    look: Look,
}

/// What a greeting found out.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) stream: Stream,
    pub(crate) inbox: BytesMut,
    pub(crate) pid: u32,
    pub(crate) max_send: usize,
    pub(crate) max_receive: usize,
    pub(crate) look: Look,
}

/// Why a connection is over.
#[derive(Debug)]
pub(crate) enum Lost {
    /// The other side closed it, having read everything.
    Closed,
    /// The other side closed it and left unread what was sent last.
    Unread,
    Io(io::Error),
    Wire(WireError),
}

impl Connection {
    pub(crate) fn new(greeted: Greeted, signal: Arc<Signal>) -> Self {
        let Greeted { stream, inbox, pid, max_send, max_receive, look } = greeted;
        let waker = Waker::from(signal.clone());
        let outbox = Vec::new();
        Self { stream, inbox, outbox, signal, waker, pid, calls: 0, max_send, max_receive, look }
    }

    /// Sends what is left of `frame` after `sent` bytes.
    pub(crate) fn poll_send(&mut self, frame: &[u8], sent: &mut usize) -> Poll<Result<(), Lost>> {
        while *sent < frame.len() {
            let mut wrote = ready!(self.poll_write(&frame[*sent..]))?;
            let of_outbox = wrote.min(self.outbox.len());
            self.outbox.drain(..of_outbox);
            wrote -= of_outbox;
            *sent += wrote;
        }
        self.look.sent();
        Poll::Ready(Ok(()))
    }

    /// Says that the checkout is over; tries to send it at once.
    pub(crate) fn say_done(&mut self) -> Result<(), Lost> {
        let said = frame::write::<WireError>(&mut self.outbox, frame::DEFAULT_LIMIT, |out| {
            native::put_done(out);
            Ok(())
        });
        said.map_err(Lost::Wire)?;
        match self.poll_flush() {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Sends what waits in the outbox.
    pub(crate) fn poll_flush(&mut self) -> Poll<Result<(), Lost>> {
        while !self.outbox.is_empty() {
            let wrote = ready!(self.poll_write(&[]))?;
            self.outbox.drain(..wrote);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, frame: &[u8]) -> Poll<Result<usize, Lost>> {
        let mut context = Context::from_waker(&self.waker);
        let wrote = match &mut self.stream {
            Stream::Unix(stream) => write(stream, &mut context, &self.outbox, frame),
            Stream::Tcp(stream) => write(stream, &mut context, &self.outbox, frame),
        };
        wrote.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Lost::Closed,
            io::ErrorKind::ConnectionReset => Lost::Unread,
            _ => Lost::Io(error),
        })
    }

    /// The message that is there already when a write has failed, whether the reactor has heard of
    /// it or not.
    pub(crate) fn last_words(&mut self) -> Option<Bytes> {
        loop {
            if let Ok(Some(body)) = frame::take(&mut self.inbox, self.max_receive) {
                return Some(body);
            }
            match self.receive_now(&mut [0; 1024]) {
                Ok(length) if length > 0 => {}
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }

    /// Takes what is there, without asking the reactor.
    fn receive_now(&mut self, piece: &mut [u8]) -> rustix::io::Result<usize> {
        let (_, length) = match &self.stream {
            Stream::Unix(stream) => recv(stream, &mut *piece, RecvFlags::DONTWAIT),
            Stream::Tcp(stream) => recv(stream, &mut *piece, RecvFlags::DONTWAIT),
        }?;
        self.inbox.extend_from_slice(&piece[..length]);
        Ok(length)
    }

    /// Begins to look for an answer, if it is to be looked for.
    pub(crate) fn begin_to_look(&mut self) -> Option<Looking> {
        self.look.begin()
    }

    /// Looks once; tells whether to go on.
    pub(crate) fn look(&mut self, looking: &Looking) -> bool {
        match self.receive_now(&mut [0; 1024]) {
            Err(Errno::AGAIN | Errno::INTR) if looking.is_over() => {
                self.look.failed();
                false
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Ok(length) if length > 0 => {
                self.look.paid();
                false
            }
            // Whatever it is, it comes again.
            Ok(_) | Err(_) => false,
        }
    }

    /// The next message's body.
    pub(crate) fn poll_message(&mut self) -> Poll<Result<Bytes, Lost>> {
        loop {
            if let Some(body) =
                frame::take(&mut self.inbox, self.max_receive).map_err(Lost::Wire)?
            {
                return Poll::Ready(Ok(body));
            }
            self.inbox.reserve(frame::room_for_next_read(&self.inbox));
            let mut context = Context::from_waker(&self.waker);
            let read = match &mut self.stream {
                Stream::Unix(stream) => read(stream, &mut context, &mut self.inbox),
                Stream::Tcp(stream) => read(stream, &mut context, &mut self.inbox),
            };
            match ready!(read) {
                Ok(0) => return Poll::Ready(Err(Lost::Closed)),
                Ok(_) => self.look.slept(),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Poll::Ready(Err(Lost::Unread));
                }
                Err(error) => return Poll::Ready(Err(Lost::Io(error))),
            }
        }
    }
}

fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    context: &mut Context<'_>,
    outbox: &[u8],
    frame: &[u8],
) -> Poll<io::Result<usize>> {
    if outbox.is_empty() {
        return Pin::new(stream).poll_write(context, frame);
    }
    Pin::new(stream).poll_write_vectored(context, &[IoSlice::new(outbox), IoSlice::new(frame)])
}

fn read(
    stream: &mut (impl AsyncRead + Unpin),
    context: &mut Context<'_>,
    inbox: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    // Given up at any point, this future has taken no byte that is not in `inbox`.
    pin!(stream.read_buf(inbox)).poll(context)
}
