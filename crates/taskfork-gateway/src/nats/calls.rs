//! Calls of any NATS client: JSON in, JSON out, through a client of the server.

use std::time::Duration;

use bytes::Bytes;
use taskfork::__private::relay::RelayedPeer;
use taskfork::client::Value;
use taskfork::error::{CallError, FatalError};
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
        Error::Fatal { cause, .. } => fatal_code(cause, error.may_have_run()),
        _ => 500,
    }
}

/// The code for the end of a checkout. The stage of a timeout is not asked: a call that is made again waits for a worker, and may
/// have run on the one before.
fn fatal_code(cause: &FatalError, may_have_run: bool) -> u16 {
    match cause {
        FatalError::TimedOut { .. } if may_have_run => 504,
        FatalError::WorkerDied(_) | FatalError::Protocol { .. } => 502,
        // Callers may make a call again that has not run.
        _ if may_have_run => 502,
        _ => 503,
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

#[cfg(test)]
mod tests {
    use taskfork::error::{Stage, TimeoutOption};

    use super::*;

    #[test]
    fn only_a_call_that_has_not_run_may_be_made_again() {
        let (after, limit) = (Duration::from_secs(1), TimeoutOption::Timeout);
        for stage in [Stage::Waiting, Stage::Setup, Stage::Running] {
            let cause = FatalError::TimedOut { after, limit, stage, hung: None };
            assert_eq!((fatal_code(&cause, true), fatal_code(&cause, false)), (504, 503));
        }
        let ended = FatalError::ServerShutDown { pid: 1, handle_dropped: false };
        assert_eq!((fatal_code(&ended, true), fatal_code(&ended, false)), (502, 503));
    }
}
