//! Relaying one connection: bytes in both directions, until one side ends.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use taskfork::__private::{has_unread, relay};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use crate::pipe::Pipe;

/// The client's side of a relayed connection.
pub(crate) trait ClientStream: AsyncRead + AsyncWrite + Unpin + Send {
    /// A future that is ready when the client has closed its side, also while nothing is read from it.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    fn client_end(&self) -> io::Result<ClientEnd>;
}

impl ClientStream for TlsStream<TcpStream> {
    fn client_end(&self) -> io::Result<ClientEnd> {
        let copy = std::net::TcpStream::from(self.get_ref().0.as_fd().try_clone_to_owned()?);
        let copy = TcpStream::from_std(copy)?;
        Ok(ClientEnd::new(async move {
            // A connection that the client has closed is ready for this, and other bytes make it ready for reading only.
            // No urgent data is expected. It fails with the runtime.
            let _ = copy.ready(Interest::PRIORITY).await;
        }))
    }
}

/// One connection of a client, and that to the server.
#[derive(Debug)]
pub(crate) struct Relay<C> {
    client: C,
    server: UnixStream,
    /// From the client to the server, and back.
    up: Pipe,
    down: Pipe,
    streams: relay::Streams,
    /// How many bytes of the rewritten hello have not been sent.
    hello_left: usize,
    /// How many bytes behind its hello the client has sent and the server's side has taken.
    passed: u64,
    /// The server's side takes nothing more.
    is_server_deaf: bool,
    /// The client sends nothing more. It may read what comes until the server's side ends.
    is_client_done: bool,
    /// What has been encrypted may not have been sent.
    needs_flush: bool,
    /// Who is told whether a checkout uses the connection.
    usage: Option<Usage>,
    /// Ready when the client has closed its connection. There from when the server's side first had no room.
    client_end: Option<ClientEnd>,
}

/// A future without a name.
pub(crate) struct ClientEnd(Pin<Box<dyn Future<Output = ()> + Send>>);

impl ClientEnd {
    pub(crate) fn new(end: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Box::pin(end))
    }
}

impl fmt::Debug for ClientEnd {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ClientEnd")
    }
}

/// Who is told whether a connection is used.
struct Usage {
    tell: Box<dyn Fn(bool) + Send>,
    /// What was told last.
    told: Option<bool>,
}

impl Usage {
    fn tell(&mut self, is_used: bool) {
        if self.told.replace(is_used) != Some(is_used) {
            (self.tell)(is_used);
        }
    }
}

impl fmt::Debug for Usage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Usage").field("told", &self.told).finish_non_exhaustive()
    }
}

/// How relaying has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client's connection is broken, or it has closed it while the server had no room for what it had sent.
    Client,
    /// The worker, or the server, has closed its side. `is_unread` says that it has not read all bytes.
    Server { is_unread: bool },
    /// The connection to the server is broken.
    Broken,
    /// The gateway ends, or its node needs the place for other clients, and no checkout uses the connection.
    Drained,
}

impl<C: ClientStream> Relay<C> {
    /// `hello` is the rewritten one, and `rest` what the client has sent behind its own.
    pub(crate) fn new(client: C, server: UnixStream, hello: Vec<u8>, rest: &[u8]) -> Self {
        let mut streams = relay::Streams::default();
        streams.handle_client(rest);
        let hello_left = hello.len();
        Self {
            client,
            server,
            up: Pipe::new([&hello, rest].concat()),
            down: Pipe::new(Vec::new()),
            streams,
            hello_left,
            passed: 0,
            is_server_deaf: false,
            is_client_done: false,
            needs_flush: false,
            usage: None,
            client_end: None,
        }
    }

    /// Has somebody told whether a checkout uses the connection: when relaying begins, and each time that this changes.
    #[cfg(feature = "nats")]
    pub(crate) fn with_usage(self, tell: impl Fn(bool) + Send + 'static) -> Self {
        Self { usage: Some(Usage { tell: Box::new(tell), told: None }), ..self }
    }

    /// Relays until a side ends. Dropping this future loses nothing. If `drains`, an unused connection ends.
    pub(crate) async fn run(&mut self, drains: bool) -> End {
        poll_fn(|context| self.poll(context, drains)).await
    }

    /// Sends the client what the server's side has sent before its end, and how it ended, and closes the connection to
    /// the server. Returns the client's, which may still have unread bytes. `None` if it is broken.
    pub(crate) async fn finish(self, end: End) -> Option<C> {
        let Self { mut client, server, mut up, down, streams, passed, .. } = self;
        let is_unread = match end {
            End::Client => return None,
            End::Server { is_unread } => Some(is_unread),
            // The worker still reads what it has been sent.
            End::Drained => Some(false),
            End::Broken => None,
        };
        drop(server);
        up.clear();
        client.write_all(down.unsent()).await.ok()?;
        let Some(is_unread) = is_unread else {
            // Without the end of the stream the client knows that something may be missing.
            client.flush().await.ok()?;
            return Some(client);
        };
        if streams.is_worker_between_frames() {
            client.write_all(&relay::end_message(passed, is_unread)).await.ok()?;
        }
        client.shutdown().await.ok()?;
        Some(client)
    }

