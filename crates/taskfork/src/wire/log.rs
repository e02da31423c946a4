//! Reading what a worker has logged.

use log_defer::Message;
use serde::Deserialize;

use super::bounds::{self, MOST_LEVELS};

/// A worker's log that is longer than this is not read: small values take many times as much memory
/// as bytes.
const MAX_LOG: usize = 4 << 20;

pub(crate) fn read(encoded: &[u8]) -> Result<Message, String> {
    if encoded.len() > MAX_LOG {
        return Err(format!("it takes {} bytes, and the limit is {MAX_LOG}", encoded.len()));
    }
    bounds::check(encoded, MAX_LOG)?;
    let mut reader = rmp_serde::Deserializer::from_read_ref(encoded);
    reader.set_max_depth(MOST_LEVELS);
    Message::deserialize(&mut reader).map_err(|error| error.to_string())
}
