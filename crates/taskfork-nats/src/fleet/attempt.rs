//! One client's search for a session: requests, and the answers to them.

use std::time::{Duration, Instant};

use async_nats::{Client, StatusCode, Subscriber};
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::grant::{Acquired, Grant};
use crate::error::Error;
use crate::link::Link;
use crate::session::{Peer, Session};
use crate::token;
use crate::wire::{Direct, End, Message, Offer, Reason, Refusal, Reply, Request};

/// An inbox for answers. It becomes the inbox of the session, so nothing that a node sends right
/// after its answer is lost.
pub(super) struct Attempt {
    client: Client,
    inbox: String,
    subscriber: Subscriber,
    offer: Offer,
}

/// What came to the inbox.
pub(super) enum Answer {
    Accepted(Accepted),
    /// Nobody listens where the request went.
    NoResponders,
    Refused {
        node: String,
        full: bool,
        text: String,
    },
    /// Nothing came in time.
    None,
}

/// A node's promise.
pub(super) struct Accepted {
    node: String,
    subject: String,
    offer: Offer,
    /// Where the client may connect directly, and until when.
    direct: Option<(Direct, Instant)>,
}

impl Attempt {
    pub(super) async fn new(client: Client, offer: Offer) -> Result<Self, Error> {
        let inbox = token::inbox(&client)?;
        let subscriber = client.subscribe(inbox.clone()).await.map_err(Error::closed)?;
        Ok(Self { client, inbox, subscriber, offer })
    }

    pub(super) fn inbox(&self) -> &str {
        &self.inbox
    }

    /// Sends a request.
    pub(super) async fn ask(&self, subject: String, request: &Request) -> Result<(), Error> {
        let sent = self.client.publish_with_reply(subject, self.inbox.clone(), request.encode());
        sent.await.map_err(Error::closed)
    }

    /// Waits for an answer.
    pub(super) async fn answer(&mut self, wait: Duration) -> Result<Answer, Error> {
        let began = Instant::now();
        while let Some(left) = wait.checked_sub(began.elapsed()) {
            let message = match timeout(left, self.subscriber.next()).await {
                Err(_) => break,
                Ok(None) => return Err(Error::closed("its connection is closed")),
                Ok(Some(message)) => message,
            };
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                return Ok(Answer::NoResponders);
            }
            match Reply::decode(&message.payload) {
                Ok(Reply::Accept { node, subject, offer, direct }) => {
                    let until = |direct: Direct| {
                        let valid = Duration::from_millis(direct.valid_ms.into());
                        (direct, Instant::now() + valid)
                    };
                    let direct = direct.map(until);
                    return Ok(Answer::Accepted(Accepted { node, subject, offer, direct }));
                }
                Ok(Reply::Refuse { node, why, text }) => {
                    return Ok(Answer::Refused { node, full: why == Refusal::Full, text });
                }
                Err(error) => {
                    tracing::warn!(error, "an answer to a request for a session is wrong")
                }
            }
        }
        Ok(Answer::None)
    }

    /// What was promised.
    pub(super) fn acquired(self, accepted: Accepted) -> Acquired {
        let Accepted { node, subject, offer, direct } = accepted;
        let promise = Promise { attempt: self, node, subject, offer };
        match direct {
            Some((direct, until)) => Grant::acquired(promise, direct, until),
            None => Acquired::Session(promise.session()),
        }
    }
}

/// A session that a node has promised.
pub(super) struct Promise {
    attempt: Attempt,
    pub(super) node: String,
    subject: String,
    offer: Offer,
}

impl Promise {
    /// Begins the session.
    pub(super) fn session(self) -> Session {
        let Self { attempt, node, subject, offer } = self;
        let link = Link::new(attempt.offer, offer, Instant::now());
        let Attempt { client, subscriber, .. } = attempt;
        let session = Session::start(client, subscriber, subject, link, Peer::Node(node), None);
        session.announce();
        session
    }

    /// What gives the place up.
    pub(super) fn give_up(&self) -> GiveUp {
        let (client, subject) = (self.attempt.client.clone(), self.subject.clone());
        GiveUp { client, subject, is_armed: true }
    }
}

/// Tells a node, when it is dropped, that what it has promised is not wanted.
pub(super) struct GiveUp {
    client: Client,
    subject: String,
    is_armed: bool,
}

impl GiveUp {
    /// Tells the node nothing.
    pub(super) fn disarm(mut self) {
        self.is_armed = false;
    }
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        // Without a runtime the node forgets it by itself.
        if let (true, Ok(runtime)) = (self.is_armed, Handle::try_current()) {
            let (client, subject) = (self.client.clone(), self.subject.clone());
            let end = Message::End(End { reason: Reason::Unwanted, text: String::new() });
            runtime.spawn(async move {
                if client.publish(subject, end.encode(0)).await.is_ok() {
                    // A client that is dropped forgets what it has not yet written.
                    let _ = client.flush().await;
                }
            });
        }
    }
}
