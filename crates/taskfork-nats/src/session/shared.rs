//! The state of a session and how it is carried forward.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_nats::message::OutboundMessage;
use async_nats::{Client, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::sync::watch;

use super::wakers::Wakers;
use super::windows::Window;
use crate::error::SessionError;
use crate::fleet::{Farewell, Farewells, HeldSession};
use crate::link::{Link, Received, Timeout};
use crate::wire::{End, Gather, MAX_PIECE, Message, Reason, Reply};

/// How long the last messages of a session may take to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How many replies of other nodes a client takes: one for each time that it has asked, and some for nodes that passed the
/// request on.
const MAX_REPLIES: u32 = 1024;

/// A shorter piece is copied.
const SHORT_PIECE: usize = MAX_PIECE / 2;

/// Who is at the other side.
#[derive(Debug)]
pub(crate) enum Peer {
    Node {
        node: String,
        /// Whoever ends the client waits for the end of this session.
        farewells: Farewells,
        /// Counts the session.
        _held: HeldSession,
    },
    Client(String),
}

impl Peer {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Node { node: name, .. } | Self::Client(name) => name,
        }
    }

    fn described(&self) -> String {
        match self {
            Self::Node { node, .. } => format!("the node {node}"),
            Self::Client(name) => format!("the client {name:?}"),
        }
    }

    fn lost(&self, last_contact: Duration) -> SessionError {
        match self {
            Self::Node { node, .. } => SessionError::NodeLost { node: node.clone(), last_contact },
            Self::Client(client) => {
                SessionError::ClientLost { client: client.clone(), last_contact }
            }
        }
    }
}

/// A session, for its user and its driver.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    wakers: Arc<Wakers>,
    /// `wakers` as a waker.
    waker: Waker,
}

#[derive(Debug)]
struct State {
    link: Link,
    window: Window,
    client: Client,
    /// Where the other side listens.
    subject: Subject,
    peer: Peer,
    /// `None` when nothing that comes matters any more.
    subscriber: Option<Subscriber>,
    /// What has come and was not read: at most a window.
    incoming: VecDeque<Bytes>,
    /// What is to be sent as soon as the NATS client takes it.
    outgoing: VecDeque<OutboundMessage>,
    phase: Phase,
    /// Becomes true when the phase is no longer `Open`.
    over: watch::Sender<bool>,
    /// The node has not been told yet that the session is over.
    farewell: Option<Farewell>,
    /// How many replies of other nodes have come.
    replies: u32,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// The user has closed the session, or both streams are at their ends.
    Closed,
    /// The other side has closed the session.
    ClosedByPeer,
    Failed(SessionError),
}

/// What the driver waits for.
pub(super) enum Next {
    At(Instant),
    /// Nothing more: the session is over.
    Over,
}

impl Shared {
    pub(super) fn new(
        client: Client,
        subscriber: Option<Subscriber>,
        subject: String,
        link: Link,
        window: Window,
        peer: Peer,
        first: Option<Bytes>,
    ) -> Self {
        let wakers = Arc::new(Wakers::default());
        let mut state = State {
            link,
            window,
            client,
            subject: subject.into(),
            peer,
            subscriber,
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            phase: Phase::Open,
            over: watch::channel(false).0,
            farewell: None,
            replies: 0,
        };
        if let Some(payload) = first {
            state.receive(payload);
        }
        Self { state: Mutex::new(state), waker: Arc::clone(&wakers).into(), wakers }
    }

