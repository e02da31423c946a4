//! Encoding and decoding of calls and answers, for benchmarks.

use super::arguments::{FromArguments, IntoArguments};
use super::native::{self, CallMeta, FromClient, FromWorker};
use super::values::{self, ValueFormat};

/// Encodes a call.
pub fn encode_call(out: &mut Vec<u8>, method: &str, args: impl IntoArguments) -> bool {
    native::put_call(out, Some(method), CallMeta { timeout: Some(1), ..CallMeta::default() });
    args.encode(out).is_ok()
}

/// Decodes the arguments of a call.
pub fn decode_call<T: FromArguments>(message: &[u8]) -> Option<T> {
    match FromClient::decode(message) {
        Ok(FromClient::Call { args, .. }) => args.parse().ok(),
        _ => None,
    }
}

/// Encodes an answer.
pub fn encode_answer<T: serde::Serialize>(out: &mut Vec<u8>, value: &T) -> bool {
    native::put_ok(out, Some(1), ValueFormat::MessagePack);
    values::encode(value, out).is_ok()
}

/// Decodes the value of an answer.
pub fn decode_answer<T: serde::de::DeserializeOwned>(message: &[u8]) -> Option<T> {
    match FromWorker::decode(message) {
        Ok(FromWorker::Ok { value, .. }) => values::decode(value, ValueFormat::MessagePack).ok(),
        _ => None,
    }
}
