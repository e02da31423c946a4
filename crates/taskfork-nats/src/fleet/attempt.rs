//! One client's search for a session: requests, and the answers to them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Client, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::avoided::Avoided;
use super::farewells::Farewells;
use super::grant::{Acquired, Grant};
use super::holder::{HeldSession, Holder};
use crate::error::Error;
use crate::link::Link;
use crate::session::{Peer, Session, Windows};
use crate::token;
use crate::wire::{Direct, End, Message, Offer, Reason, Refusal, Reply, Request, Route};

/// How long a client still takes answers to requests that it has given up. A node that accepts later hears from NATS that
/// nobody listens.
const LATE: Duration = Duration::from_secs(2);

/// In how many inboxes a client listens for such answers at a time.
const LATE_INBOXES: usize = 64;

/// What the attempts of a client share.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) client: Client,
    pub(super) windows: Windows,
    pub(super) farewells: Farewells,
    avoided: Arc<Mutex<Avoided>>,
    /// A permit for each inbox of an attempt that was given up.
    late: Arc<Semaphore>,
}

impl Common {
    pub(super) fn new(client: Client, window: Option<u32>) -> Self {
        Self {
            client,
            windows: Windows::new(window),
            farewells: Farewells::new(),
            avoided: Arc::default(),
            late: Arc::new(Semaphore::new(LATE_INBOXES)),
        }
    }

    /// The addresses where direct connections have failed.
    pub(super) fn avoided(&self) -> MutexGuard<'_, Avoided> {
        // Each address is added or removed at once, so they are right even after a panic.
        self.avoided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells a node that the place is not wanted that it keeps at this subject.
    async fn decline(&self, subject: String) {
        if self.client.publish(subject, unwanted()).await.is_ok() {
            // A client that is dropped forgets what it has not yet written.
            let _ = self.client.flush().await;
        }
    }

    /// Tells nodes that accept that they are not wanted, until so many answers have come.
    async fn decline_all(self, subscriber: Subscriber, answers: usize) {
        let mut answers = subscriber.take(answers);
        while let Some(message) = answers.next().await {
            if let Ok(Reply::Accept { subject, .. }) = Reply::decode(&message.payload) {
                self.decline(subject).await;
            }
        }
    }
}

/// Requests, and an inbox for their answers. It becomes the inbox of the session, so nothing that a node sends right
/// after its answer is lost.
pub(super) struct Attempt {
    inbox: Inbox,
    offer: Offer,
    route: Route,
    holder: Holder,
}

/// Where answers come. Nodes whose answers nobody has taken are told, when it is dropped, that they are not wanted.
struct Inbox {
    common: Common,
    subject: String,
    /// `None` when it has become that of a session, which does the same.
    subscriber: Option<Subscriber>,
    /// How many requests have no answer.
    unanswered: usize,
    /// Nodes may answer that have put the client into their queues.
    is_queued: bool,
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
    pub(super) async fn new(
        common: Common,
        offer: Offer,
        route: Route,
        holder: &Holder,
    ) -> Result<Self, Error> {
        let subject = token::inbox(&common.client)?;
        let subscriber = common.client.subscribe(subject.clone()).await.map_err(Error::closed)?;
        let subscriber = Some(subscriber);
        let inbox = Inbox { common, subject, subscriber, unanswered: 0, is_queued: false };
        Ok(Self { inbox, offer, route, holder: holder.clone() })
    }

    /// Where answers come, for requests for a place in the queues of nodes.
    pub(super) fn queued_inbox(&mut self) -> &str {
        self.inbox.is_queued = true;
        &self.inbox.subject
    }

    /// Sends a request.
    pub(super) async fn ask(&mut self, subject: String, request: &Request) -> Result<(), Error> {
        let Inbox { common, subject: reply, unanswered, .. } = &mut self.inbox;
        // Before it is sent: the future may be dropped at its end.
        *unanswered += 1;
        let sent = common.client.publish_with_reply(subject, reply.clone(), request.encode());
        sent.await.map_err(Error::closed)
    }

    /// Waits for an answer.
    pub(super) async fn answer(&mut self, wait: Duration) -> Result<Answer, Error> {
        let began = Instant::now();
        while let Some(left) = wait.checked_sub(began.elapsed()) {
            let message = match timeout(left, self.inbox.next()).await {
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

    /// What was promised. A direct connection that has failed just now is not tried again, unless nothing else is wanted.
    pub(super) fn acquired(self, accepted: Accepted) -> Acquired {
        let Accepted { node, subject, offer, direct } = accepted;
        let is_wanted = |direct: &Direct| {
            let avoided = self.inbox.common.avoided();
            self.route == Route::Direct || !avoided.has(Instant::now(), &direct.address)
        };
        let direct = direct.filter(|(direct, _)| is_wanted(direct));
        let promise = Promise { attempt: self, node, subject, offer };
        match direct {
            Some((direct, until)) => Grant::acquired(promise, direct, until),
            None => Acquired::Session(promise.session()),
        }
    }
}

impl Inbox {
    async fn next(&mut self) -> Option<async_nats::Message> {
        let message = self.subscriber.as_mut()?.next().await?;
        self.unanswered = self.unanswered.saturating_sub(1);
        Some(message)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let due = if self.is_queued { usize::MAX } else { self.unanswered };
        let (Some(subscriber), 1..) = (self.subscriber.take(), due) else { return };
        // Without a runtime, or behind so many others, NATS tells the nodes.
        let permit = self.common.late.clone().try_acquire_owned();
        let (Ok(runtime), Ok(permit)) = (Handle::try_current(), permit) else { return };
        let common = self.common.clone();
        runtime.spawn(async move {
            let _ = timeout(LATE, common.decline_all(subscriber, due)).await;
            drop(permit);
        });
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
        let Self { attempt: Attempt { mut inbox, offer: own, holder, .. }, node, subject, offer } =
            self;
        let link = Link::new(own, offer, Instant::now());
        let subscriber = inbox.subscriber.take();
        let Common { client, windows, farewells, .. } = inbox.common.clone();
        let peer = Peer::Node { node, farewells, _held: holder.hold() };
        let session = Session::start(client, subscriber, subject, link, &windows, peer, None);
        session.announce();
        session
    }

    /// Counts a direct connection as a session.
    pub(super) fn hold(&self) -> HeldSession {
        self.attempt.holder.hold()
    }

    /// What gives the place up.
    pub(super) fn give_up(&self) -> GiveUp {
        let common = self.attempt.inbox.common.clone();
        GiveUp { common, subject: self.subject.clone(), is_armed: true }
    }
}

/// Tells a node, when it is dropped, that what it has promised is not wanted.
pub(super) struct GiveUp {
    common: Common,
    subject: String,
    is_armed: bool,
}

impl GiveUp {
    /// Tells the node nothing.
    pub(super) fn disarm(mut self) {
        self.is_armed = false;
    }

    /// Tells the node now, before anything that follows.
    pub(super) async fn tell(mut self) {
        let sent = self.common.client.publish(self.subject.clone(), unwanted());
        let sent = sent.await;
        // Until here, the future may have been dropped. Without NATS the node finds it out by itself.
        self.is_armed = false;
        drop(sent);
    }
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if self.is_armed {
            let (common, subject) = (self.common.clone(), std::mem::take(&mut self.subject));
            let telling = async move { common.decline(subject).await };
            self.common.farewells.spawn(telling);
        }
    }
}

fn unwanted() -> Bytes {
    Message::End(End { reason: Reason::Unwanted, text: String::new() }).encode(0)
}
