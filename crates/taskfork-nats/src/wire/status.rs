//! The question for the status of a node, and how long its answer may be.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::json::{decode_json, encode_json};

/// A question for the status of a node. No payload stands for a short one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusRequest {
    /// Whether the answer may be long.
    #[serde(default)]
    pub(crate) full: bool,
}

impl StatusRequest {
    pub(crate) fn encode(self) -> Bytes {
        encode_json(&self)
    }

    /// Anything that is no such question asks for a short answer.
    pub(crate) fn decode(payload: &[u8]) -> Self {
        decode_json(payload).unwrap_or_default()
    }
}

/// How much of a status's message is not the details.
pub(crate) const STATUS_ENVELOPE: usize = 1024;

/// How long the details of a status may be.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Bounds {
    /// Whether all details are wanted, or only a summary.
    pub full: bool,
    /// The most bytes of the details as JSON.
    pub most: usize,
}
