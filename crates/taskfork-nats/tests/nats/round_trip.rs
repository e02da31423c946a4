//! A round trip to a NATS server. `flush` of a client only writes.

use futures_util::StreamExt;
use taskfork_nats::async_nats::Client;

/// Waits until the NATS server has handled what this client has sent before, such as a subscription.
pub(crate) async fn round_trip(client: &Client) {
    // No inbox: some tests listen at all of them.
    let subject = client.new_inbox().replace("_INBOX", "round-trip");
    let mut back = client.subscribe(subject.clone()).await.unwrap();
    client.publish(subject, "".into()).await.unwrap();
    back.next().await.unwrap();
}
