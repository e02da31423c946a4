//! Connections through TLS, to a gateway.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::sockopt::{self, set_socket_linger};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection};

use super::{Connected, Transport, tls_error};
use crate::sys;
use crate::wire::gather_frame::OutgoingFile;

/// The name of the protocol inside TLS (ALPN).
pub(crate) const PROTOCOL: &[u8] = b"taskfork";

/// How long the gateway may acknowledge nothing of what was sent.
const UNREAD: Duration = Duration::from_secs(120);

/// What may be on its way when a connection ends in an orderly way, in bytes: the end of a checkout, and what came before it.
const SHORT: usize = 16 << 10;

/// What all connections of a client through TLS share.
#[derive(Debug, Clone)]
pub(crate) struct TlsContext {
    pub(crate) config: Arc<ClientConfig>,
    /// The name that the gateway's certificate must have; `None` for the host in the address.
    pub(crate) name: Option<ServerName<'static>>,
}

// Nothing can be changed through a `TlsContext` but rustls's store of sessions, which is behind a lock. Without these lines a
// client would lose the two traits with the feature.
impl UnwindSafe for TlsContext {}
impl RefUnwindSafe for TlsContext {}

/// Connects to the gateway at `address`, `HOST:PORT`, that shows the certificate with this SHA-256. `base` has the
/// client's own certificate, if there is one.
#[cfg(feature = "nats")]
pub(super) async fn connect_pinned(
    base: Option<&TlsContext>,
    address: &str,
    sha256: [u8; 32],
) -> io::Result<Box<dyn Transport>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "it is not HOST:PORT");
    let (host, port) = crate::address::parse_port(address).ok_or_else(invalid)?;
    Ok(TlsContext::pinned(base, sha256)?.connect(host, port).await?.stream)
}

impl TlsContext {
    pub(super) async fn connect(&self, host: &str, port: u16) -> io::Result<Connected> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(|_| {
                let text = format!("no certificate can have the name `{host}`: set `tls_name`");
                io::Error::new(io::ErrorKind::InvalidInput, text)
            })?,
        };
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        watch_peer(&tcp);
        let shown = name.to_str().into_owned();
        let connected = TlsConnector::from(self.config.clone()).connect(name, tcp).await;
        let (tcp, session) =
            connected.map_err(|error| tls_error::of_handshake(error, &shown))?.into_inner();
        if session.alpn_protocol() != Some(PROTOCOL) {
            return Err(tls_error::no_gateway());
        }
        let stream = Tls {
            tcp,
            session,
            broken: None,
            is_complete: false,
            #[cfg(feature = "nats")]
            held: None,
        };
        Ok(Connected::new(Box::new(stream), 0))
    }
}

/// Has the kernel notice a gateway whose machine has vanished. The connection works without it.
fn watch_peer(tcp: &TcpStream) {
    let _ = sockopt::set_socket_keepalive(tcp, true);
    let _ = sockopt::set_tcp_keepidle(tcp, Duration::from_secs(30));
    let _ = sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(10));
    let _ = sockopt::set_tcp_keepcnt(tcp, 3);
    // Keepalive does not run while bytes are on their way.
    let _ = sockopt::set_tcp_user_timeout(tcp, UNREAD.as_millis() as u32);
}

/// A connection whose TLS handshake is complete on this side.
#[derive(Debug)]
struct Tls {
    tcp: TcpStream,
    session: ClientConnection,
    /// Why nothing more can be received.
    broken: Option<rustls::Error>,
    /// The gateway has ended the stream, as it does behind everything that the worker has sent.
    is_complete: bool,
    /// Counts a direct connection to a node as one of the pool's.
    #[cfg(feature = "nats")]
    held: Option<taskfork_nats::HeldSession>,
}

/// What could be received.
enum Received {
    /// So many bytes, or the end for 0.
    Bytes(usize),
    /// More of the encrypted bytes are needed.
    Nothing,
}

