//! The connection to a NATS server.

use async_nats::connection::State;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, ServerAddr};

use crate::error::Error;
use crate::wire::{MIN_PAYLOAD, QUEUED_MESSAGES};

/// Connects to one of the servers in a list with commas.
pub(crate) async fn connect(url: &str, options: ConnectOptions) -> Result<Client, Error> {
    let addresses: Vec<ServerAddr> = url
        .split(',')
        .map(|address| address.trim().parse::<ServerAddr>().and_then(with_host))
        .collect::<Result<_, _>>()
        .map_err(|source| Error::Url { url: shown(url), source })?;
    let options = options.subscription_capacity(QUEUED_MESSAGES);
    let client = options.connect(addresses).await.map_err(|error| {
        let (url, kind) = (shown(url), error.kind());
        let source = Box::new(error);
        match kind {
            ConnectErrorKind::ServerParse => {
                Error::Url { url, source: std::io::Error::other(source) }
            }
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                Error::Credentials { url, source }
            }
            ConnectErrorKind::Tls => Error::Tls { url, source },
            _ => Error::Unreachable { url, source },
        }
    })?;
    check_payload(&client)?;
    Ok(client)
}

/// The longest message, or an error if it is too short for sessions.
pub(crate) fn check_payload(client: &Client) -> Result<usize, Error> {
    let limit = client.max_payload();
    if limit < MIN_PAYLOAD {
        return Err(Error::PayloadLimit { limit, needed: MIN_PAYLOAD });
    }
    Ok(limit)
}

/// Whether the client has a connection now.
pub(crate) fn check_connected(client: &Client) -> Result<(), Error> {
    match client.connection_state() {
        State::Connected => Ok(()),
        State::Pending | State::Disconnected => Err(Error::Disconnected),
    }
}

fn with_host(address: ServerAddr) -> std::io::Result<ServerAddr> {
    if address.host().is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it has no host"));
    }
    Ok(address)
}

/// The address without what stands before an `@`: that may be a password, and errors are logged.
fn shown(url: &str) -> String {
    let parts =
        url.split(',').map(|address| match (address.split_once("://"), address.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
            (None, Some((_, host))) => host.into(),
            (_, None) => address.into(),
        });
    parts.collect::<Vec<String>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wrong_address_is_an_error_that_says_what_is_right() {
        for url in ["", "http://localhost:4222", "nats://", "nats://host:port", "nats://a b"] {
            let error = connect(url, ConnectOptions::new()).await.unwrap_err();

            assert!(matches!(error, Error::Url { .. }), "{url:?}: {error}");
            assert!(error.to_string().contains("nats://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(shown("nats://me:p@ss@host:1,tls://other"), "nats://host:1,tls://other");
        assert_eq!(shown("me:pass@host"), "host");
    }
}
