//! The connection to a NATS server.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use async_nats::connection::State;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, ServerAddr};
use futures_util::Sink;

use crate::error::Error;
use crate::shown::shown_addresses;
use crate::wire::{MIN_PAYLOAD, QUEUED_MESSAGES};

/// Connects to one of the servers in a list with commas.
pub(crate) async fn connect(url: &str, options: ConnectOptions) -> Result<Client, Error> {
    let addresses: Vec<ServerAddr> = url
        .split(',')
        .map(|address| address.trim().parse::<ServerAddr>().and_then(with_host))
        .collect::<Result<_, _>>()
        .map_err(|source| Error::Url { url: shown_addresses(url), source })?;
    let options = with_credentials(options, &addresses).subscription_capacity(QUEUED_MESSAGES);
    let plain = addresses.iter().map(without_credentials).collect::<Result<Vec<_>, _>>();
    let plain = plain.map_err(|source| Error::Url { url: shown_addresses(url), source })?;
    let client = options.connect(plain).await.map_err(|error| {
        let (url, kind, is_tls) = (shown_addresses(url), error.kind(), is_of_tls(&error));
        let source = Box::new(error);
        match kind {
            ConnectErrorKind::ServerParse => {
                Error::Url { url, source: std::io::Error::other(source) }
            }
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                Error::Credentials { url, source }
            }
            // The NATS client takes a certificate that is not trusted for a failed connection.
            kind if is_tls || kind == ConnectErrorKind::Tls => of_tls(url, source),
            _ => Error::Unreachable { url, source },
        }
    })?;
    check_payload(&client)?;
    Ok(client)
}

/// Whether a connection failed because the other side did not speak TLS as it should.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| {
        let error = error.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData)
    })
}

/// The error of a TLS handshake. Only the texts of the library for TLS tell its causes apart here.
fn of_tls(url: String, source: Box<async_nats::ConnectError>) -> Error {
    let texts: Vec<String> =
        std::iter::successors(Some(&*source as &(dyn std::error::Error + 'static)), |&error| {
            error.source()
        })
        .map(ToString::to_string)
        .collect();
    let says = |text: &str| texts.iter().any(|known| known.contains(text));
    if says("InvalidContentType") {
        return Error::NoTls { url };
    }
    if says("CertificateRequired") || says("alert: BadCertificate") {
        return Error::CertificateWanted { url, source };
    }
    Error::Tls { url, source }
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
        State::Pending | State::Disconnected if is_closed(client) => {
            Err(Error::closed("it has given up to connect again"))
        }
        State::Pending | State::Disconnected => Err(Error::Disconnected),
    }
}

/// Whether the client's task has ended, for example after `max_reconnects`. The client itself does not tell.
fn is_closed(client: &Client) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    matches!(Pin::new(&mut client.clone()).poll_ready(&mut cx), Poll::Ready(Err(_)))
}

/// The options with the user and the password, or with the token, of the first address that has some. The NATS client
/// itself ignores them.
fn with_credentials(options: ConnectOptions, addresses: &[ServerAddr]) -> ConnectOptions {
    let Some(address) = addresses.iter().find(|address| address.username().is_some()) else {
        return options;
    };
    match (address.username().map(decoded), address.password().map(decoded)) {
        (Some(user), Some(password)) => options.user_and_password(user, password),
        (Some(token), None) => options.token(token),
        (None, _) => options,
    }
}

/// A part of an address, in which two hexadecimal digits after a percent sign stand for a byte.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        let digits = others.first_chunk::<2>().filter(|_| first == b'%');
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &others[2..] } else { others };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn with_host(address: ServerAddr) -> std::io::Result<ServerAddr> {
    let url = address.clone().into_inner();
    if !matches!(url.path(), "" | "/") {
        let text =
            "it has something behind the port, such as the name of a service: leave that out";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text));
    }
    if address.host().is_empty() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it has no host"));
    }
    Ok(address)
}

/// The address without what may not be logged. The NATS client logs the addresses to which it connects.
fn without_credentials(address: &ServerAddr) -> std::io::Result<ServerAddr> {
    let mut url = address.clone().into_inner();
    // These fail only without a host.
    let _ = (url.set_username(""), url.set_password(None));
    ServerAddr::from_url(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wrong_address_is_an_error_that_says_what_is_right() {
        for url in [
            "",
            "http://localhost:4222",
            "nats://",
            "nats://host:port",
            "nats://a b",
            "nats://a:1/s",
        ] {
            let error = connect(url, ConnectOptions::new()).await.unwrap_err();

            assert!(matches!(error, Error::Url { .. }), "{url:?}: {error}");
            assert!(error.to_string().contains("nats://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn causes_of_tls_are_told_apart() {
        let error = |text: &'static str| {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, text);
            let error = async_nats::ConnectError::with_source(ConnectErrorKind::Io, source);
            assert!(is_of_tls(&error));
            of_tls("tls://h".to_owned(), Box::new(error))
        };
        let no_tls = error("received corrupt message of type InvalidContentType");
        assert!(matches!(no_tls, Error::NoTls { .. }), "{no_tls}");
        let wanted = error("received fatal alert: CertificateRequired");
        assert!(matches!(wanted, Error::CertificateWanted { .. }), "{wanted}");
        let other = error("invalid peer certificate: UnknownIssuer");
        assert!(matches!(other, Error::Tls { .. }), "{other}");
    }

    #[test]
    fn percent_signs_stand_for_bytes() {
        for (text, expected) in
            [("p%40ss", "p@ss"), ("%c3%a9", "é"), ("100%", "100%"), ("%zz%+1", "%zz%+1")]
        {
            assert_eq!(decoded(text), expected);
        }
    }

    #[test]
    fn the_client_of_nats_gets_no_password() {
        for (text, expected) in
            [("nats://me:pass@host:1", "nats://host:1"), ("tls://token@host", "tls://host")]
        {
            let address = without_credentials(&text.parse().unwrap()).unwrap();
            assert_eq!(address.into_inner().as_str(), expected);
        }
    }

    #[tokio::test]
    async fn a_password_with_a_comma_is_an_error_that_does_not_show_it() {
        let url = "nats://me:sec,ret@localhost:1";
        let error = connect(url, ConnectOptions::new()).await.unwrap_err().to_string();

        assert!(!error.contains("sec") && !error.contains("ret"), "{error}");
        assert!(error.contains("%2C"), "{error}");
    }
}
