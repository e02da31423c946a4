//! Calls of any NATS client: a request with a JSON array, a reply with JSON or an error in headers.

use std::collections::VecDeque;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::stream::{SelectAll, Stream};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::connect::check_connected;
use crate::error::Error;
use crate::names::Subjects;
use crate::node::micro::Micro;
use crate::node::{CallHandler, Settings};

/// How long the end of a subscription may take. While NATS is away, it never comes.
pub(super) const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The error of a call, for the headers of its reply.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CallError {
    code: u16,
    text: String,
}

impl CallError {
    /// An error with a code as in HTTP: 4xx if the caller did something wrong, 5xx otherwise. Of the text, 256
    /// bytes are sent.
    pub fn new(code: u16, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// The code.
    pub fn code(&self) -> u16 {
        self.code
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for CallError {}

/// What has come of a call.
struct Answer {
    reply: Subject,
    began: Instant,
    result: Result<Bytes, CallError>,
}

/// A subscription by which NATS delivers one call.
struct Quota {
    subscriber: Subscriber,
    /// The call has not come.
    is_open: bool,
}

impl Stream for Quota {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let polled = self.subscriber.poll_next_unpin(cx);
        if let Poll::Ready(Some(_)) = polled {
            self.is_open = false;
        }
        polled
    }
}

/// What the calls of a node need.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) client: Client,
    pub(super) subjects: Subjects,
    pub(super) settings: Arc<Settings>,
    pub(super) handler: CallHandler,
    pub(super) micro: Arc<Micro>,
}

impl Calls {
    /// Serves calls until the node drains, and then those that run.
    pub(super) async fn serve(self, mut draining: watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        let mut quotas = SelectAll::<Quota>::new();
        let mut answers = VecDeque::new();
        let served = loop {
            // While NATS is away, this can take as long.
            let renewed = tokio::select! {
                renewed = self.renew(&mut quotas, running.len()) => renewed,
                _ = draining.wait_for(|draining| *draining) => break Ok(()),
            };
            // Who has the answer may ask again at once, and must find the node subscribed. While NATS is away, this can take as long
            // too.
            tokio::select! {
                () = self.publish(&mut answers) => {}
                _ = draining.wait_for(|draining| *draining) => break Ok(()),
            }
            if renewed.is_err() {
                break renewed;
            }
            tokio::select! {
                Some(message) = quotas.next() => self.take(message, &mut running),
                Some(answer) = running.join_next() => {
                    // The tasks are not cancelled and do not panic.
                    answers.extend(answer);
                    answers.extend(std::iter::from_fn(|| running.try_join_next()).flatten());
                }
                _ = draining.wait_for(|draining| *draining) => break Ok(()),
            }
        };
        match served {
            Err(error) => tracing::warn!(%error, "calls in JSON have ended"),
            Ok(()) => {
                let leave = self.leave(&mut quotas, &mut running);
                if timeout(LEAVE_TIMEOUT, leave).await.is_err() {
                    tracing::debug!("NATS does not confirm that the node takes no more calls");
                }
            }
        }
        loop {
            self.publish(&mut answers).await;
            let Some(answer) = running.join_next().await else { break };
            answers.extend(answer);
        }
    }

    /// Subscribes once for each call for which there is room beside those that can still come. NATS delivers one call to each
    /// subscription: a node with many calls gets none, and none is lost. NATS chooses among subscriptions, so more calls go to
    /// where there is more room. Ending one earlier could lose a call that NATS is about to deliver to it.
    async fn renew(&self, quotas: &mut SelectAll<Quota>, running: usize) -> Result<(), Error> {
        let left = quotas.iter().filter(|quota| quota.is_open).count();
        let room = self.settings.max_calls.saturating_sub(running + left);
        for _ in 0..room {
            let (subject, group) = (self.subjects.calls(), self.subjects.group());
            let subscribed = self.client.queue_subscribe(subject, group).await;
            let mut subscriber = subscribed.map_err(Error::closed)?;
            subscriber.unsubscribe_after(1).await.map_err(Error::closed)?;
            quotas.push(Quota { subscriber, is_open: true });
        }
        Ok(())
    }

