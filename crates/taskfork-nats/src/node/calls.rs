//! Calls of any NATS client: a request with a JSON array, a reply with JSON or an error in headers.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
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
        while !*draining.borrow_and_update() {
            let room = self.settings.max_calls - running.len();
            if room == 0 {
                running.join_next().await;
                continue;
            }
            // While NATS is away, this can take as long.
            let subscribed = tokio::select! {
                subscribed = self.subscribe(room) => subscribed,
                _ = draining.wait_for(|draining| *draining) => break,
            };
            let mut subscriber = match subscribed {
                Ok(subscriber) => subscriber,
                Err(error) => {
                    tracing::warn!(%error, "calls in JSON have ended");
                    return;
                }
            };
            // NATS delivers as many calls as there is room. So a node with many calls gets no more, and none is
            // lost. Then the subscription ends.
            let drains = loop {
                tokio::select! {
                    message = subscriber.next() => match message {
                        Some(message) => { running.spawn(self.clone().answer(message)); }
                        None => break false,
                    },
                    Some(_) = running.join_next() => {}
                    _ = draining.wait_for(|draining| *draining) => break true,
                }
            };
            if drains {
                let leave = self.leave(&mut subscriber, &mut running);
                if timeout(LEAVE_TIMEOUT, leave).await.is_err() {
                    tracing::debug!("NATS does not confirm that the node takes no more calls");
                }
            }
        }
        while running.join_next().await.is_some() {}
    }

    /// Ends a subscription, and answers the calls that come until then.
    async fn leave(&self, subscriber: &mut Subscriber, running: &mut JoinSet<()>) {
        if check_connected(&self.client).is_err() || subscriber.drain().await.is_err() {
            return;
        }
        while let Some(message) = subscriber.next().await {
            running.spawn(self.clone().answer(message));
        }
    }

    async fn subscribe(&self, room: usize) -> Result<Subscriber, Error> {
        let (subject, group) = (self.subjects.calls(), self.subjects.group());
        let subscribed = self.client.queue_subscribe(subject, group).await;
        let mut subscriber = subscribed.map_err(Error::closed)?;
        subscriber.unsubscribe_after(room as u64).await.map_err(Error::closed)?;
        Ok(subscriber)
    }

    async fn answer(self, message: Message) {
        let began = Instant::now();
        let Some(reply) = message.reply.clone() else {
            tracing::debug!(subject = %message.subject, "a call without a reply subject is ignored");
            return;
        };
        let result = self.run(&message).await;
        let error = result.as_ref().err().map(CallError::to_string);
        let sent = match result {
            Ok(result) => self.client.publish(reply, result).await,
            Err(error) => {
                let headers = headers(&error);
                self.client.publish_with_headers(reply, headers, Bytes::new()).await
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "the answer to a call was not sent");
        }
        self.micro.call().count(began.elapsed(), error);
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
