//! A node's reply to a request: the session, a refusal, or the place for a direct connection.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::json::{decode_json, encode_json};
use super::request::Offer;
use super::{MAX_ADDRESS, TOKEN_TIMES, shortened};
use crate::token;

/// A node's reply to a [`Request`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The session exists. The client sends to `subject`; the node sends to the reply subject of the
    /// request, once it has heard from the client.
    ///
    /// With `direct`, the client may connect there instead, for as long as its token is valid.
    Accept {
        node: String,
        subject: String,
        offer: Offer,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        direct: Option<Direct>,
    },
    /// There is no session.
    Refuse { node: String, why: Refusal, text: String },
}

/// Where a client may connect without NATS, once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Direct {
    /// `HOST:PORT`, where TLS is spoken.
    pub(crate) address: String,
    /// The SHA-256 of the only certificate to trust there, in hexadecimal digits.
    pub(crate) certificate: String,
    /// 128 bits that admit one connection, in hexadecimal digits.
    pub(crate) token: String,
    /// How long they do so, in milliseconds.
    pub(crate) valid_ms: u32,
}

/// Why a node refuses a session.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    /// The node has become full; another one may have room.
    Full,
    /// The node did not understand the request.
    Request,
    /// The node could not reach its server.
    Connect,
    /// The client wants a direct connection, and the node offers none.
    NotDirect,
    /// A kind of refusal that this version does not know.
    #[serde(other)]
    Other,
}

impl Reply {
    /// Whether a message is a reply, and not one of a session that has begun.
    pub(crate) fn recognize(payload: &[u8]) -> bool {
        payload.first() == Some(&b'{')
    }

    /// Reads a reply. `Err` says what is wrong with it.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let reply: Self = decode_json(payload)?;
        if let Self::Accept { offer, subject, direct, .. } = &reply {
            offer.check()?;
            direct.as_ref().map_or(Ok(()), Direct::check)?;
            if subject.is_empty()
                || subject.len() > 256
                || subject.bytes().any(|byte| byte <= b' ' || matches!(byte, b'*' | b'>'))
            {
                return Err("its subject is not one that can be sent to".into());
            }
        }
        Ok(match reply {
            Self::Accept { node, subject, offer, direct } => {
                Self::Accept { node: shortened(&node), subject, offer, direct }
            }
            Self::Refuse { node, why, text } => {
                Self::Refuse { node: shortened(&node), why, text: shortened(&text) }
            }
        })
    }

    pub(crate) fn encode(&self) -> Bytes {
        encode_json(self)
    }
}

impl Direct {
    /// Whether a client may connect there.
    fn check(&self) -> Result<(), String> {
        check_address(&self.address)?;
        let valid = Duration::from_millis(self.valid_ms.into());
        if !TOKEN_TIMES.contains(&valid) {
            return Err(format!(
                "a token is valid for {valid:?}, not {:?} to {:?}",
                TOKEN_TIMES.start(),
                TOKEN_TIMES.end()
            ));
        }
        match (self.fingerprint(), self.token()) {
            (Some(_), Some(_)) => Ok(()),
            (None, _) => Err("its fingerprint has not 64 hexadecimal digits".into()),
            (_, None) => Err("its token has not 32 hexadecimal digits".into()),
        }
    }

    pub(crate) fn fingerprint(&self) -> Option<[u8; 32]> {
        token::from_hex(&self.certificate)
    }

    pub(crate) fn token(&self) -> Option<[u8; 16]> {
        token::from_hex(&self.token)
    }
}

/// Whether a text is an address to connect to. `Err` says why not.
pub(crate) fn check_address(address: &str) -> Result<(), String> {
    if address.len() > MAX_ADDRESS {
        return Err(format!("it has more than {MAX_ADDRESS} bytes"));
    }
    let (host, port) = address.rsplit_once(':').ok_or("it has no port")?;
    if !matches!(port.parse::<u16>(), Ok(1..)) {
        return Err("its port is not 1 to 65535".into());
    }
    // A colon in an IPv6 address needs brackets, as anywhere else.
    let inner = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or("its host has half a pair of brackets")?,
        None if host.contains(':') => return Err("its host has a colon and no brackets".into()),
        None => host,
    };
    if inner.is_empty() {
        return Err("it has no host".into());
    }
    if !inner.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':')) {
        return Err("its host is neither a name nor an address".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{MIN_PAYLOAD, MIN_WINDOW};
    use super::*;

    #[test]
    fn a_refusal_of_a_later_version_is_still_a_refusal() {
        let reply = br#"{"refuse":{"node":"a","why":"weather","text":"rain","more":1}}"#;

        let reply = Reply::decode(reply);

        let expected = Reply::Refuse { node: "a".into(), why: Refusal::Other, text: "rain".into() };
        assert_eq!(reply, Ok(expected));
    }

    #[test]
    fn a_subject_with_wildcards_is_not_sent_to() {
        let offer = Offer::new(MIN_WINDOW, MIN_PAYLOAD, Duration::from_secs(2));
        for subject in ["", "a.*", ">", "a b", "a\r\nPUB x 0"] {
            let (node, subject) = ("a".into(), subject.to_owned());
            let reply = Reply::Accept { node, subject, offer, direct: None };

            assert!(Reply::decode(&reply.encode()).is_err(), "{reply:?}");
        }
    }

    fn direct() -> Direct {
        Direct {
            address: "node.example:7000".into(),
            certificate: "0123456789abcdef".repeat(4),
            token: "0123456789ABCDEF".repeat(2),
            valid_ms: 10_000,
        }
    }

    fn accept(direct: Direct) -> Reply {
        let offer = Offer::new(MIN_WINDOW, MIN_PAYLOAD, Duration::from_secs(2));
        Reply::Accept { node: "a".into(), subject: "s".into(), offer, direct: Some(direct) }
    }

    #[test]
    fn a_direct_connection_that_cannot_be_is_refused() {
        type Change = fn(&mut Direct);
        let right = accept(direct());
        assert_eq!(Reply::decode(&right.encode()), Ok(right));
        let wrong: [(Change, &str); 9] = [
            (|direct| direct.address = "node.example".into(), "no port"),
            (|direct| direct.address = "node.example:0".into(), "port is not"),
            (|direct| direct.address = ":7000".into(), "no host"),
            (|direct| direct.address = "a\nb:7000".into(), "neither a name"),
            (|direct| direct.address = format!("{}:7", "a".repeat(300)), "more than 260 bytes"),
            (|direct| direct.certificate.truncate(63), "fingerprint"),
            (|direct| direct.token.replace_range(..1, "+"), "token"),
            (|direct| direct.valid_ms = 0, "valid for"),
            (|direct| direct.valid_ms = u32::MAX, "valid for"),
        ];
        for (change, expected) in wrong {
            let mut direct = direct();
            change(&mut direct);
            let error = Reply::decode(&accept(direct).encode()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_takes_as_an_address_can_be_connected_to(address in "[a-z0-9:.\\[\\] -]{0,20}") {
            if check_address(&address).is_ok() {
                let (host, port) = address.rsplit_once(':').unwrap();
                prop_assert!(!host.is_empty() && port.parse::<u16>().unwrap() > 0);
                prop_assert!(!address.contains(' '));
            }
        }
    }
}