impl Tls {
    /// Sends what has been encrypted.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let mut socket = Reactor { tcp: &mut self.tcp, context };
            match self.session.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes at most `room` of the decrypted bytes.
    fn take(&mut self, inbox: &mut BytesMut, room: usize) -> io::Result<Received> {
        let mut taken = 0;
        let mut reader = self.session.reader();
        while taken < room {
            match reader.fill_buf() {
                // The gateway has ended the stream.
                Ok([]) => {
                    self.is_complete = true;
                    break;
                }
                Ok(bytes) => {
                    let length = bytes.len().min(room - taken);
                    inbox.extend_from_slice(&bytes[..length]);
                    reader.consume(length);
                    taken += length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The connection has ended without the end of the stream.
                Err(_) if taken == 0 => return Ok(Received::Bytes(0)),
                Err(_) => break,
            }
        }
        Ok(match taken > 0 || self.is_complete {
            true => Received::Bytes(taken),
            false => Received::Nothing,
        })
    }

    /// Decrypts what a read has received. Returns false at the end of the connection.
    fn decrypt(&mut self, read: io::Result<usize>) -> io::Result<bool> {
        match read {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            // A reset says what the gateway has not read, and nothing about the worker.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Err(error) = self.session.process_new_packets() {
            self.broken = Some(error);
        }
        Ok(true)
    }

    fn check(&self) -> io::Result<()> {
        match &self.broken {
            Some(error) => Err(tls_error::of_stream(error)),
            None => Ok(()),
        }
    }
}

impl Transport for Tls {
    #[cfg(feature = "nats")]
    fn hold(&mut self, held: taskfork_nats::HeldSession) {
        self.held = Some(held);
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        _: &[OutgoingFile],
    ) -> Poll<io::Result<usize>> {
        // Whatever has failed, the gateway may have sent something before, as after the end of a worker.
        let lost = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.poll_flush(context)).map_err(lost)?;
        let taken = self.session.writer().write_vectored(slices).map_err(lost)?;
        match self.poll_flush(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(lost(error))),
            // What is left is sent by the next read or write. Who waits for an answer polls for reading.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        inbox: &mut BytesMut,
        room: usize,
        _: &mut Vec<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        loop {
            // An error shows in the read too, behind what was received before.
            let _ = self.poll_flush(context);
            if let Received::Bytes(received) = self.take(inbox, room)? {
                return Poll::Ready(Ok(received));
            }
            self.check()?;
            let mut socket = Reactor { tcp: &mut self.tcp, context };
            match self.session.read_tls(&mut socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                read => {
                    if !self.decrypt(read)? {
                        return Poll::Ready(Ok(0));
                    }
                }
            }
        }
    }

    fn receive_now(
        &mut self,
        inbox: &mut BytesMut,
        room: usize,
        _: &mut Vec<OwnedFd>,
    ) -> rustix::io::Result<usize> {
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::PROTO);
        loop {
            if let Received::Bytes(received) = self.take(inbox, room).map_err(errno)? {
                return Ok(received);
            }
            self.check().map_err(errno)?;
            match self.session.read_tls(&mut Arrived(&self.tcp)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Errno::AGAIN);
                }
                read => {
                    if !self.decrypt(read).map_err(errno)? {
                        return Ok(0);
                    }
                }
            }
        }
    }

    fn can_lose_answers(&self) -> bool {
        !self.is_complete
    }

    fn stop_input(&mut self, context: &mut Context<'_>) -> bool {
        self.session.send_close_notify();
        // What is left is sent by the next read.
        let _ = self.poll_flush(context);
        false
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // What cannot be sent now is lost, and the gateway sees the end of the connection in any case.
        self.session.send_close_notify();
        let mut socket = Arrived(&self.tcp);
        while self.session.wants_write() && matches!(self.session.write_tls(&mut socket), Ok(1..)) {
        }
        if self.session.wants_write() || sys::output_queue(&self.tcp) > SHORT {
            // Behind that much the end would not arrive before the worker has read it, which may be busy with a call that
            // nobody wants any more. A reset overtakes it. If it cannot be set, the end comes later.
            let _ = set_socket_linger(&self.tcp, Some(Duration::ZERO));
        }
    }
}

/// The socket, for reads and writes that the reactor repeats when they can go on.
struct Reactor<'a, 'b> {
    tcp: &'a mut TcpStream,
    context: &'a mut Context<'b>,
}

impl Read for Reactor<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut out = ReadBuf::new(out);
        match Pin::new(&mut *self.tcp).poll_read(self.context, &mut out) {
            Poll::Ready(read) => read.map(|()| out.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Reactor<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut *self.tcp).poll_write(self.context, bytes) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match Pin::new(&mut *self.tcp).poll_write_vectored(self.context, slices) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The socket, for what can be read and written at once.
struct Arrived<'a>(&'a TcpStream);

impl Read for Arrived<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.0, out, RecvFlags::DONTWAIT)?.0)
    }
}

impl Write for Arrived<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
