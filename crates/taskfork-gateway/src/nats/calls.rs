//! Calls of any NATS client: JSON in, JSON out, through a client of the server.

use std::time::Duration;

use bytes::Bytes;
use taskfork::__private::relay::RelayedPeer;
use taskfork::client::Value;
use taskfork::error::{CallError, FatalError, Stage};
use taskfork::{Client, Error};

use super::json;

/// The most characters of an error that are told.
const MAX_TEXT: usize = 256;

/// Whom the server sees for all of these calls. Who has sent them is not known.
pub(super) fn peer() -> RelayedPeer<'static> {
    RelayedPeer::Nats { name: "calls in JSON", address: None }
}

/// Makes calls.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    client: Client,
    timeout: Duration,
}

impl Calls {
    pub(super) fn new(client: Client, timeout: Duration) -> Self {
        Self { client, timeout }
    }

    /// Calls a method. `arguments` is a JSON array. Dropping the future cancels the call.
    pub(super) async fn call(
        self,
        method: String,
        arguments: Bytes,
    ) -> Result<Bytes, taskfork_nats::CallError> {
        let values: Vec<Value> = serde_json::from_slice(&arguments)
            .map_err(|error| failed(400, format!("the arguments are no JSON array: {error}")))?;
        // Both forms are gone while the call runs. As values they occupy far more memory than as JSON.
        drop(arguments);
        let checkout = self.client.checkout().timeout(self.timeout);
        let call = checkout.call::<Value>(&method, values);
        drop(checkout);
        let value = call.await.map_err(|error| failed(code(&error), text(&error)))?;
        let json = json::of(&value).map_err(|what| failed(500, format!("the result {what}")))?;
        Ok(json.to_string().into())
    }
}

fn failed(code: u16, text: String) -> taskfork_nats::CallError {
    taskfork_nats::CallError::new(code, text)
}

/// The code for an error, as in HTTP. PROTOCOL.md lists them.
fn code(error: &Error) -> u16 {
    match error {
        Error::Call { error: CallError::Arguments { .. }, .. } => 400,
        Error::Call { error: CallError::UnknownMethod { .. }, .. } => 404,
        Error::Fatal { cause, .. } => match cause {
            FatalError::TimedOut { stage: Stage::Running, .. } => 504,
            FatalError::WorkerDied(_) | FatalError::Protocol { .. } => 502,
            _ => 503,
        },
        _ => 500,
    }
}

/// One line about an error, of bounded length.
fn text(error: &Error) -> String {
    let text = match error {
        Error::Call { error, .. } => error.to_string(),
        Error::Fatal { cause, .. } => cause.to_string(),
        _ => error.to_string(),
    };
    text.chars().take(MAX_TEXT).collect()
}
