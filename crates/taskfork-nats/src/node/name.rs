//! The name of a node, which no other node of the service has.

use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{sleep, timeout, timeout_at};

use super::run::Runner;
use crate::error::Error;
use crate::token;

/// How long a node with the same name has to answer, if it has subscribed before.
pub(super) const NAME_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for a node with the same name that starts at the same time.
const NAME_RACE: Duration = Duration::from_millis(100);

/// Where a node that starts gets answers.
pub(super) struct Inbox {
    pub(super) subject: String,
    pub(super) subscriber: Subscriber,
}

impl Runner {
    /// Makes sure that no other node has the name now.
    pub(super) async fn check_name(&mut self) -> Result<(), Error> {
        self.ask_for_name().await?;
        // What the NATS server has refused meanwhile comes from another task.
        sleep(NAME_RACE).await;
        Ok(())
    }

    /// Asks whether a node has the name. What the NATS server does not permit is known soon after that.
    async fn ask_for_name(&self) -> Result<Inbox, Error> {
        self.try_subjects().await?;
        let client = &self.shared.client;
        let subject = token::inbox(client)?;
        let subscriber = client.subscribe(subject.clone()).await.map_err(Error::closed)?;
        let mut inbox = Inbox { subject, subscriber };
        // If nobody has the name, the server says so at once.
        self.announce_name(&inbox).await?;
        let answer = timeout(NAME_TIMEOUT, inbox.subscriber.next()).await;
        if answer.is_ok_and(|answer| answer.is_some_and(|answer| answer.status.is_none())) {
            return Err(self.name_in_use());
        }
        Ok(inbox)
    }

    async fn announce_name(&self, inbox: &Inbox) -> Result<(), Error> {
        let payload = Bytes::copy_from_slice(self.id.as_bytes());
        let (name, reply) = (self.subjects.node(&self.name), inbox.subject.clone());
        let sent = self.shared.client.publish_with_reply(name, reply, payload).await;
        sent.map_err(Error::closed)
    }

    /// Makes sure that no other node has the name, and takes it.
    pub(super) async fn take_name(&mut self) -> Result<Inbox, Error> {
        let mut inbox = self.ask_for_name().await?;
        let client = &self.shared.client;
        let name = self.subjects.node(&self.name);
        // Other nodes can start at the same time. They hear of each other now, and the one with the smallest
        // id gets the name.
        let mut others = client.subscribe(name).await.map_err(Error::closed)?;
        self.announce_name(&inbox).await?;
        let until = tokio::time::Instant::now() + NAME_RACE;
        while let Ok(message) = timeout_at(until, async {
            tokio::select! {
                message = others.next() => message,
                message = inbox.subscriber.next() => message,
            }
        })
        .await
        {
            let message = message.ok_or_else(|| Error::closed("its connection is closed"))?;
            if message.status.is_some() || message.payload == self.id.as_bytes() {
                continue;
            }
            if message.payload < self.id.as_bytes() {
                return Err(self.name_in_use());
            }
            if let Some(reply) = message.reply {
                let sent = client.publish(reply, self.id.clone().into()).await;
                sent.map_err(Error::closed)?;
            }
        }
        self.always.push(others);
        Ok(inbox)
    }

    fn name_in_use(&self) -> Error {
        Error::NodeNameInUse { service: self.service.to_string(), node: self.name.to_string() }
    }
}
