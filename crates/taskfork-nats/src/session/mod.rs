//! A session as a stream: what users read from and write to.
//!
//! [`shared`] has the state of a session, behind a lock, and what is done with it. Whoever polls the
//! stream carries it forward. [`driver`] is a task that does so when nobody polls, and keeps the time.

mod driver;
mod shared;
mod wakers;
mod windows;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_nats::{Client, Subscriber};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use crate::error::SessionError;
use crate::link::Link;
use crate::wire::{End, Reason};

pub(crate) use shared::Peer;
use shared::Shared;
pub(crate) use windows::Windows;

/// A byte stream between a client and a node, over a pair of NATS subjects.
///
/// It is like a TCP connection: bytes arrive in order, each once, or the session ends with an error whose source
/// is a [`SessionError`]. What has arrived before an error or the end can still be read. A receiver that
/// does not read makes the sender wait, once the window of the receiver is full.
///
/// Shutting down ends the stream in one direction. Dropping a session tells the other side at
/// once, which then reads what was written before, and the end of the stream. Reads and writes that are
/// cancelled have taken nothing, or have done what they say.
///
/// ```
/// # async fn example(fleet: &taskfork_nats::Fleet) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// let mut session = fleet.acquire(&[], None).await?;
/// session.write_all(b"ping").await?;
/// let mut answer = [0; 4];
/// session.read_exact(&mut answer).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    reader: Reader,
    writer: Writer,
    peer: String,
}

/// The receiving half of a session.
#[derive(Debug)]
pub struct Reader {
    handle: Arc<Handle>,
    /// The piece that is being read. It stays unread, for the other side, until it is read entirely.
    piece: Bytes,
    length: usize,
}

/// The sending half of a session.
#[derive(Debug)]
pub struct Writer {
    handle: Arc<Handle>,
}

/// Held by both halves. Dropping the last one ends the session.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

/// Ends a session that somebody else has.
#[derive(Debug)]
pub(crate) struct Ender {
    shared: Arc<Shared>,
}

impl Ender {
    /// Ends the session unless it has ended.
    pub(crate) fn end(&self, end: End) {
        self.shared.close(end);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(End { reason: Reason::Closed, text: String::new() });
    }
}

impl Session {
    /// A session whose messages come from `subscriber` and go to `subject`; `first` has come already. Its
    /// driver runs as a task of this runtime.
    pub(crate) fn start(
        client: Client,
        subscriber: Option<Subscriber>,
        subject: String,
        link: Link,
        windows: &Windows,
        peer: Peer,
        first: Option<Bytes>,
    ) -> Self {
        let name = peer.name().to_owned();
        let (link, window) = windows.begin(link);
        let shared = Arc::new(Shared::new(client, subscriber, subject, link, window, peer, first));
        tokio::spawn(driver::drive(Arc::clone(&shared)));
        let handle = Arc::new(Handle { shared });
        let reader = Reader { handle: Arc::clone(&handle), piece: Bytes::new(), length: 0 };
        Self { reader, writer: Writer { handle }, peer: name }
    }

    /// The name of the node, for a client, or of the client, for a node.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Why the session has ended, if it has ended by an error. Reads and writes fail with the same.
    pub fn error(&self) -> Option<SessionError> {
        self.writer.handle.shared.error()
    }

    /// What has arrived and was not read, without waiting. Empty at the end of the stream.
    ///
    /// Unlike a poll, this changes nothing about who is woken when something arrives.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if nothing has arrived; otherwise as a read.
    ///
    /// ```
    /// # fn example(session: &mut taskfork_nats::Session) -> std::io::Result<()> {
    /// use tokio::io::AsyncBufReadExt;
    ///
    /// let length = session.try_fill_buf()?.len();
    /// session.consume(length);
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.try_fill_buf()
    }

    /// Whether everything was read that the other side has sent, and it has ended its stream. If a session ends
    /// without that, something may be missing.
    ///
    /// ```
    /// # fn example(session: &taskfork_nats::Session) {
    /// if !session.is_read_to_end() {
    ///     println!("more may come");
    /// }
    /// # }
    /// ```
    pub fn is_read_to_end(&self) -> bool {
        self.reader.piece.is_empty() && self.reader.handle.shared.is_read_to_end()
    }

    /// Both halves, for tasks of their own. The session ends when both are dropped.
    pub fn into_split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }

    /// Both halves, for one task, and a future that is ready when the session is over.
    pub(crate) fn halves(&mut self) -> (&mut Reader, &mut Writer, impl Future<Output = ()>) {
        let shared = Arc::clone(&self.writer.handle.shared);
        (&mut self.reader, &mut self.writer, async move { shared.over().await })
    }

    /// Ends the session, and tells the client that the server behind this node has failed, and how. Of the text,
    /// 256 bytes are sent.
    ///
    /// ```
    /// # fn example(session: taskfork_nats::Session) {
    /// session.fail("the connection to the server is broken");
    /// # }
    /// ```
    pub fn fail(self, text: &str) {
        self.end(Reason::Failed, crate::wire::shortened(text));
    }

    /// A future that is ready when the session is over, whether or not anybody reads and writes. What has come
    /// before can still be read.
    ///
    /// ```
    /// # async fn example(session: &taskfork_nats::Session) {
    /// session.over().await;
    /// # }
    /// ```
    pub fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.writer.handle.shared);
        async move { shared.over().await }
    }

    /// What can end the session while somebody else has it.
    pub(crate) fn ender(&self) -> Ender {
        Ender { shared: Arc::clone(&self.writer.handle.shared) }
    }

    /// Ends the session, and tells the other side why.
    pub(crate) fn end(self, reason: Reason, text: String) {
        self.writer.handle.shared.close(End { reason, text });
    }

    /// Sends a heartbeat at once: the other side learns that this one is there.
    pub(crate) fn announce(&self) {
        self.writer.handle.shared.announce();
    }
}

impl Reader {
    fn try_fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece.is_empty()
            && let Some(piece) = self.handle.shared.try_read()?
        {
            self.set_piece(piece);
        }
        Ok(&self.piece)
    }

    fn set_piece(&mut self, piece: Bytes) {
        self.length = piece.len();
        self.piece = piece;
    }
}

impl AsyncBufRead for Reader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let reader = self.get_mut();
        if reader.piece.is_empty()
            && let Some(piece) = ready!(reader.handle.shared.poll_read(cx))?
        {
            reader.set_piece(piece);
        }
        Poll::Ready(Ok(&reader.piece))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let reader = self.get_mut();
        reader.piece.advance(amount.min(reader.piece.len()));
        if reader.piece.is_empty() {
            let length = std::mem::take(&mut reader.length);
            if length > 0 {
                reader.handle.shared.consume(length);
            }
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut piece = ready!(self.as_mut().poll_fill_buf(cx))?;
        // Pieces are short: all that have come are read at once. An error is found again by the next read.
        while !piece.is_empty() {
            let length = piece.len().min(buffer.remaining());
            buffer.put_slice(&piece[..length]);
            self.as_mut().consume(length);
            if buffer.remaining() == 0 {
                break;
            }
            let Ok(next) = self.as_mut().get_mut().try_fill_buf() else { break };
            piece = next;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.handle.shared.poll_write(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.handle.shared.poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.shared.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.shared.poll_shutdown(cx)
    }
}

impl AsyncRead for Session {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

impl AsyncBufRead for Session {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().reader).poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.reader).consume(amount);
    }
}

impl AsyncWrite for Session {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
