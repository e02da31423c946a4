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
    /// What happened lately, instead of everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) recent: Option<Recent>,
}

/// Which of the things that happened lately a status is to have. What the numbers mean is for the handler to say.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recent {
    /// Only those after this one.
    #[serde(default)]
    pub after: u64,
    /// What is to be looked at more closely.
    #[serde(default)]
    pub sample: Option<u64>,
}

impl Recent {
    /// What happened after `after`, and what `sample` does now.
    ///
    /// ```
    /// let recent = taskfork_nats::Recent::new(7, None);
    /// assert_eq!(recent.after, 7);
    /// ```
    pub fn new(after: u64, sample: Option<u64>) -> Self {
        Self { after, sample }
    }
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
    /// What happened lately is wanted, and nothing else. Only one node is asked for that.
    pub recent: Option<Recent>,
    /// The most bytes of the details as JSON.
    pub most: usize,
}
