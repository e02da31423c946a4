//! Sessions that are served by a handler instead of the plain relay.

use std::pin::pin;

use tokio::net::UnixStream;
use tokio::sync::watch;

use super::relay::Shared;
use super::usage::SessionUsage;
use super::{Caller, SessionHandler};
use crate::session::Session;
use crate::wire::{End, Reason};

/// A session that a node has accepted, and the connection that its connector has made for it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Accepted {
    /// The session. It ends when it is dropped.
    pub session: Session,
    /// The connection.
    pub stream: UnixStream,
    /// Who has asked for the session.
    pub caller: Caller,
    draining: watch::Receiver<bool>,
    usage: SessionUsage,
}

impl Accepted {
    /// A future that is ready when the node drains: sessions in which nothing happens should end then.
    ///
    /// ```
    /// # fn example(accepted: taskfork_nats::Accepted) {
    /// let draining = accepted.draining();
    /// tokio::spawn(async move {
    ///     draining.await;
    ///     drop(accepted.session);
    /// });
    /// # }
    /// ```
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.draining.clone();
        async move {
            // Without a sender the node has ended.
            let _ = draining.wait_for(|draining| *draining).await;
        }
    }

    /// Where the handler says whether the session is in use, and learns whether it is to leave because clients wait.
    ///
    /// ```
    /// # fn example(accepted: &taskfork_nats::Accepted) {
    /// accepted.usage().set_used(false);
    /// # }
    /// ```
    pub fn usage(&self) -> &SessionUsage {
        &self.usage
    }
}

impl Shared {
    /// Lets the handler serve the session, until it is done or the node ends.
    pub(super) async fn hand_over(
        mut self,
        handler: SessionHandler,
        session: Session,
        stream: UnixStream,
        client: String,
        usage: SessionUsage,
    ) {
        let ender = session.ender();
        let caller = Caller { client };
        let accepted = Accepted { session, stream, caller, draining: self.draining.clone(), usage };
        let mut serving = pin!(handler(accepted));
        tokio::select! {
            () = &mut serving => {}
            // The reason comes first: when the handler is dropped, its session has ended.
            _ = self.ending.wait_for(|ending| *ending) => {
                ender.end(End { reason: Reason::Draining, text: String::new() });
            }
        }
    }
}
