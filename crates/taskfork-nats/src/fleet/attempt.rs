//! One client's search for a session: requests, and the answers to them.

use std::time::{Duration, Instant};

use async_nats::{Client, StatusCode, Subscriber};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::error::Error;
use crate::link::Link;
use crate::session::{Peer, Session};
use crate::token;
use crate::wire::{Offer, Refusal, Reply, Request};

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
                Ok(Reply::Accept { node, subject, offer }) => {
                    return Ok(Answer::Accepted(Accepted { node, subject, offer }));
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

    /// The session that was promised.
    pub(super) fn session(self, accepted: Accepted) -> Session {
        let link = Link::new(self.offer, accepted.offer, Instant::now());
        let peer = Peer::Node(accepted.node);
        let session =
            Session::start(self.client, self.subscriber, accepted.subject, link, peer, None);
        session.announce();
        session
    }
}