    fn poll(&mut self, context: &mut Context<'_>, drains: bool) -> Poll<End> {
        loop {
            if drains && self.is_unused() {
                return Poll::Ready(End::Drained);
            }
            let down = self.poll_down(context);
            if let Poll::Ready(Err(end)) = down {
                return Poll::Ready(end);
            }
            let up = self.poll_up(context, drains);
            if let Poll::Ready(Err(end)) = up {
                return Poll::Ready(end);
            }
            // What has just been flushed may have been the last.
            let is_unused = self.is_unused();
            if let Some(usage) = &mut self.usage {
                usage.tell(!is_unused);
            }
            if up.is_pending() && down.is_pending() && !(drains && is_unused) {
                return Poll::Pending;
            }
        }
    }

    /// Whether no checkout uses the connection, and nothing is on its way.
    fn is_unused(&self) -> bool {
        let is_empty = self.up.is_empty() && self.down.is_empty();
        is_empty && !self.needs_flush && self.streams.is_idle()
    }

    /// Moves some bytes from the client to the server. If `drains`, none of a checkout that has not begun: a client with
    /// many checkouts would never leave the connection unused.
    fn poll_up(&mut self, context: &mut Context<'_>, drains: bool) -> Poll<Result<(), End>> {
        if self.is_server_deaf || self.is_client_done {
            // The end of the server's side follows.
            return Poll::Pending;
        }
        if self.up.is_empty() {
            if drains && self.streams.is_client_between_checkouts() {
                return self.poll_client_end(context);
            }
            let mut room = ReadBuf::new(self.up.room());
            match Pin::new(&mut self.client).poll_read(context, &mut room) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Client)),
                Poll::Ready(Ok(())) => {}
            }
            let received = room.filled().len();
            if received == 0 {
                // The server ends the worker, and its notice may be for the client.
                self.is_client_done = true;
                return match Pin::new(&mut self.server).poll_shutdown(context) {
                    Poll::Ready(Err(_)) => Poll::Ready(Err(End::Client)),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                };
            }
            let bytes = self.up.record_received(received);
            if drains {
                let used = self.streams.handle_client_checkout(bytes);
                self.up.truncate(used);
            } else {
                self.streams.handle_client(bytes);
            }
        }
        match Pin::new(&mut self.server).poll_write(context, self.up.unsent()) {
            Poll::Pending => return self.poll_client_end(context),
            Poll::Ready(Ok(sent)) => {
                self.up.record_sent(sent);
                let of_hello = sent.min(self.hello_left);
                self.hello_left -= of_hello;
                self.passed += (sent - of_hello) as u64;
            }
            Poll::Ready(Err(_)) => self.is_server_deaf = true,
        }
        Poll::Ready(Ok(()))
    }

    /// While the server's side has no room, nothing is received from the client, so its end does not show there.
    fn poll_client_end(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        let end = match &mut self.client_end {
            Some(end) => end,
            None => match self.client.client_end() {
                Ok(end) => self.client_end.insert(end),
                // The system has no descriptor left. The end shows later.
                Err(_) => return Poll::Pending,
            },
        };
        end.0.as_mut().poll(context).map(|()| Err(End::Client))
    }

    /// Moves some bytes from the server to the client.
    fn poll_down(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.down.is_empty() {
            let mut room = ReadBuf::new(self.down.room());
            match Pin::new(&mut self.server).poll_read(context, &mut room) {
                Poll::Pending if self.needs_flush => return self.poll_flush(context),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(match error.kind() {
                        // What was sent there has not been read.
                        io::ErrorKind::ConnectionReset => End::Server { is_unread: true },
                        _ => End::Broken,
                    }));
                }
            }
            let received = room.filled().len();
            if received == 0 {
                return Poll::Ready(Err(End::Server { is_unread: has_unread(&self.server) }));
            }
            self.streams.handle_worker(self.down.record_received(received));
        }
        match Pin::new(&mut self.client).poll_write(context, self.down.unsent()) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Client)),
            Poll::Ready(Ok(sent)) => self.down.record_sent(sent),
        }
        self.needs_flush = true;
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        match Pin::new(&mut self.client).poll_flush(context) {
            // Nothing else is left to do: the next read was pending already.
            Poll::Ready(Ok(())) => {
                self.needs_flush = false;
                Poll::Pending
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(End::Client)),
            Poll::Pending => Poll::Pending,
        }
    }
}
