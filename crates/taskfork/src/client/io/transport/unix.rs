//! Connections through unix sockets.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, send, shutdown,
    socket_with,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::task::coop;

use super::{Connected, Transport};
use crate::address::LocalServer;
use crate::sys;
use crate::wire::gather_frame::{LARGE_BUFFER, OutgoingFile};

/// Waits for nothing, and raises no signal.
const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// Connects to a socket in the file system, which never waits.
pub(super) fn connect(path: &Path) -> io::Result<Box<dyn Transport>> {
    Ok(Box::new(Unix::new(open(path)?)?))
}

/// Connects, and sends the hello before the reactor knows the socket.
pub(super) fn connect_and_send(path: &Path, hello: &[u8]) -> io::Result<Connected> {
    let socket = open(path)?;
    // The caller sends the rest, and gets an error again.
    let sent = send(&socket, hello, SEND).unwrap_or(0);
    Ok(Connected::new(Box::new(Unix::new(socket)?), sent))
}

/// Connects to a server that this program has started, which never waits. The server gets its end of
/// the connection with the first write.
pub(super) fn connect_to(server: &Arc<dyn LocalServer>) -> io::Result<Box<dyn Transport>> {
    let [socket, end] = server.connection()?;
    let mut stream = Unix::new(socket)?;
    stream.unpassed = Some(Unpassed { server: server.clone(), end });
    Ok(Box::new(stream))
}

/// Connects to such a server, and sends the hello before the reactor knows the socket.
pub(super) fn connect_to_and_send(server: &dyn LocalServer, hello: &[u8]) -> io::Result<Connected> {
    let [socket, end] = server.connection()?;
    // The caller sends the rest, and gets an error again.
    let sent = send(&socket, hello, SEND).unwrap_or(0);
    server.pass(&end)?;
    Ok(Connected::new(Box::new(Unix::new(socket)?), sent))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A unix socket.
///
/// The kernel reports room each time the worker has read something. This wakes the runtime early. That helps if calls
/// follow each other quickly, because a sleeping core takes long to wake. Otherwise it only takes time, so room is
/// watched while calls are quick, and while the socket has none.
#[derive(Debug)]
pub(crate) struct Unix {
    /// Watched for bytes to read.
    socket: AsyncFd<OwnedFd>,
    /// A copy of the descriptor, watched for room.
    writable: Option<AsyncFd<OwnedFd>>,
    runtime: Handle,
    /// The server's end of the connection, until the first bytes have been written. So the server finds
    /// the hello and the first call together, and forks a worker at once.
    unpassed: Option<Unpassed>,
}

/// The end of a connection that a server of this program has to get.
struct Unpassed {
    server: Arc<dyn LocalServer>,
    end: OwnedFd,
}

impl fmt::Debug for Unpassed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Unpassed").field("end", &self.end).finish_non_exhaustive()
    }
}

impl Unix {
    /// Registers a nonblocking socket with the current runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::register_with_reactor(socket, Interest::READABLE)?;
        Ok(Self { socket, writable: None, runtime: Handle::current(), unpassed: None })
    }

    /// Passes the server its end, if it has not got it.
    fn pass_end(&mut self) -> io::Result<()> {
        let Some(Unpassed { server, end }) = self.unpassed.take() else { return Ok(()) };
        // The server has just ended. The connection ends in the same way as if it had ended afterwards.
        server.pass(&end).map_err(|_| io::ErrorKind::BrokenPipe.into())
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
                (Err(Errno::AGAIN), None) => self.writable = Some(self.watched_for_room()?),
                (sent, _) => {
                    turn.made_progress();
                    return Poll::Ready(Ok(sent?));
                }
            }
        }
    }

    fn watched_for_room(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let copy = self.socket.get_ref().try_clone()?;
        // The task that polls may be outside the runtime.
        let _runtime = self.runtime.enter();
        sys::register_with_reactor(copy, Interest::WRITABLE)
    }
}

impl Transport for Unix {
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        files: &[OutgoingFile],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(match slices {
            [slice] if files.is_empty() => {
                self.poll_send(context, |socket| send(socket, slice, SEND))
            }
            _ => self.poll_send(context, |socket| {
                sys::send_files(socket, slices, files, SendFlags::DONTWAIT)
            }),
        });
        Poll::Ready(sent.and_then(|sent| self.pass_end().map(|()| sent)))
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        inbox: &mut BytesMut,
        room: usize,
        files: &mut Vec<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            let before = files.len();
            match sys::receive_into(self.socket.get_ref(), inbox, room, files) {
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

    fn receive_now(
        &mut self,
        inbox: &mut BytesMut,
        room: usize,
        files: &mut Vec<OwnedFd>,
    ) -> rustix::io::Result<usize> {
        sys::receive_into(self.socket.get_ref(), inbox, room, files)
    }

    fn can_lose_answers(&self) -> bool {
        false
    }

    /// While another process has the socket open, no reset reports that.
    fn has_unread(&self) -> bool {
        sys::has_unread(self.socket.get_ref())
    }

    fn stop_input(&mut self, _: &mut Context<'_>) -> bool {
        // It fails only if the other side has closed the connection.
        let _ = shutdown(self.socket.get_ref(), Shutdown::Read);
        true
    }

    fn enlarge_send_buffer(&mut self) {
        // With a small buffer, sending is only slower.
        let _ = set_socket_send_buffer_size(self.socket.get_ref(), LARGE_BUFFER);
    }

    fn watch_writable(&mut self, watches: bool) {
        match (watches, &self.writable) {
            // If this fails, `poll_send` tries again when the socket has no room.
            (true, None) => self.writable = self.watched_for_room().ok(),
            (false, Some(_)) => self.writable = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    use super::*;
    use crate::sync::lock;

    /// A server that keeps the end of a connection which it gets, or has ended and gets none.
    struct Server {
        has_ended: bool,
        received: Mutex<Option<UnixStream>>,
    }

    impl LocalServer for Server {
        fn pid(&self) -> u32 {
            std::process::id()
        }

        fn connection(&self) -> io::Result<[OwnedFd; 2]> {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            Ok([ours.into(), theirs.into()])
        }

        fn pass(&self, connection: &OwnedFd) -> io::Result<()> {
            if self.has_ended {
                return Err(io::ErrorKind::NotConnected.into());
            }
            *lock(&self.received) = Some(connection.try_clone()?.into());
            Ok(())
        }
    }

    async fn write_to(server: &Arc<Server>) -> io::Result<usize> {
        let server: Arc<dyn LocalServer> = server.clone();
        let mut stream = connect_to(&server).unwrap();
        poll_fn(|context| stream.poll_write(context, &[IoSlice::new(b"hello")], &[])).await
    }

    #[tokio::test]
    async fn a_server_of_this_program_gets_its_end_after_the_first_bytes() {
        let server = Arc::new(Server { has_ended: false, received: Mutex::default() });
        let unwritten: Arc<dyn LocalServer> = server.clone();
        drop(connect_to(&unwritten).unwrap());
        assert!(lock(&server.received).is_none(), "nothing has been written");
        assert_eq!(write_to(&server).await.unwrap(), 5);
        let mut text = String::new();
        lock(&server.received).take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[tokio::test]
    async fn a_server_that_has_ended_closes_the_connection() {
        let server = Arc::new(Server { has_ended: true, received: Mutex::default() });
        let error = write_to(&server).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
