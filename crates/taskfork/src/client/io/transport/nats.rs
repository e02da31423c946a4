//! Connections through NATS, to a node of a service.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use rustix::io::Errno;
use taskfork_nats::async_nats::ConnectOptions;
use taskfork_nats::{
    Acquired, Error, Fleet, FleetOptions, Holder, Label, Route, Session, SessionError,
};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::{Connected, OnWait, Transport};
use crate::address::nats::NatsAddress;
use crate::client::proto::disconnect::PathEnd;
use crate::display::seconds;
use crate::wire::gather_frame::OutgoingFile;

/// How long a client waits in the queues of nodes. A checkout that gives up cancels it.
const FOREVER: Duration = Duration::MAX;

/// How often a client that waits asks whether nodes run by now.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// After this time a client says that a NATS server has not greeted. It goes on waiting.
const GREETING: Duration = Duration::from_millis(500);

/// How long the end of a client waits for an attempt that connects to NATS.
const FLUSH: Duration = Duration::from_secs(1);

/// What all connections of a client through NATS share.
#[derive(Debug, Clone)]
pub(crate) struct NatsContext {
    pub(super) options: Arc<NatsOptions>,
    /// For each address its connection to NATS. It is made by the first attempt that needs it, because only that runs in
    /// the client's runtime.
    fleets: Arc<Mutex<Vec<(NatsAddress, Fleet)>>>,
    pub(crate) placement: Placement,
}

/// Which nodes the workers of a client may have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placement {
    /// What a node must have.
    pub(crate) labels: Vec<Label>,
    /// What prefers a node.
    pub(crate) key: Option<String>,
    /// Counts the workers. Each pool has its own.
    pub(crate) holder: Holder,
}

/// How a client connects to NATS.
#[derive(Debug)]
pub(crate) struct NatsOptions {
    pub(crate) connection: ConnectOptions,
    pub(crate) client: String,
    pub(crate) route: Route,
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) window: Option<u32>,
    pub(crate) answer_timeout: Option<Duration>,
}

// Nothing can be changed through a `NatsContext` but the connections behind their lock. Without these lines a client would
// lose the two traits with the feature.
impl UnwindSafe for NatsContext {}
impl RefUnwindSafe for NatsContext {}

impl NatsContext {
    pub(crate) fn new(options: NatsOptions) -> Self {
        Self { options: Arc::new(options), fleets: Arc::default(), placement: Placement::default() }
    }

    /// Gets a session. If no node has room, this calls `on_wait` with the reason and waits in turn.
    #[cfg(not(feature = "tls"))]
    pub(super) async fn connect(
        &self,
        address: &NatsAddress,
        on_wait: Option<OnWait<'_>>,
    ) -> io::Result<Connected> {
        let (_, acquired) = self.acquire(address, self.options.route, on_wait).await?;
        Ok(relayed(acquired.into_session()))
    }

    /// Gets what a node promises, and the connection to NATS by which it did. If no node has room, this calls `on_wait` with
    /// the reason and waits in turn.
    pub(super) async fn acquire(
        &self,
        address: &NatsAddress,
        route: Route,
        on_wait: Option<OnWait<'_>>,
    ) -> io::Result<(Fleet, Acquired)> {
        let fleet = beside(self.fleet(address), tell_silence(address, on_wait)).await?;
        let Placement { labels, key, holder } = &self.placement;
        let acquire = |wait| fleet.acquire_by(holder, labels, key.as_deref(), wait, route);
        let acquired = match (acquire(None).await, on_wait) {
            (Err(error), Some(on_wait)) if error.is_no_room() => {
                let telling = tell_reason(&fleet, address, &error, on_wait);
                beside(acquire(Some(FOREVER)), telling).await
            }
            (acquired, _) => acquired,
        };
        match acquired {
            Ok(acquired) => Ok((fleet, acquired)),
            Err(error) => {
                if let Error::Closed(_) = error {
                    self.fleets.lock().await.retain(|(known, _)| known != address);
                }
                Err(io::Error::other(error))
            }
        }
    }

    /// Waits until nodes know of all sessions that have ended, for a second at most with each address. Then the runtime may end.
    pub(crate) async fn flush(&self) {
        // An attempt has the lock while it connects to NATS, which can take long.
        let fleets = match timeout(FLUSH, self.fleets.lock()).await {
            Ok(fleets) => fleets.clone(),
            Err(_) => return,
        };
        for (_, fleet) in fleets {
            fleet.flush().await;
        }
    }

    /// The connection to NATS. While one attempt makes it, the others wait.
    async fn fleet(&self, address: &NatsAddress) -> io::Result<Fleet> {
        let mut fleets = self.fleets.lock().await;
        if let Some((_, fleet)) = fleets.iter().find(|(known, _)| known == address) {
            return Ok(fleet.clone());
        }
        let fleet = self.make_fleet(address).await.map_err(io::Error::other)?;
        fleets.push((address.clone(), fleet.clone()));
        Ok(fleet)
    }

