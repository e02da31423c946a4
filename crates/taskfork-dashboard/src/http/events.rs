//! The stream of server-sent events for an open page.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::state::State;

/// How long a stream lasts. The page then connects again.
const LONGEST: Duration = Duration::from_secs(3600);

/// The events of one page: everything, and then what changes. A page that has missed something gets everything again.
pub(super) struct Events(mpsc::Receiver<Arc<str>>);

impl Events {
    /// `None` if too many pages are open.
    pub(super) fn start(state: Arc<State>) -> Option<Self> {
        let place = Arc::clone(&state.streams).try_acquire_owned().ok()?;
        // The task waits until the page has read the event before.
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let _ = timeout(LONGEST, send(state, sender)).await;
            drop(place);
        });
        Some(Self(receiver))
    }
}

async fn send(state: Arc<State>, sender: mpsc::Sender<Arc<str>>) {
    loop {
        let Some((full, mut updates)) = state.subscribe() else { return };
        if sender.send(full).await.is_err() {
            return;
        }
        loop {
            let update = tokio::select! {
                update = updates.recv() => update,
                () = sender.closed() => return,
            };
            match update {
                Ok(text) if sender.send(Arc::clone(&text)).await.is_ok() => {}
                Err(RecvError::Lagged(_)) => break,
                Ok(_) | Err(RecvError::Closed) => return,
            }
        }
    }
}

/// The text of an event, which all pages share.
struct Shared(Arc<str>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Stream for Events {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|text| text.map(|text| Ok(Bytes::from_owner(Shared(text)))))
    }
}
