//! The subjects where a node is asked for sessions, while it has room.
//!
//! A node joins with a quota: NATS delivers as many requests as there is room, and no more. So the usual way
//! of becoming full loses no request. Each subject has the quota, so together they can deliver more;
//! the node refuses what is too much, and the client asks again.

use std::pin::Pin;
use std::task::{Context, Poll};

use async_nats::{Client, Message, Subscriber};
use futures_util::stream::{SelectAll, Stream, StreamExt};

use crate::error::Error;

/// The subscriptions of a node that can be full.
pub(super) struct Group {
    client: Client,
    /// Subjects, and for each the queue group if there is one.
    subjects: Vec<(String, Option<String>)>,
    members: SelectAll<Member>,
    joined: bool,
}

/// The subscription to one of the subjects.
struct Member {
    subscriber: Subscriber,
    subject: usize,
    /// How many more requests NATS delivers.
    left: usize,
    /// The node no longer wants requests from it. Some can be on their way.
    leaving: bool,
    ended: bool,
}

/// What a node learns from its subjects.
pub(super) enum Asked {
    /// A client asks for a session. NATS delivers so many more requests to the same subject.
    Session { message: Message, left: usize },
    /// NATS has delivered the quota of a subject.
    Quota(usize),
}

enum Event {
    Request {
        message: Message,
        left: usize,
    },
    /// NATS has delivered the quota.
    Ended {
        subject: usize,
        leaving: bool,
    },
}

impl Group {
    pub(super) fn new(client: Client, subjects: Vec<(String, Option<String>)>) -> Self {
        Self { client, subjects, members: SelectAll::new(), joined: false }
    }

    /// Joins if there is room, or else leaves.
    pub(super) async fn set_room(&mut self, room: usize) -> Result<(), Error> {
        match (room, self.joined) {
            (0, true) => {
                self.joined = false;
                for member in self.members.iter_mut().filter(|member| !member.leaving) {
                    member.leaving = true;
                    // It delivers what has come meanwhile, unlike `unsubscribe`.
                    member.subscriber.drain().await.map_err(Error::closed)?;
                }
            }
            (1.., false) => {
                self.joined = true;
                for subject in 0..self.subjects.len() {
                    self.subscribe(subject, room).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What happens next. Waits for ever if the node has not joined. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Asked {
        loop {
            match self.members.next().await {
                None => std::future::pending().await,
                Some(Event::Request { message, left }) => return Asked::Session { message, left },
                Some(Event::Ended { leaving: true, .. }) => {}
                Some(Event::Ended { subject, leaving: false }) => return Asked::Quota(subject),
            }
        }
    }

    /// Gives a subject whose quota is used up a new one, if there is room.
    pub(super) async fn renew(&mut self, subject: usize, room: usize) -> Result<(), Error> {
        if self.joined && room > 0 {
            self.subscribe(subject, room).await?;
        }
        Ok(())
    }

    async fn subscribe(&mut self, subject: usize, quota: usize) -> Result<(), Error> {
        let (name, queue) = self.subjects[subject].clone();
        let mut subscriber = match queue {
            Some(queue) => self.client.queue_subscribe(name, queue).await,
            None => self.client.subscribe(name).await,
        }
        .map_err(Error::closed)?;
        subscriber.unsubscribe_after(quota as u64).await.map_err(Error::closed)?;
        let member = Member { subscriber, subject, left: quota, leaving: false, ended: false };
        self.members.push(member);
        Ok(())
    }
}

impl Stream for Member {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.subscriber.poll_next_unpin(cx).map(|message| {
            let Some(message) = message else {
                self.ended = true;
                return Some(Event::Ended { subject: self.subject, leaving: self.leaving });
            };
            self.left = self.left.saturating_sub(1);
            Some(Event::Request { message, left: if self.leaving { 0 } else { self.left } })
        })
    }
}
