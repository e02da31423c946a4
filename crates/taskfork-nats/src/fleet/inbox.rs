//! Why nothing is answered: NATS does not say to a request that its user may not send it, or may not get the answer.

use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::error::Error;
use crate::token;

/// How long a message may take.
pub(super) const WAIT: Duration = Duration::from_secs(1);

/// Makes sure that what is sent to an inbox arrives there. Takes at most a second.
pub(super) async fn check(client: &Client) -> Result<(), Error> {
    let inbox = token::inbox(client)?;
    let mut messages = client.subscribe(inbox.clone()).await.map_err(Error::closed)?;
    client.publish(inbox.clone(), Bytes::new()).await.map_err(Error::closed)?;
    if let Ok(Some(_)) = timeout(WAIT, messages.next()).await {
        return Ok(());
    }
    let prefix = inbox.rsplit_once('.').map_or("_INBOX", |(prefix, _)| prefix);
    Err(Error::NoInbox { subject: format!("{prefix}.>") })
}

/// Whether there is an answer of somebody at this subject, or NATS says that nobody is there. Takes at most a second.
pub(super) async fn has_answer(client: &Client, subject: String) -> Result<bool, Error> {
    let inbox = token::inbox(client)?;
    let mut messages = client.subscribe(inbox.clone()).await.map_err(Error::closed)?;
    let sent = client.publish_with_reply(subject, inbox, Bytes::new());
    sent.await.map_err(Error::closed)?;
    Ok(matches!(timeout(WAIT, messages.next()).await, Ok(Some(_))))
}
