//! One session of a node: from the request to the end.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, Subject};
use bytes::BytesMut;
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_buf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::connect::check_payload;
use crate::error::Error;
use crate::link::Link;
use crate::node::micro::Micro;
use crate::node::{Caller, Connector, Settings};
use crate::session::{Peer, Session};
use crate::token;
use crate::wire::{Offer, Reason, Refusal, Reply, Request};

/// How long the connector may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that is read from the server at once.
const BUFFER: usize = 64 * 1024;

/// How long after the end of a session its last bytes may take to the server.
const LINGER: Duration = Duration::from_millis(100);

/// What the sessions of a node share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) node: String,
    pub(super) settings: Arc<Settings>,
    pub(super) connector: Connector,
    pub(super) micro: Arc<Micro>,
    /// Becomes true when all sessions are to end.
    pub(super) ending: watch::Receiver<bool>,
}

impl Shared {
    /// Serves one session.
    pub(super) async fn serve(self, request: Request, reply: Subject) {
        let began = Instant::now();
        match self.accept(&request, reply).await {
            Ok(Some((session, stream))) => {
                self.micro.acquire().count(began.elapsed(), None);
                self.relay(session, stream).await;
            }
            Ok(None) => {
                tracing::debug!(client = request.client, "a client no longer wants its session");
            }
            Err(error) => {
                tracing::warn!(client = request.client, error, "a session could not begin");
                self.micro.acquire().count(began.elapsed(), Some(error));
            }
        }
    }

    /// Tells a client that it gets no session here.
    pub(super) async fn refuse(&self, reply: Subject, why: Refusal, text: String) {
        let reply_text = crate::wire::shortened(&text);
        let refusal = Reply::Refuse { node: self.node.clone(), why, text: reply_text };
        if let Err(error) = self.client.publish(reply, refusal.encode()).await {
            tracing::debug!(%error, "a refusal was not sent");
        }
    }

    /// Connects, promises a session, and waits for the client. `None` if it does not come.
    async fn accept(
        &self,
        request: &Request,
        reply: Subject,
    ) -> Result<Option<(Session, UnixStream)>, String> {
        let stream = match self.connect(request).await {
            Ok(stream) => stream,
            Err(error) => {
                let text = format!("its server cannot be reached: {error}");
                self.refuse(reply, Refusal::Connect, text.clone()).await;
                return Err(text);
            }
        };
        let promised = self.promise(request, reply).await;
        Ok(promised.map_err(|error| error.to_string())?.map(|session| (session, stream)))
    }

    async fn connect(&self, request: &Request) -> io::Result<UnixStream> {
        let caller = Caller { client: request.client.clone() };
        match timeout(CONNECT_TIMEOUT, (self.connector)(caller)).await {
            Ok(stream) => stream,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it did not accept within {CONNECT_TIMEOUT:?}"),
            )),
        }
    }

    async fn promise(&self, request: &Request, reply: Subject) -> Result<Option<Session>, Error> {
        let payload = check_payload(&self.client)?;
        let Settings { window, heartbeat, .. } = *self.settings;
        let offer = Offer::new(window, payload, heartbeat);
        let inbox = token::inbox(&self.client)?;
        let subscribed = self.client.subscribe(inbox.clone()).await;
        let mut subscriber = subscribed.map_err(Error::closed)?;
        let accept = Reply::Accept { node: self.node.clone(), subject: inbox, offer };
        let sent = self.client.publish(reply.clone(), accept.encode()).await;
        sent.map_err(Error::closed)?;
        // Nothing is sent before the client has answered: it may have another session by now.
        let wait =
            2 * Duration::from_millis(offer.heartbeat_ms.min(request.offer.heartbeat_ms).into());
        let Ok(Some(first)) = timeout(wait, subscriber.next()).await else {
            return Ok(None);
        };
        let link = Link::new(offer, request.offer, Instant::now());
        let peer = Peer::Client(request.client.clone());
        let (client, subject) = (self.client.clone(), reply.to_string());
        Ok(Some(Session::start(client, subscriber, subject, link, peer, Some(first.payload))))
    }

    /// Relays until the server closes its connection, the session ends, or the node does.
    async fn relay(mut self, mut session: Session, stream: UnixStream) {
        let (mut from_server, mut to_server) = stream.into_split();
        let (reason, text) = {
            let (reader, writer, over) = session.halves();
            let receive = async {
                copy_buf(reader, &mut to_server).await?;
                to_server.shutdown().await?;
                // The server may still have something to say.
                std::future::pending::<io::Result<()>>().await
            };
            let send = async {
                let mut buffer = BytesMut::with_capacity(BUFFER);
                while from_server.read_buf(&mut buffer).await? > 0 {
                    writer.write_all_buf(&mut buffer).await?;
                    buffer.reserve(BUFFER);
                }
                writer.shutdown().await
            };
            // Also while the server takes nothing. What the client has sent before may still be on its way there.
            let over = async {
                over.await;
                tokio::time::sleep(LINGER).await;
            };
            tokio::select! {
                () = over => (Reason::Closed, String::new()),
                result = send => result.map_or_else(failed, |()| (Reason::Closed, String::new())),
                result = receive => result.map_or_else(failed, |()| (Reason::Closed, String::new())),
                _ = self.ending.wait_for(|ending| *ending) => (Reason::Draining, String::new()),
            }
        };
        match session.error() {
            Some(error) => tracing::info!(%error, "a session has ended"),
            None => tracing::debug!(client = session.peer(), ?reason, text, "a session is over"),
        }
        session.end(reason, text);
    }
}

fn failed(error: io::Error) -> (Reason, String) {
    (Reason::Failed, error.to_string())
}
