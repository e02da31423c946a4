//! A client's place in the queues of nodes without room.

use async_nats::Client;
use bytes::Bytes;

use super::attempt::Common;
use super::farewells::Farewells;
use crate::error::Error;
use crate::names::{Labels, Subjects};
use crate::wire::Request;

/// A place in the queues. Dropping it gives it up.
pub(super) struct Place {
    client: Client,
    farewells: Farewells,
    subject: String,
    /// Where one node is asked to make room.
    room: String,
    inbox: String,
    /// What gives the place up.
    cancel: Request,
}

impl Place {
    pub(super) fn new(
        common: &Common,
        subjects: &Subjects,
        labels: &Labels,
        inbox: &str,
        request: Request,
    ) -> Self {
        Self {
            client: common.client.clone(),
            farewells: common.farewells.clone(),
            subject: subjects.wait(),
            room: subjects.room(labels),
            inbox: inbox.into(),
            cancel: Request { cancel: true, ..request },
        }
    }

    /// Takes the place, or keeps it, and asks one of the nodes to make room. Nodes forget a place that is not renewed.
    pub(super) async fn renew(&self, request: &Request) -> Result<(), Error> {
        let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
        let sent = self.client.publish_with_reply(subject, inbox, request.encode());
        sent.await.map_err(Error::closed)?;
        let (room, inbox) = (self.room.clone(), self.inbox.clone());
        // A node that has the place in its queue knows the rest.
        let sent = self.client.publish_with_reply(room, inbox, Bytes::new());
        sent.await.map_err(Error::closed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (client, subject) = (self.client.clone(), self.subject.clone());
        let (inbox, payload) = (self.inbox.clone(), self.cancel.encode());
        self.farewells.spawn(async move {
            if client.publish_with_reply(subject, inbox, payload).await.is_ok() {
                // A client that is dropped forgets what it has not yet written.
                let _ = client.flush().await;
            }
        });
    }
}
