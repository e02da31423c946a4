//! The request for a session, and what both sides offer each other.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::json::{decode_json, encode_json};
use super::{
    HEADER, HEARTBEATS, MAX_AVOIDED, MAX_PIECE, MAX_WINDOW, MIN_PIECE, MIN_WINDOW, VERSION,
    shortened,
};

/// A client's request for a session, or for a place in the queue of nodes without room.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Request {
    pub(crate) version: u32,
    /// The client's name, for logs.
    #[serde(default)]
    pub(crate) client: String,
    pub(crate) offer: Offer,
    /// Distinguishes holders of sessions with the same name. 0 if unknown.
    #[serde(default)]
    pub(crate) number: u32,
    /// How many sessions the holder has.
    #[serde(default)]
    pub(crate) sessions: u32,
    /// What a node must have. Only for a place in the queue: otherwise the subject says it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) labels: Vec<String>,
    /// For how long the client has waited, in milliseconds.
    #[serde(default)]
    pub(crate) waited_ms: u64,
    /// The client no longer wants its place in the queue.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) cancel: bool,
    /// Which way the client wants its bytes to take.
    #[serde(default, skip_serializing_if = "Route::is_relayed")]
    pub(crate) route: Route,
    /// Addresses where the client wants no direct connection, because it could not make one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) avoid: Vec<String>,
}

/// Which way the bytes between a client and a node take.
///
/// ```
/// use taskfork_nats::Route;
///
/// assert_eq!(Route::default(), Route::Relayed);
/// ```
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// A direct connection if the node offers one, or else through NATS.
    Auto,
    /// A direct connection. Nodes that do not offer one refuse the client.
    Direct,
    /// Through NATS.
    #[default]
    #[serde(other)]
    Relayed,
}

impl Route {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    fn is_relayed(&self) -> bool {
        *self == Self::Relayed
    }
}

/// What one side of a session receives and how often it wants to hear from the other.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Offer {
    /// How much may be unread, in bytes of credit.
    pub(crate) window: u32,
    /// The longest piece, in bytes.
    pub(crate) piece: u32,
    /// The interval of heartbeats, in milliseconds.
    pub(crate) heartbeat_ms: u32,
}

impl Offer {
    /// What this side offers, within the limits of the protocol.
    pub(crate) fn new(window: u32, max_payload: usize, heartbeat: Duration) -> Self {
        let window = window.clamp(MIN_WINDOW, MAX_WINDOW);
        let piece = max_payload.saturating_sub(HEADER).min(MAX_PIECE).min(window as usize / 4);
        let heartbeat = heartbeat.clamp(*HEARTBEATS.start(), *HEARTBEATS.end());
        Self { window, piece: piece as u32, heartbeat_ms: heartbeat.as_millis() as u32 }
    }

    /// Whether a peer may offer this.
    pub(crate) fn check(self) -> Result<Self, String> {
        let heartbeat = Duration::from_millis(u64::from(self.heartbeat_ms));
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&self.window) {
            return Err(format!(
                "the window is {} bytes, not {MIN_WINDOW} to {MAX_WINDOW}",
                self.window
            ));
        }
        if self.piece < MIN_PIECE {
            return Err(format!(
                "the longest piece is {} bytes, and must be at least {MIN_PIECE}",
                self.piece
            ));
        }
        if !HEARTBEATS.contains(&heartbeat) {
            return Err(format!(
                "the interval of heartbeats is {heartbeat:?}, not {:?} to {:?}",
                HEARTBEATS.start(),
                HEARTBEATS.end()
            ));
        }
        Ok(self)
    }
}

impl Request {
    /// Reads a request. `Err` has the reason for the client.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let request: Self = decode_json(payload)?;
        if request.version != VERSION {
            return Err(format!(
                "the client speaks version {} of sessions over NATS, this node version {VERSION}: \
                 use the same release of taskfork on both sides",
                request.version
            ));
        }
        request.offer.check()?;
        if request.avoid.len() > MAX_AVOIDED {
            return Err(format!("it excludes more than {MAX_AVOIDED} addresses"));
        }
        Ok(Self { client: shortened(&request.client), ..request })
    }

    pub(crate) fn encode(&self) -> Bytes {
        encode_json(self)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{MIN_PAYLOAD, PIECE_COST};
    use super::*;

    proptest! {
        #[test]
        fn an_offer_within_the_limits_is_always_accepted(window: u32, payload in MIN_PAYLOAD.., beat: u32) {
            let offer = Offer::new(window, payload, Duration::from_millis(beat.into()));

            prop_assert_eq!(offer.check(), Ok(offer));
            prop_assert!(offer.piece as usize + HEADER <= payload);
            prop_assert!(2 * (u64::from(offer.piece) + PIECE_COST) <= u64::from(offer.window));
        }
    }

    #[test]
    fn a_request_without_a_route_or_with_an_unknown_one_is_relayed() {
        let request = |route: &str| {
            let offer = r#"{"window":65536,"piece":1000,"heartbeat_ms":100}"#;
            let json = format!(r#"{{"version":1,"offer":{offer}{route}}}"#);
            Request::decode(json.as_bytes()).map(|request| request.route)
        };
        assert_eq!(request(""), Ok(Route::Relayed));
        assert_eq!(request(r#","route":"pigeon""#), Ok(Route::Relayed));
        assert_eq!(request(r#","route":"auto""#), Ok(Route::Auto));
        assert_eq!(request(r#","route":"direct""#), Ok(Route::Direct));
        assert!(request(r#","route":7"#).is_err());
    }
}