    async fn make_fleet(&self, address: &NatsAddress) -> Result<Fleet, Error> {
        let NatsOptions { connection, client, heartbeat, window, answer_timeout, .. } =
            &*self.options;
        let connection = match address.has_tls {
            true => connection.clone().require_tls(true),
            false => connection.clone(),
        };
        let mut options = FleetOptions::new().nats(connection).name(client);
        if let Some(interval) = *heartbeat {
            options = options.heartbeat(interval);
        }
        if let Some(bytes) = *window {
            options = options.window(bytes);
        }
        if let Some(timeout) = *answer_timeout {
            options = options.answer_timeout(timeout);
        }
        let urls: Vec<_> = address.urls().collect();
        Fleet::connect(&urls.join(","), &address.service, options).await
    }
}

/// Says that a NATS server does not greet, for an attempt that ends before async-nats gives up.
async fn tell_silence(address: &NatsAddress, on_wait: Option<OnWait<'_>>) {
    let Some(on_wait) = on_wait else { return };
    sleep(GREETING).await;
    on_wait(format!(
        "no NATS server has greeted at {address} within {}: is this the port of a NATS server, and does it run?",
        seconds(GREETING)
    ));
}

/// Says why a client waits, at once and then more exactly: NATS answers for a service without nodes as for a full one. It
/// goes on until a node has been seen.
async fn tell_reason(fleet: &Fleet, address: &NatsAddress, error: &Error, on_wait: OnWait<'_>) {
    on_wait(error.to_string());
    let mut had_none = false;
    while let Ok(false) = fleet.has_nodes().await {
        if !had_none {
            let service = &address.service;
            on_wait(format!(
                "no node of the service {service} runs: start one, or correct the name of the service"
            ));
        }
        had_none = true;
        sleep(ASK_AGAIN).await;
    }
    if had_none {
        on_wait(error.to_string());
    }
}

/// The output of `main`. Meanwhile `other` runs too.
async fn beside<T>(main: impl Future<Output = T>, other: impl Future<Output = ()>) -> T {
    let (mut main, mut other) = (pin!(main), pin!(other));
    let mut runs = true;
    poll_fn(|context| {
        if runs {
            runs = other.as_mut().poll(context).is_pending();
        }
        main.as_mut().poll(context)
    })
    .await
}

/// A stream to the node through NATS.
pub(super) fn relayed(session: Session) -> Connected {
    Connected::new(Box::new(Nats { session }), 0)
}

/// A session with a node.
#[derive(Debug)]
struct Nats {
    session: Session,
}

impl Nats {
    /// Moves at most `room` of the arrived bytes to the inbox. Returns how many.
    fn take(&mut self, inbox: &mut BytesMut, room: usize) -> io::Result<usize> {
        let mut taken = 0;
        while taken < room {
            let arrived = match self.session.try_fill_buf() {
                Ok(arrived) => arrived,
                // What came before is handed out first; the next read finds the error again.
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error),
            };
            let part = &arrived[..arrived.len().min(room - taken)];
            if part.is_empty() {
                break;
            }
            inbox.extend_from_slice(part);
            let length = part.len();
            self.session.consume(length);
            taken += length;
        }
        Ok(taken)
    }
}

impl Transport for Nats {
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        _: &[OutgoingFile],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.session).poll_write_vectored(context, slices).map_err(path_end)
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        inbox: &mut BytesMut,
        room: usize,
        _: &mut Vec<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        // Something has come, or it is the end; or the task is woken when that changes.
        let filled = ready!(Pin::new(&mut self.session).poll_fill_buf(context)).map(<[u8]>::len);
        Poll::Ready(filled.and_then(|_| self.take(inbox, room)).map_err(path_end))
    }

    fn receive_now(
        &mut self,
        inbox: &mut BytesMut,
        room: usize,
        _: &mut Vec<OwnedFd>,
    ) -> rustix::io::Result<usize> {
        self.take(inbox, room).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Errno::AGAIN,
            _ => Errno::CONNRESET,
        })
    }

    fn can_lose_answers(&self) -> bool {
        !self.session.is_read_to_end()
    }

    fn stop_input(&mut self, context: &mut Context<'_>) -> bool {
        // What is left is sent by the session itself.
        let _ = Pin::new(&mut self.session).poll_shutdown(context);
        false
    }
}

/// The end of a session as the end of the way to a worker. Its kind must not say that a worker has left something unread.
fn path_end(error: io::Error) -> io::Error {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<SessionError>());
    match source {
        Some(SessionError::NodeLost { node, last_contact }) => {
            let (node, last_contact) = (node.clone(), *last_contact);
            io::Error::other(PathEnd::NodeLost { node, last_contact })
        }
        Some(ended @ (SessionError::Ended { .. } | SessionError::NatsClosed)) => {
            io::Error::other(PathEnd::Closed(ended.to_string()))
        }
        Some(wrong) => io::Error::new(io::ErrorKind::InvalidData, wrong.clone()),
        // The node has closed the session, and what it has sent before can still be read.
        None => io::ErrorKind::BrokenPipe.into(),
    }
}
