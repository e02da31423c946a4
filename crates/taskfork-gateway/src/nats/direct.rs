//! Direct connections of a service's clients: where they come, and the tokens that they show.

use std::net::SocketAddr;

use taskfork::__private::relay;
use taskfork_nats::{Admission, Direct, Token};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::GatewayError;

/// Whether a node offers direct connections.
#[derive(Debug, Clone, Default)]
pub(crate) enum Offer {
    /// If the gateway listens at an address that clients can use, and wants no certificates of clients. Most clients of
    /// NATS have none, and would learn only behind the handshake that they need one.
    #[default]
    Automatic,
    At(String),
    Off,
}

impl Offer {
    /// Where clients of the node connect, if the gateway listens at `listener`.
    pub(crate) fn direct(
        &self,
        listener: Option<SocketAddr>,
        wants_certificates: bool,
    ) -> Result<Option<Direct>, GatewayError> {
        let address = match (self, listener) {
            (Self::Off, _) => return Ok(None),
            (Self::At(_), None) => {
                return Err(GatewayError::Option {
                    option: "direct",
                    reason: "without `tls` the gateway listens nowhere",
                });
            }
            (Self::At(address), Some(_)) => address.clone(),
            (Self::Automatic, Some(address))
                if !address.ip().is_unspecified() && !wants_certificates =>
            {
                address.to_string()
            }
            (Self::Automatic, _) => return Ok(None),
        };
        Ok(Some(Direct::new(address)?))
    }
}

/// Why a client with a token is not admitted.
#[derive(Debug)]
pub(crate) enum NotAdmitted {
    /// The client has gone.
    Gone,
    /// The token was never given, was used, or is too old.
    Invalid,
}

impl NotAdmitted {
    /// What the client and the log are told. `None` if the client has gone.
    pub(crate) fn refusal(&self) -> Option<(Vec<u8>, String)> {
        let reason = match self {
            Self::Gone => return None,
            Self::Invalid => {
                "the token of this direct connection was used or is no longer valid: ask for another"
            }
        };
        Some((relay::busy(reason), reason.to_owned()))
    }
}

/// Takes a token off the beginning of a connection. `None` if the connection has none. What else has come is left in
/// `received`.
pub(crate) async fn admit(
    direct: &Direct,
    stream: &mut (impl AsyncRead + Unpin),
    received: &mut Vec<u8>,
) -> Result<Option<Admission>, NotAdmitted> {
    while received.is_empty() || Token::begins(received) && received.len() < Token::PREAMBLE {
        received.reserve(1024);
        match stream.read_buf(received).await {
            Ok(0) | Err(_) => return Err(NotAdmitted::Gone),
            Ok(_) => {}
        }
    }
    let Some(token) = Token::read(received) else { return Ok(None) };
    received.drain(..Token::PREAMBLE);
    direct.admit(token).map(Some).ok_or(NotAdmitted::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_at_all_addresses_is_not_offered_by_itself() {
        let offers = |offer: &Offer, listener: Option<&str>| {
            let listener = listener.map(|address| address.parse().unwrap());
            offer
                .direct(listener, false)
                .map(|direct| direct.is_some())
                .map_err(|error| error.to_string())
        };
        let at = Offer::At("node.example:7000".into());
        assert_eq!(offers(&Offer::Automatic, Some("10.0.0.1:7000")), Ok(true));
        for listener in [Some("0.0.0.0:7000"), Some("[::]:7000"), None] {
            assert_eq!(offers(&Offer::Automatic, listener), Ok(false));
        }
        assert_eq!(offers(&at, Some("0.0.0.0:7000")), Ok(true));
        assert_eq!(offers(&Offer::Off, Some("10.0.0.1:7000")), Ok(false));
        assert!(offers(&at, None).unwrap_err().contains("without `tls`"));
        let wrong = offers(&Offer::At("node".into()), Some("0.0.0.0:7000")).unwrap_err();
        assert!(wrong.contains("HOST:PORT"), "{wrong}");
    }

    #[test]
    fn where_certificates_are_wanted_only_a_stated_address_is_offered() {
        let listener = Some("10.0.0.1:7000".parse().unwrap());
        assert!(Offer::Automatic.direct(listener, true).unwrap().is_none());
        let at = Offer::At("node.example:7000".into());
        assert!(at.direct(listener, true).unwrap().is_some());
    }

    #[tokio::test]
    async fn what_comes_behind_a_token_and_without_one_stays() {
        let direct = Direct::new("node.example:7000").unwrap();
        for (sent, is_refused) in [
            (&b"taskfork and more"[..], false),
            (b"tf", false),
            (b"tf-token0123456789abcdefmore", true),
        ] {
            let mut received = Vec::new();
            // One byte at a time.
            let mut stream = slow_stream(sent);
            let admitted = admit(&direct, &mut stream, &mut received).await;
            match admitted {
                Ok(admission) => assert!(admission.is_none() && sent.starts_with(&received)),
                Err(NotAdmitted::Gone) => assert_eq!(sent, b"tf"),
                Err(NotAdmitted::Invalid) => assert!(is_refused && received.len() <= 4),
            }
        }
    }

    fn slow_stream(sent: &'static [u8]) -> impl AsyncRead + Unpin {
        let (reader, mut writer) = tokio::io::duplex(1);
        tokio::spawn(async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut writer, sent).await;
        });
        reader
    }
}
