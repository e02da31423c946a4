//! The transports that a connection can use. Each kind of address has one; a new one needs this folder and
//! its kind in `address` only.

#[cfg(test)]
pub(crate) mod memory;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(all(feature = "nats", feature = "tls"))]
mod nats_direct;
mod tcp;
#[cfg(feature = "tls")]
pub(crate) mod tls;
#[cfg(feature = "tls")]
mod tls_error;
#[cfg(all(feature = "nats", feature = "tls"))]
mod tls_pin;
mod unix;

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::BytesMut;

#[cfg(all(feature = "nats", feature = "tls"))]
pub(crate) use self::nats_direct::OtherWay;
#[cfg(test)]
pub(crate) use self::unix::Unix;
use crate::address::{Address, AddressKind};
#[cfg(not(all(feature = "nats", feature = "tls")))]
use crate::client::proto::handshake::HandshakeError;
#[cfg(not(all(feature = "nats", feature = "tls")))]
use crate::error::ConnectionError;
use crate::wire::gather_frame::OutgoingFile;

/// A stream of bytes to a worker, and of files if it can carry them. It never blocks, and the reactor watches
/// it only as far as needed.
pub(crate) trait Transport: fmt::Debug + Send {
    /// Sends some of these bytes. The files accompany the first byte.
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        files: &[OutgoingFile],
    ) -> Poll<io::Result<usize>>;

    /// Appends received bytes to `inbox`, and received files to `files`. It asks for `room` bytes, or for more if the
    /// inbox has room for them. Returns 0 at the end of the stream.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        inbox: &mut BytesMut,
        room: usize,
        files: &mut Vec<OwnedFd>,
    ) -> Poll<io::Result<usize>>;

    /// Receives what has arrived, without asking the reactor.
    fn receive_now(
        &mut self,
        inbox: &mut BytesMut,
        room: usize,
        files: &mut Vec<OwnedFd>,
    ) -> rustix::io::Result<usize>;

    /// Whether what the worker has sent can be lost when the connection ends. When it has ended, it may be known that
    /// nothing was.
    fn can_lose_answers(&self) -> bool;

    /// Whether the other side has ended and left bytes unread. It is for cases that no error of a read or
    /// write reports.
    fn has_unread(&self) -> bool {
        false
    }

    /// Prevents the other side from sending, and returns true. What it has sent can still be read. If this transport cannot
    /// do that, the other side learns instead that this one sends no more, and returns false.
    fn stop_input(&mut self, context: &mut Context<'_>) -> bool;

    /// Prepares for long messages.
    fn enlarge_send_buffer(&mut self) {}

    /// Keeps this until the stream is dropped.
    #[cfg(all(feature = "nats", feature = "tls"))]
    fn hold(&mut self, _held: taskfork_nats::HeldSession) {}

    /// Watches for room, or not. It is worth it while answers follow soon.
    fn watch_writable(&mut self, _watches: bool) {}
}

/// Called with the reason if there is no free worker yet.
pub(crate) type OnWait<'a> = &'a (dyn Fn(String) + Sync);

/// A new stream.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: Box<dyn Transport>,
    /// How many bytes of the client's hello have been sent.
    pub(crate) sent: usize,
    /// What follows when the worker's hello has come, or does not come.
    pub(crate) other_way: Option<Box<OtherWay>>,
}

impl Connected {
    fn new(stream: Box<dyn Transport>, sent: usize) -> Self {
        Self { stream, sent, other_way: None }
    }
}

/// Another way to a worker. There is none without NATS and TLS.
#[cfg(not(all(feature = "nats", feature = "tls")))]
#[derive(Debug)]
pub(crate) enum OtherWay {}

#[cfg(not(all(feature = "nats", feature = "tls")))]
impl OtherWay {
    /// The worker's hello has come.
    pub(crate) fn leave(self, _: &mut dyn Transport) {
        match self {}
    }

    /// Goes on in another way because of this error.
    pub(crate) async fn take(
        self,
        _: HandshakeError,
        _: Option<OnWait<'_>>,
    ) -> Result<Connected, ConnectionError> {
        match self {}
    }
}

/// Sends all of these bytes.
pub(crate) async fn write_all(stream: &mut dyn Transport, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        let slice = [IoSlice::new(rest)];
        let wrote = poll_fn(|context| stream.poll_write(context, &slice, &[])).await?;
        rest = &rest[wrote..];
    }
    Ok(())
}

/// Connects, if that needs no waiting. Sends nothing. Returns `None` for addresses of other kinds.
pub(crate) fn connect_now(address: &Address) -> Option<io::Result<Box<dyn Transport>>> {
    match &address.0 {
        AddressKind::Unix(path) => Some(unix::connect(path)),
        AddressKind::Spawned(server) => Some(unix::connect_to(server)),
        AddressKind::Tcp { .. } | AddressKind::Inherited(_) => None,
        #[cfg(feature = "tls")]
        AddressKind::Tls { .. } => None,
        #[cfg(feature = "nats")]
        AddressKind::Nats(_) => None,
        #[cfg(test)]
        AddressKind::Memory(server) => {
            Some(memory::connect(&**server).map(|connected| connected.stream))
        }
    }
}

/// What the connections of a client share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connector {
    /// Set if an address needs it.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<tls::TlsContext>,
    /// Set if an address needs it.
    #[cfg(feature = "nats")]
    pub(crate) nats: Option<nats::NatsContext>,
}

impl Connector {
    /// Connects, for an attempt that ends at `until`. As much of the hello is sent as needs no waiting. If no worker is free
    /// and `on_wait` is there, this calls it with the reason, and waits without a time limit.
    pub(crate) async fn connect(
        &self,
        address: &Address,
        hello: &[u8],
        until: Option<Instant>,
        on_wait: Option<OnWait<'_>>,
    ) -> io::Result<Connected> {
        #[cfg(not(feature = "nats"))]
        let _ = on_wait;
        #[cfg(not(all(feature = "nats", feature = "tls")))]
        let _ = until;
        match &address.0 {
            AddressKind::Unix(path) => unix::connect_and_send(path, hello),
            AddressKind::Spawned(server) => unix::connect_to_and_send(&**server, hello),
            AddressKind::Tcp { host, port } => tcp::connect(host, *port).await,
            #[cfg(feature = "tls")]
            AddressKind::Tls { host, port } => match &self.tls {
                // On the heap, or each connection of any kind would keep room for a handshake.
                Some(tls) => Box::pin(tls.connect(host, *port)).await,
                None => Err(io::ErrorKind::InvalidInput.into()),
            },
            #[cfg(feature = "nats")]
            AddressKind::Nats(address) => match &self.nats {
                #[cfg(feature = "tls")]
                Some(nats) => {
                    Box::pin(nats_direct::connect(nats, address, self, until, on_wait)).await
                }
                #[cfg(not(feature = "tls"))]
                Some(nats) => Box::pin(nats.connect(address, on_wait)).await,
                None => Err(io::ErrorKind::InvalidInput.into()),
            },
            AddressKind::Inherited(_) => Err(io::ErrorKind::InvalidInput.into()),
            #[cfg(test)]
            AddressKind::Memory(server) => memory::connect(&**server),
        }
    }
}
