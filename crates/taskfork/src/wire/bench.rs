//! The codec, for benchmarks to call.

use super::arguments::{FromArguments, IntoArguments};
use super::native::{self, CallMeta, FromClient, FromWorker};
use super::values::{self, ValueFormat};

/// The body of a call's message.
pub fn encode_call(out: &mut Vec<u8>, method: &str, args: impl IntoArguments) -> bool {
    native::put_call(out, Some(method), CallMeta { timeout: Some(1), ..CallMeta::default() });
    args.encode(out).is_ok()
}

/// The arguments of a call's message.
pub fn decode_call<T: FromArguments>(message: &[u8]) -> Option<T> {
    match FromClient::decode(message) {
        Ok(FromClient::Call { args, .. }) => args.parse().ok(),
        _ => None,
    }
}

/// The body of an answer's message.
pub fn encode_answer<T: serde::Serialize>(out: &mut Vec<u8>, value: &T) -> bool {
    native::put_ok(out, Some(1), ValueFormat::MessagePack);
    values::encode(value, out).is_ok()
}

/// The value of an answer's message.
pub fn decode_answer<T: serde::de::DeserializeOwned>(message: &[u8]) -> Option<T> {
    match FromWorker::decode(message) {
        Ok(FromWorker::Ok { value, .. }) => values::decode(value, ValueFormat::MessagePack).ok(),
        _ => None,
    }
}