    /// Ends the subscriptions, and takes the calls that come until then.
    async fn leave(&self, quotas: &mut SelectAll<Quota>, running: &mut JoinSet<Answer>) {
        if check_connected(&self.client).is_err() {
            return;
        }
        for quota in quotas.iter_mut() {
            if quota.subscriber.drain().await.is_err() {
                return;
            }
        }
        while let Some(message) = quotas.next().await {
            self.take(message, running);
        }
    }

    fn take(&self, message: Message, running: &mut JoinSet<Answer>) {
        let Some(reply) = message.reply.clone() else {
            tracing::debug!(subject = %message.subject, "a call without a reply subject is ignored");
            return;
        };
        let calls = self.clone();
        running.spawn(async move {
            let began = Instant::now();
            let run = AssertUnwindSafe(calls.run(&message)).catch_unwind().await;
            let result = run.unwrap_or_else(|_| Err(CallError::new(500, "the node has panicked")));
            Answer { reply, began, result }
        });
    }

    /// Sends answers. Those that are not sent remain if this is cancelled.
    async fn publish(&self, answers: &mut VecDeque<Answer>) {
        while let Some(Answer { reply, began, result }) = answers.front() {
            let sent = match result {
                Ok(result) => self.client.publish(reply.clone(), result.clone()).await,
                Err(error) => {
                    let headers = headers(error);
                    self.client.publish_with_headers(reply.clone(), headers, Bytes::new()).await
                }
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "the answer to a call was not sent");
            }
            let error = result.as_ref().err().map(CallError::to_string);
            self.micro.call().count(began.elapsed(), error);
            answers.pop_front();
        }
    }

    async fn run(&self, message: &Message) -> Result<Bytes, CallError> {
        let method = self.subjects.method(&message.subject).unwrap_or_default().to_owned();
        let arguments = check_arguments(&message.payload, self.settings.max_call_size)?;
        let limit = self.settings.call_timeout;
        let result = timeout(limit, (self.handler)(method, arguments)).await;
        let result = result
            .map_err(|_| CallError::new(504, format!("the call took longer than {limit:?}")))??;
        let most = self.client.max_payload();
        if result.len() > most {
            let text = format!(
                "the result has {} bytes, and the NATS server takes {most}: use a session",
                result.len()
            );
            return Err(CallError::new(500, text));
        }
        Ok(result)
    }
}

/// A JSON array of bounded size. No payload stands for no arguments.
fn check_arguments(payload: &Bytes, most: usize) -> Result<Bytes, CallError> {
    if payload.len() > most {
        let text =
            format!("the arguments have {} bytes, and at most {most} are possible", payload.len());
        return Err(CallError::new(413, text));
    }
    if payload.trim_ascii().is_empty() {
        return Ok(Bytes::from_static(b"[]"));
    }
    // The parser stops at 128 levels.
    match serde_json::from_slice::<Vec<serde::de::IgnoredAny>>(payload) {
        Ok(_) => Ok(payload.clone()),
        Err(error) => {
            let text = format!("the arguments must be a JSON array, such as [1, \"two\"]: {error}");
            Err(CallError::new(400, text))
        }
    }
}

fn headers(error: &CallError) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // Without control characters it is a valid header.
    headers.insert("Nats-Service-Error", &*crate::wire::shortened(&error.text));
    headers.insert("Nats-Service-Error-Code", &*error.code.to_string());
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_a_bounded_array() {
        let check = |text: &'static str| check_arguments(&Bytes::from_static(text.as_bytes()), 20);

        assert_eq!(check(r#" [1, "two"] "#).unwrap(), r#" [1, "two"] "#);
        assert_eq!(check(" \n").unwrap(), "[]");
        for wrong in ["{}", "1", "[1", "[1] 2", "null", "[1,]"] {
            assert_eq!(check(wrong).unwrap_err().code(), 400, "{wrong}");
        }
        assert_eq!(check("[1234567890, 1234567890]").unwrap_err().code(), 413);
        let deep = Bytes::from("[".repeat(100_000));
        assert_eq!(check_arguments(&deep, usize::MAX).unwrap_err().code(), 400);
    }

    #[test]
    fn an_error_of_any_text_is_a_valid_header() {
        let error = CallError::new(500, "two\r\nlines: \u{1}é");

        assert_eq!(headers(&error).get("Nats-Service-Error").unwrap().as_str(), "two  lines:  é");
    }
}
