//! One session of a client: its first message, and relaying, as for a client of TLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use taskfork::__private::relay::{HelloError, RelayedPeer, refused};
use taskfork_nats::{Accepted, Session};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::connection::LAST_BYTES;
use crate::handshake::{Hello, HelloFailure, read_hello};
use crate::log::{LogLimit, client_event};
use crate::relay::{ClientEnd, ClientStream, End, Relay};

impl ClientStream for Session {
    fn client_end(&self) -> io::Result<ClientEnd> {
        Ok(ClientEnd::new(self.over()))
    }
}

/// Serves one session until it ends. Its client has `handshake_timeout` for its first message.
pub(super) async fn serve(accepted: Accepted, handshake_timeout: Duration, log: Arc<LogLimit>) {
    let (draining, usage) = (accepted.draining(), accepted.usage().clone());
    let Accepted { mut session, stream, caller, .. } = accepted;
    let client = caller.client;
    let peer = RelayedPeer::Nats { name: &client, address: None };
    let mut draining = std::pin::pin!(draining);
    let hello = tokio::select! {
        hello = timeout(handshake_timeout, read_hello(&mut session, Vec::new(), &peer)) => hello,
        () = &mut draining => return,
    };
    let Hello { hello, rest } = match hello {
        Ok(Ok(hello)) => hello,
        Ok(Err(HelloFailure::Gone)) => return,
        Ok(Err(HelloFailure::Wrong(error))) => return refuse(session, &client, &error, &log).await,
        Err(_) => {
            let client = format_args!("{client:?}");
            return client_event!(
                log,
                client,
                "ended a session whose first message did not come in time"
            );
        }
    };
    tracing::debug!(client, "relays a client of NATS");
    let told = usage.clone();
    let mut relay =
        Relay::new(session, stream, hello, &rest).with_usage(move |is_used| told.set_used(is_used));
    let end = tokio::select! {
        end = relay.run(false) => end,
        () = &mut draining => relay.run(true).await,
        () = usage.leaves() => relay.run(true).await,
    };
    tracing::debug!(client, ?end, "a session has ended");
    // Ending a session discards nothing that was sent before.
    if let Ok(Some(session)) = timeout(LAST_BYTES, relay.finish(end)).await
        && end == End::Broken
    {
        session.fail("the node's connection to its server is broken");
    }
}

/// Sends a client its refusal in place of a worker's hello.
async fn refuse(mut session: Session, client: &str, error: &HelloError, log: &LogLimit) {
    let reason = error.to_string();
    client_event!(log, format_args!("{client:?}"), "refused a client of NATS: {reason:?}");
    let sent = async {
        session.write_all(&refused(*error == HelloError::Json, &reason)).await?;
        session.shutdown().await
    };
    // A client that reads nothing learns it from the end of the session.
    let _ = timeout(LAST_BYTES, sent).await;
}
