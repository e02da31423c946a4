//! One session of a node: from the request to the end.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, Subject, Subscriber};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::connect::check_payload;
use crate::direct::Connection;
use crate::error::Error;
use crate::link::Link;
use crate::node::micro::Micro;
use crate::node::usage::SessionUsage;
use crate::node::{Caller, Connector, SessionHandler, Settings};
use crate::session::{Peer, Session, Windows};
use crate::token;
use crate::wire::{Direct, End, Message, Offer, Reason, Refusal, Reply, Request};

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
    pub(super) windows: Windows,
    pub(super) connector: Connector,
    pub(super) handler: Option<SessionHandler>,
    pub(super) micro: Arc<Micro>,
    /// Gets whether the server could be reached, each time that a session connects.
    pub(super) reached: mpsc::Sender<bool>,
    /// Becomes true when all sessions are to end.
    pub(super) ending: watch::Receiver<bool>,
    /// Becomes true when the node drains.
    pub(super) draining: watch::Receiver<bool>,
}

/// A session that was promised, and not begun.
pub(super) struct Invitation {
    client: Client,
    windows: Windows,
    pub(super) request: Request,
    /// Where the client listens.
    reply: Subject,
    offer: Offer,
    /// What the client sends comes here.
    subscriber: Subscriber,
}

impl Invitation {
    /// How long the client may take to begin.
    fn wait(&self) -> Duration {
        let heartbeat_ms = self.offer.heartbeat_ms.min(self.request.offer.heartbeat_ms);
        2 * Duration::from_millis(heartbeat_ms.into())
    }

    /// The client's first message. `None` if the client does not want the session, or NATS says that nobody listens for the
    /// node's answer any more.
    pub(super) async fn first(&mut self) -> Option<Bytes> {
        let message = self.subscriber.next().await?;
        let is_end = matches!(Message::decode(message.payload.clone()), Ok((_, Message::End(_))));
        (message.status.is_none() && !is_end).then_some(message.payload)
    }

    /// Tells the client that it gets no session any more.
    pub(super) async fn cancel(self, reason: Reason, text: &str) {
        let end = Message::End(End { reason, text: text.to_owned() }).encode(0);
        if let Err(error) = self.client.publish(self.reply, end).await {
            tracing::debug!(%error, "the end of a promise was not sent");
        }
    }

    /// The session, of which this message has come.
    pub(super) fn begin(self, first: Bytes) -> Session {
        let Self { client, windows, request, reply, offer, subscriber } = self;
        let link = Link::new(offer, request.offer, Instant::now());
        let (subject, peer) = (reply.to_string(), Peer::Client(request.client));
        Session::start(client, Some(subscriber), subject, link, &windows, peer, Some(first))
    }
}

/// What a client has begun with.
pub(super) enum Begun {
    Session(Session, UnixStream),
    Direct(Connection),
}

impl Shared {
    /// Serves one session.
    pub(super) async fn serve(mut self, request: Request, reply: Subject, usage: SessionUsage) {
        let began = Instant::now();
        let client = request.client.clone();
        let begun = self.accept(request, reply, &usage).await;
        match &begun {
            Ok(Some(_)) => self.micro.acquire().count(began.elapsed(), None),
            Ok(None) => tracing::debug!(client, "a client does not want its session"),
            Err(error) => {
                tracing::warn!(client, error, "a session could not begin");
                self.micro.acquire().count(began.elapsed(), Some(error.clone()));
            }
        }
        match begun {
            Ok(Some(Begun::Session(session, stream))) => match self.handler.clone() {
                Some(handler) => self.hand_over(handler, session, stream, client, usage).await,
                None => self.relay(session, stream).await,
            },
            Ok(Some(Begun::Direct(connection))) => self.keep(connection).await,
            Ok(None) | Err(_) => {}
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
        &mut self,
        request: Request,
        reply: Subject,
        usage: &SessionUsage,
    ) -> Result<Option<Begun>, String> {
        let text = |error: Error| error.to_string();
        let Some(offered) = self.offer_direct(&request, &reply, usage).await.map_err(text)? else {
            return Ok(None);
        };
        if let Some(offered) = offered {
            let grant = Some(offered.grant.clone());
            let invitation = self.invite(request, reply, grant).await.map_err(text)?;
            return self.await_choice(invitation, offered).await;
        }
        let stream = match self.connect(&request).await {
            Ok(stream) => stream,
            Err(error) => {
                let text = format!("its server cannot be reached: {error}");
                self.refuse(reply, Refusal::Connect, text.clone()).await;
                return Err(text);
            }
        };
        let mut invitation = self.invite(request, reply, None).await.map_err(text)?;
        // Nothing is sent before the client has answered: it may have another session by now.
        let Ok(Some(first)) = timeout(invitation.wait(), invitation.first()).await else {
            return Ok(None);
        };
        Ok(Some(Begun::Session(invitation.begin(first), stream)))
    }

    pub(super) async fn connect(&self, request: &Request) -> io::Result<UnixStream> {
        let caller = Caller { client: request.client.clone() };
        let stream = match timeout(CONNECT_TIMEOUT, (self.connector)(caller)).await {
            Ok(stream) => stream,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it did not accept within {CONNECT_TIMEOUT:?}"),
            )),
        };
        // If many sessions connect at once, the node need not hear of all.
        let _ = self.reached.try_send(stream.is_ok());
        stream
    }

    /// Promises a session.
    async fn invite(
        &self,
        request: Request,
        reply: Subject,
        direct: Option<Direct>,
    ) -> Result<Invitation, Error> {
        let client = self.client.clone();
        let payload = check_payload(&client)?;
        let offer = Offer::new(self.windows.first(), payload, self.settings.heartbeat);
        let subject = token::inbox(&client)?;
        let subscriber = client.subscribe(subject.clone()).await.map_err(Error::closed)?;
        let node = self.node.clone();
        let accept = Reply::Accept { node, subject: subject.clone(), offer, direct };
        // With a reply subject NATS says at once if the client has gone.
        let sent = client.publish_with_reply(reply.clone(), subject, accept.encode()).await;
        sent.map_err(Error::closed)?;
        Ok(Invitation { client, windows: self.windows.clone(), request, reply, offer, subscriber })
    }

    /// Relays until the server closes its connection, the session ends, or the node does.
    async fn relay(mut self, mut session: Session, stream: UnixStream) {
        let (mut from_server, mut to_server) = stream.into_split();
        let (reason, text) = {
            let (reader, writer, over) = session.halves();
            let receive = async {
                loop {
                    let received = reader.fill_buf().await?;
                    if received.is_empty() {
                        break;
                    }
                    // A server that takes no more has closed its connection, and may have said why before.
                    let Ok(sent) = to_server.write(received).await else { break };
                    reader.consume(sent);
                }
                let _ = to_server.shutdown().await;
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
