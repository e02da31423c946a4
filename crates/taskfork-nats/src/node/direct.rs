//! A client that wants a direct connection: its token, and the session through NATS that it may take instead.

use async_nats::Subject;
use bytes::Bytes;

use super::relay::{Begun, Invitation, Shared};
use super::usage::SessionUsage;
use crate::direct::{Connection, Offered};
use crate::error::Error;
use crate::wire::{Reason, Refusal, Request, Route};

/// What has become of a place that was promised, while the token was not used.
enum Choice {
    /// The client has begun its session with this message.
    Session(Bytes),
    /// The client does not want it.
    Unwanted,
    /// The token is no longer valid, or the node drains.
    TooLate,
}

impl Shared {
    /// A token for the client, if it wants one and the node offers direct connections. Refuses a client that wants
    /// nothing else; then the outer value is `None`.
    pub(super) async fn offer_direct(
        &self,
        request: &Request,
        reply: &Subject,
        usage: &SessionUsage,
    ) -> Result<Option<Option<Offered>>, Error> {
        if request.route == Route::Relayed {
            return Ok(Some(None));
        }
        let offered = match &self.settings.direct {
            Some(direct) if !request.avoid.iter().any(|address| direct.is_at(address)) => {
                direct.give(request.holder(), usage, &self.reached)?
            }
            _ => None,
        };
        if offered.is_none() && request.route == Route::Direct {
            let text = "it offers no direct connections: use the route `auto` or `relayed`";
            self.refuse(reply.clone(), Refusal::NotDirect, text.into()).await;
            return Ok(None);
        }
        Ok(Some(offered))
    }

    /// Waits until the client connects directly, or takes the session through NATS. `None` if it does neither.
    pub(super) async fn await_choice(
        &mut self,
        mut invitation: Invitation,
        mut offered: Offered,
    ) -> Result<Option<Begun>, String> {
        let first = tokio::select! {
            // A token that was used counts, whatever else the client sends.
            biased;
            used = offered.used() => match used {
                Some(connection) => return Ok(Some(Begun::Direct(connection))),
                None => Choice::TooLate,
            },
            first = invitation.first() => first.map_or(Choice::Unwanted, Choice::Session),
            _ = self.ending.wait_for(|ending| *ending) => Choice::TooLate,
        };
        if let Some(connection) = offered.withdraw() {
            return Ok(Some(Begun::Direct(connection)));
        }
        let first = match first {
            Choice::Session(first) => first,
            Choice::Unwanted => return Ok(None),
            Choice::TooLate => {
                // Without a word, a client that begins its session now would wait for two heartbeats.
                let (reason, text) = match *self.draining.borrow() {
                    true => (Reason::Draining, "the node drains"),
                    false => (Reason::Failed, "the place was kept as long as its token was valid"),
                };
                invitation.cancel(reason, text).await;
                return Ok(None);
            }
        };
        // The session begins first: it sends heartbeats while the server takes its time.
        let request = invitation.request.clone();
        let session = invitation.begin(first);
        // The client is connected with the server only now: usually it does not need that.
        let stream = self.connect(&request).await;
        match stream {
            Ok(stream) => Ok(Some(Begun::Session(session, stream))),
            Err(error) => {
                let text = format!("its server cannot be reached: {error}");
                session.end(Reason::Failed, text.clone());
                Err(text)
            }
        }
    }

    /// Counts a direct connection as a session until it ends, or the node does.
    pub(super) async fn keep(mut self, connection: Connection) {
        tokio::select! {
            () = connection.ended() => {}
            _ = self.ending.wait_for(|ending| *ending) => {}
        }
    }
}
