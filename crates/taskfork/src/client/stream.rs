//! The socket of a connection. It never blocks, and the reactor watches it only as far as needed.

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
/// The kernel reports room each time the worker has read something. This wakes the runtime early,
/// which helps if the answer follows soon, because a sleeping core takes long to wake. A worker that has
/// just been forked takes longer to answer. So room is watched from the second call on.
#[derive(Debug)]
pub(crate) struct Local {
    /// Watched for bytes to read.
    socket: AsyncFd<OwnedFd>,
    /// A copy of the descriptor, watched for room.
    writable: Option<AsyncFd<OwnedFd>>,
    runtime: Handle,
}

impl Local {
    /// Registers a nonblocking socket with the current runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::register_with_reactor(socket, Interest::READABLE)?;
        Ok(Self { socket, writable: None, runtime: Handle::current() })
    }

    /// Calls `send`, and waits for room while the socket has none.
    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        send: impl Fn(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        // As tokio's own sockets do, this charges the task's budget of the runtime.
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
        // The task that polls may be outside the runtime.
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
                    // A short read has emptied the socket, so the next bytes cause an event. Files
                    // end a read early, so it shows nothing then.
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

    /// Sends some of these bytes. The files accompany the first byte.
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

    /// Whether the other side has ended without reading all that was sent. While another process has the socket
    /// open, no reset reports that.
    pub(crate) fn has_unread(&self) -> bool {
        let Self::Local(local) = self else { return false };
        let socket = local.socket.get_ref();
        // In this order: closing the socket sets the error before it discards the unread bytes.
        sys::has_unread_data(socket) || matches!(socket_error(socket), Ok(Err(Errno::CONNRESET)))
    }

    /// Prevents the other side from sending. What it has sent can still be read.
    pub(crate) fn shut_down_reading(&self) {
        if let Self::Local(local) = self {
            // It fails only if the other side has closed the connection.
            let _ = shutdown(local.socket.get_ref(), Shutdown::Read);
        }
    }

    /// Enlarges the send buffer for long messages.
    pub(crate) fn enlarge_send_buffer(&mut self) {
        if let Self::Local(local) = self {
            // With a small buffer, sending is only slower.
            let _ = set_socket_send_buffer_size(local.socket.get_ref(), LARGE_BUFFER);
        }
    }

    /// Watches for room from here on, because answers follow soon. See [`Local`].
    pub(crate) fn watch_writable(&mut self) {
        if let Self::Local(local) = self
            && local.writable.is_none()
        {
            // If this fails, `poll_send` tries again when the socket has no room.
            local.writable = local.watch_writable().ok();
        }
    }

    /// Appends received bytes to `inbox`, within its capacity, and received files to `files`.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        inbox: &mut BytesMut,
        files: &mut Vec<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Local(local) => local.poll_read(context, inbox, files),
            // Dropping this future loses nothing: every byte that it has received is in `inbox`.
            Self::Tcp(stream) => pin!(stream.read_buf(inbox)).poll(context),
        }
    }

    /// Receives what the socket has, without asking the reactor.
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
