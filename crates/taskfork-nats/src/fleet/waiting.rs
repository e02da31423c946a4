//! A client's place in the queues of nodes without room.

use async_nats::Client;
use tokio::runtime::Handle;

use crate::error::Error;
use crate::names::Subjects;
use crate::wire::Request;

/// A place in the queues. Dropping it gives it up.
pub(super) struct Place {
    client: Client,
    subject: String,
    inbox: String,
    /// What gives the place up.
    cancel: Request,
}

impl Place {
    pub(super) fn new(client: &Client, subjects: &Subjects, inbox: &str, request: Request) -> Self {
        Self {
            client: client.clone(),
            subject: subjects.wait(),
            inbox: inbox.into(),
            cancel: Request { cancel: true, ..request },
        }
    }

    /// Takes the place, or keeps it. Nodes forget a place that is not renewed.
    pub(super) async fn renew(&self, request: &Request) -> Result<(), Error> {
        let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
        let sent = self.client.publish_with_reply(subject, inbox, request.encode());
        sent.await.map_err(Error::closed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Without a runtime the nodes forget the place by themselves.
        if let Ok(runtime) = Handle::try_current() {
            let (client, subject) = (self.client.clone(), self.subject.clone());
            let (inbox, payload) = (self.inbox.clone(), self.cancel.encode());
            runtime.spawn(async move {
                if client.publish_with_reply(subject, inbox, payload).await.is_ok() {
                    // A client that is dropped forgets what it has not yet written.
                    let _ = client.flush().await;
                }
            });
        }
    }
}
