//! Messages in JSON.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Requests and replies have far fewer bytes; a parser gets no more.
const MAX_JSON: usize = 4096;

pub(super) fn decode_json<T: for<'de> Deserialize<'de>>(payload: &[u8]) -> Result<T, String> {
    if payload.len() > MAX_JSON {
        return Err(format!("it has {} bytes, more than {MAX_JSON}", payload.len()));
    }
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}

pub(super) fn encode_json(value: &impl Serialize) -> Bytes {
    // These types have no map with keys that JSON lacks, and no float: serializing them cannot fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}
