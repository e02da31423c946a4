//! The socket of a connection: never blocking, and known to the reactor for no more than is needed.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_error};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::coop;

use crate::sys;
use crate::wire::gather_frame::{LARGE_BUFFER, OutgoingFile};

#[derive(Debug)]
pub(crate) enum Stream {
    Local(Local),
    Tcp(TcpStream),
}

/// A unix socket.
///
/// The kernel tells of room for more each time that the worker has read something, which wakes the
/// runtime for nothing. That is a good thing where the answer follows soon, as a core that sleeps takes
/// long to wake up: it has begun to when the answer comes. A worker that has just been forked takes longer
/// than that, so that room is watched from the second call on.
#[derive(Debug)]
pub(crate) struct Local {
    /// Watched for something to read.
    socket: AsyncFd<OwnedFd>,
    /// A copy of the descriptor, watched for room.
    writable: Option<AsyncFd<OwnedFd>>,
    runtime: Handle,
}

impl Local {
    /// Of a socket that does not block, within a runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::register_with_reactor(socket, Interest::READABLE)?;
        Ok(Self { socket, writable: None, runtime: Handle::current() })
    }

    /// Tries, and waits for room if there is none.
    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        send: impl Fn(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        // What is sent counts against the task's share of the runtime, as with tokio's own sockets.
        let turn = ready!(coop::poll_proceed(context));
        loop {
            let ready = match &self.writable {
                Some(writable) => Some(ready!(writable.poll_write_ready(context))?),
                None => None,
            };
            match (send(self.socket.get_ref()), ready) {
                (Err(Errno::INTR), _) => {}
                (Err(Errno::AGAIN), Some(mut ready)) => ready.clear_ready(),
                (Err(Errno::AGAIN), None) => self.writable = Some(self.watch_writable()?),
                (sent, _) => {
                    turn.made_progress();
                    return Poll::Ready(Ok(sent?));
                }
            }
        }
    }

    fn watch_writable(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let copy = self.socket.get_ref().try_clone()?;
        // Whoever polls this need not be in the runtime.
        let _runtime = self.runtime.enter();
        sys::register_with_reactor(copy, Interest::WRITABLE)
    }

    fn poll_read(
        &self,
        context: &mut Context<'_>,
        inbox: &mut BytesMut,
        files: &mut Vec<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            let (room, before) = (inbox.capacity() - inbox.len(), files.len());
            match sys::receive_files(self.socket.get_ref(), inbox, files, false) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
                Ok(length) => {
                    // What was there has been read whole, so that there is an event when more comes;
                    // but files end a read before that.
                    if (1..room).contains(&length) && files.len() == before {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(length));
                }
            }
        }
    }
}

impl Stream {
    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// Sends some of these bytes, and the files with the first of them.
    pub(crate) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        files: &[OutgoingFile],
    ) -> Poll<io::Result<usize>> {
        match (self, slices) {
            (Self::Local(local), [slice]) if files.is_empty() => {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                local.poll_send(context, |socket| send(socket, slice, flags))
            }
            (Self::Local(local), _) => local.poll_send(context, |socket| {
                sys::send_files(socket, slices, files, SendFlags::DONTWAIT)
            }),
            (Self::Tcp(stream), [slice]) => Pin::new(stream).poll_write(context, slice),
            (Self::Tcp(stream), _) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    /// Whether the other side, which has ended, has left unread what was sent last. If whoever has the socket besides has
    /// not closed it, there is no reset that says so.
    pub(crate) fn has_unread(&self) -> bool {
        let Self::Local(local) = self else { return false };
        let socket = local.socket.get_ref();
        // In this order: what is thrown away when the socket is closed has been told by the error before.
        sys::has_unread_data(socket) || matches!(socket_error(socket), Ok(Err(Errno::CONNRESET)))
    }

    /// The other side cannot send any more from here on. What it has sent can be read.
    pub(crate) fn shut_down_reading(&self) {
        if let Self::Local(local) = self {
            // It fails only where the other side has gone.
            let _ = shutdown(local.socket.get_ref(), Shutdown::Read);
        }
    }

    /// Long messages are sent from here on.
    pub(crate) fn enlarge_send_buffer(&mut self) {
        if let Self::Local(local) = self {
            // It is only slower if it cannot be.
            let _ = set_socket_send_buffer_size(local.socket.get_ref(), LARGE_BUFFER);
        }
    }

    /// Answers follow soon from here on.
    pub(crate) fn watch_writable(&mut self) {
        if let Self::Local(local) = self
            && local.writable.is_none()
        {
            // It is watched when there is none, if not now.
            local.writable = local.watch_writable().ok();
        }
    }

    /// Appends to `inbox`, as far as it has room, what comes, and the files that come with it to `files`.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        inbox: &mut BytesMut,
        files: &mut Vec<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Local(local) => local.poll_read(context, inbox, files),
            // Given up at any point, this future has taken no byte that is not in `inbox`.
            Self::Tcp(stream) => pin!(stream.read_buf(inbox)).poll(context),
        }
    }

    /// Takes what is there, without asking the reactor.
    pub(crate) fn receive_now(
        &mut self,
        inbox: &mut BytesMut,
        files: &mut Vec<OwnedFd>,
    ) -> rustix::io::Result<usize> {
        match self {
            Self::Local(local) => sys::receive_files(local.socket.get_ref(), inbox, files, false),
            Self::Tcp(stream) => sys::receive_files(stream, inbox, files, false),
        }
    }
}