    /// The next piece, or `None` at the end of the stream.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        // Before looking: what comes between looking and registering would wake nobody.
        self.wakers.set_reader(cx.waker());
        match self.try_read() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            result => {
                // While the user does something else, the driver is woken.
                self.wakers.clear_reader();
                Poll::Ready(result)
            }
        }
    }

    /// The same without waiting: the task that is woken for the next message stays the same.
    pub(super) fn try_read(&self) -> io::Result<Option<Bytes>> {
        let mut state = self.lock();
        state.carry_on(&self.waker);
        match state.incoming.pop_front() {
            Some(piece) => Ok(Some(piece)),
            None => match &state.phase {
                // A violation counts also behind the end of the stream; nothing else matters there.
                Phase::Failed(
                    error @ (SessionError::Violation { .. } | SessionError::Gap { .. }),
                ) => Err(error.clone().into()),
                _ if state.link.peer_has_finished() => Ok(None),
                Phase::Failed(error) => Err(error.clone().into()),
                Phase::Closed | Phase::ClosedByPeer => Ok(None),
                Phase::Open => Err(io::ErrorKind::WouldBlock.into()),
            },
        }
    }

    /// Whether all that the other side has sent has been read, and it has said that nothing follows.
    pub(super) fn is_read_to_end(&self) -> bool {
        let state = self.lock();
        state.incoming.is_empty() && state.link.peer_has_finished()
    }

    /// The user has read a piece of this many bytes.
    pub(super) fn consume(&self, length: usize) {
        let mut state = self.lock();
        state.link.consume(length);
        if !matches!(state.phase, Phase::Open) {
            return;
        }
        let now = Instant::now();
        if let Some(growth) = state.link.growth(now)
            && state.window.grow(growth)
        {
            state.link.grow(growth);
        }
        if let Some(bytes) = state.link.credit(now) {
            state.queue(bytes);
            state.carry_on(&self.waker);
        }
    }

    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wakers.set_writer(cx.waker());
        let mut state = self.lock();
        state.carry_on(&self.waker);
        state.check_writable()?;
        let mut data = Gather::new(slices);
        if data.left() == 0 {
            return Poll::Ready(Ok(0));
        }
        if !state.outgoing.is_empty() {
            return Poll::Pending;
        }
        let now = Instant::now();
        let mut written = 0;
        // Several pieces at once, while the NATS client takes them without waiting.
        while state.outgoing.is_empty()
            && let Some((bytes, length)) = state.link.piece(now, &mut data)
        {
            written += length;
            state.queue(bytes);
            state.send(&self.waker);
        }
        if written == 0 { Poll::Pending } else { Poll::Ready(Ok(written)) }
    }

    /// Waits until the NATS client has taken everything, not until it has arrived.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wakers.set_writer(cx.waker());
        let mut state = self.lock();
        state.carry_on(&self.waker);
        match &state.phase {
            Phase::Failed(error) => Poll::Ready(Err(error.clone().into())),
            _ if state.outgoing.is_empty() => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }

    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.lock();
            if matches!(state.phase, Phase::Open)
                && let Some(bytes) = state.link.finish(Instant::now())
            {
                state.queue(bytes);
            }
        }
        self.poll_flush(cx)
    }

    /// Ends the session, unless it has ended.
    pub(super) fn close(&self, end: End) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Open) {
            state.end(end);
            state.finish(Phase::Closed);
            state.send(&self.waker);
        }
        drop(state);
        self.wakers.wake_driver();
    }

    /// Waits until nothing more can be sent or received, whether or not anybody reads and writes.
    pub(super) async fn over(&self) {
        let mut over = self.lock().over.subscribe();
        // The sender lives as long as this.
        let _ = over.wait_for(|over| *over).await;
    }

    pub(super) fn announce(&self) {
        let mut state = self.lock();
        let bytes = state.link.heartbeat(Instant::now());
        state.queue(bytes);
        state.send(&self.waker);
    }

    pub(super) fn error(&self) -> Option<SessionError> {
        match &self.lock().phase {
            Phase::Failed(error) => Some(error.clone()),
            Phase::Open | Phase::Closed | Phase::ClosedByPeer => None,
        }
    }

    /// For the driver: does what is due.
    pub(super) fn advance(&self, cx: &mut Context<'_>) -> Next {
        self.wakers.set_driver(cx.waker());
        let mut state = self.lock();
        let mut changed = state.carry_on(&self.waker);
        if matches!(state.phase, Phase::Open) {
            let now = Instant::now();
            match state.link.timeout(now) {
                Timeout::Nothing => {}
                Timeout::Heartbeat(bytes) => {
                    // A client that takes nothing, because it is being connected again, needs no second one.
                    state.queue(bytes);
                    changed |= state.send(&self.waker);
                }
                Timeout::Lost(silent) => {
                    let text = format!("nothing came for {silent:.1?}");
                    let error = state.peer.lost(silent);
                    state.fail(error, Some(End { reason: Reason::Silent, text }));
                    state.send(&self.waker);
                    changed = true;
                }
            }
        }
        let next = match state.phase {
            Phase::Open => Next::At(state.link.next_timeout()),
            _ if state.outgoing.is_empty() => Next::Over,
            // The NATS client wakes the driver when it takes more; it is asked again all the same.
            _ => Next::At(Instant::now() + Duration::from_secs(60)),
        };
        drop(state);
        if changed {
            self.wakers.wake_users();
        }
        next
    }

    /// For the driver, at the end: waits until everything is written to the socket.
    pub(super) async fn flush(&self) {
        let client = self.lock().client.clone();
        // Without a connection it need not be written: the other side has noticed by then.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, client.flush()).await;
        self.lock().farewell = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes all that has come and sends what it can. Whether a user may see a difference.
    fn carry_on(&mut self, waker: &Waker) -> bool {
        let mut changed = false;
        let mut cx = Context::from_waker(waker);
        while let Some(subscriber) = &mut self.subscriber {
            match Pin::new(subscriber).poll_next(&mut cx) {
                Poll::Pending => break,
                // NATS says of a request that nobody listens. The session has begun since, by another one.
                Poll::Ready(Some(message)) if message.status.is_some() => {}
                Poll::Ready(Some(message)) => changed |= self.receive(message.payload),
                Poll::Ready(None) => {
                    self.fail(SessionError::NatsClosed, None);
                    changed = true;
                }
            }
        }
        self.send(waker) || changed
    }

    fn receive(&mut self, payload: Bytes) -> bool {
        if self.decline(&payload) {
            return false;
        }
        match self.link.receive(Instant::now(), payload) {
            Ok(Received::Bytes(bytes)) => self.incoming.push_back(detached(bytes)),
            Ok(Received::Credit) => {}
            Ok(Received::Heartbeat) => return false,
            Ok(Received::Finished) => self.close_if_over(),
            Ok(Received::Ended(end)) => {
                self.finish(match end.reason {
                    Reason::Closed => Phase::ClosedByPeer,
                    _ => Phase::Failed(SessionError::Ended {
                        peer: self.peer.described(),
                        detail: end.describe(),
                    }),
                });
            }
            Err(violation) => {
                let error = SessionError::violation(&self.peer.described(), &violation);
                let end = End { reason: Reason::Violation, text: violation.to_string() };
                self.fail(error, Some(end));
            }
        }
        true
    }

    /// Whether this is the reply of another node to the same request. If it has accepted, it need not wait for the client.
    fn decline(&mut self, payload: &[u8]) -> bool {
        if !matches!(self.peer, Peer::Node { .. })
            || !Reply::recognize(payload)
            || self.replies == MAX_REPLIES
        {
            return false;
        }
        let Ok(reply) = Reply::decode(payload) else { return false };
        self.replies += 1;
        if let Reply::Accept { subject, .. } = reply
            && subject != self.subject.as_str()
            && self.outgoing.len() < 64
        {
            self.outgoing.push_back(unwanted(subject));
        }
        true
    }

    fn fail(&mut self, error: SessionError, end: Option<End>) {
        if let Some(end) = end {
            self.end(end);
        }
        self.finish(Phase::Failed(error));
    }

    fn end(&mut self, end: End) {
        let bytes = self.link.end(Instant::now(), end);
        self.queue(bytes);
    }

    fn finish(&mut self, phase: Phase) {
        if let (Phase::Open, Peer::Node { farewells, .. }) = (&self.phase, &self.peer) {
            self.farewell = Some(farewells.begin());
        }
        self.phase = phase;
        self.subscriber = None;
        self.over.send_replace(true);
    }

    fn queue(&mut self, payload: Bytes) {
        self.outgoing.push_back(OutboundMessage {
            subject: self.subject.clone(),
            reply: None,
            payload,
            headers: None,
        });
    }

    /// Gives the NATS client what it takes. Whether a user may see a difference.
    fn send(&mut self, waker: &Waker) -> bool {
        let mut cx = Context::from_waker(waker);
        let mut changed = false;
        while !self.outgoing.is_empty() {
            let sent = match Pin::new(&mut self.client).poll_ready(&mut cx) {
                Poll::Pending => return changed,
                Poll::Ready(Ok(())) => match self.outgoing.pop_front() {
                    Some(message) => Pin::new(&mut self.client).start_send(message),
                    None => Ok(()),
                },
                Poll::Ready(Err(error)) => Err(error),
            };
            changed = true;
            if sent.is_err() {
                self.outgoing.clear();
                self.fail(SessionError::NatsClosed, None);
                return true;
            }
        }
        self.close_if_over();
        changed
    }

    fn close_if_over(&mut self) {
        if matches!(self.phase, Phase::Open) && self.link.is_over() && self.outgoing.is_empty() {
            self.finish(Phase::Closed);
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        match &self.phase {
            Phase::Failed(error) => Err(error.clone().into()),
            Phase::Open if !self.link.has_finished() => Ok(()),
            Phase::ClosedByPeer => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                format!("{} has closed the session", self.peer.described()),
            )),
            Phase::Open | Phase::Closed => {
                Err(io::Error::new(io::ErrorKind::BrokenPipe, "the session was shut down"))
            }
        }
    }
}

/// A piece that may wait. What the NATS client hands out keeps its whole read buffer, which may have had anything else
/// in it, so many short pieces would keep far more memory than they cost.
fn detached(piece: Bytes) -> Bytes {
    if piece.len() < SHORT_PIECE { Bytes::copy_from_slice(&piece) } else { piece }
}

/// Tells a node that the client has got a session elsewhere.
pub(crate) fn unwanted(subject: String) -> OutboundMessage {
    let end = End { reason: Reason::Unwanted, text: String::new() };
    OutboundMessage {
        subject: subject.into(),
        reply: None,
        payload: Message::End(end).encode(0),
        headers: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_piece_keeps_no_memory_of_others() {
        for (length, is_copied) in [(1, true), (SHORT_PIECE - 1, true), (SHORT_PIECE, false)] {
            let buffer = Bytes::from(vec![7; 64 << 10]);
            let piece = detached(buffer.slice(..length));
            assert_eq!(piece.len(), length);
            assert_eq!(buffer.is_unique(), is_copied, "{length} bytes");
        }
    }
}
