//! The task of a session: heartbeats, and what comes while its user does not poll.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::Instant;

use super::shared::{Next, Shared};

/// Runs until the session is over and the other side has been told.
pub(super) async fn drive(shared: Arc<Shared>) {
    let mut timer = pin!(tokio::time::sleep_until(Instant::now()));
    poll_fn(|cx| {
        loop {
            match shared.advance(cx) {
                Next::Over => return Poll::Ready(()),
                Next::At(time) => timer.as_mut().reset(time.into()),
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
    // A NATS client that is dropped forgets what it has not yet written, and this may be the last one.
    shared.flush().await;
}
