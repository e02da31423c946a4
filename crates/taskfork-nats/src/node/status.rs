//! The status of a node, for those who ask at its subject.

use async_nats::Subject;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use super::StatusHandler;
use super::relay::Shared;
use crate::wire::{Bounds, STATUS_ENVELOPE, StatusRequest};

/// How many questions are answered at a time. More are not answered.
pub(super) const MAX_ANSWERS: usize = 8;

/// What a node says of itself.
#[derive(Debug, Serialize)]
pub(super) struct Own {
    pub(super) node: String,
    pub(super) id: String,
    pub(super) version: String,
    pub(super) labels: Vec<String>,
    pub(super) sessions: usize,
    pub(super) free: usize,
    pub(super) draining: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    own: &'a Own,
    details: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Shared {
    /// Answers one question.
    pub(super) async fn answer_status(
        self,
        handler: Option<StatusHandler>,
        own: Own,
        request: StatusRequest,
        reply: Subject,
    ) {
        let most = self.client.max_payload().saturating_sub(STATUS_ENVELOPE);
        let details = match handler {
            None => Ok(Value::Null),
            Some(handler) => {
                let limit = self.settings.call_timeout;
                let StatusRequest { full, recent } = request;
                let details = timeout(limit, handler(Bounds { full, recent, most })).await;
                details.unwrap_or_else(|_| Err(format!("it took longer than {limit:?}")))
            }
        };
        let (details, error) = match details {
            Ok(details) => (details, None),
            Err(error) => (Value::Null, Some(crate::wire::shortened(&error))),
        };
        let mut answer = json(&Answer { own: &own, details: &details, error });
        if answer.len() > self.client.max_payload() {
            let error = Some("its status is longer than a message can be".to_owned());
            answer = json(&Answer { own: &own, details: &Value::Null, error });
        }
        if let Err(error) = self.client.publish(reply, answer).await {
            tracing::debug!(%error, "a status was not sent");
        }
    }
}

fn json(answer: &Answer<'_>) -> Bytes {
    // All keys are strings: serializing it cannot fail.
    serde_json::to_vec(answer).unwrap_or_default().into()
}
