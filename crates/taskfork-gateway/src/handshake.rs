//! What a client sends before it is relayed: the TLS handshake and its first message.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use taskfork::__private::relay::{self, HelloError, RelayedPeer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use webpki::EndEntityCert;

/// The first byte of a TLS connection: the type of a record that has a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// The first byte of a client that speaks JSON.
const JSON: u8 = b'[';

/// A client that may be relayed.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) stream: TlsStream<TcpStream>,
    /// The first message, as the server gets it.
    pub(crate) hello: Vec<u8>,
    /// What the client has sent behind its first message.
    pub(crate) rest: Vec<u8>,
    pub(crate) names: Vec<String>,
    /// Set if a node has sent the client here.
    #[cfg(feature = "nats")]
    pub(crate) admission: Option<taskfork_nats::Admission>,
}

/// A client that is not relayed.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Why, for the log. `None` if it has just gone.
    pub(crate) reason: Option<String>,
    /// Its connection, if it may still read why.
    pub(crate) stream: Option<TcpStream>,
}

impl Refused {
    fn gone() -> Self {
        Self { reason: None, stream: None }
    }
}

/// Waits for the client's first message, and rewrites it.
pub(crate) async fn greet(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    allowed_names: &[String],
    #[cfg(feature = "nats")] direct: Option<&taskfork_nats::Direct>,
) -> Result<Greeted, Refused> {
    let stream = expect_tls(stream).await?;
    let accepted = TlsAcceptor::from(config).accept(stream).into_fallible().await;
    let mut stream = accepted.map_err(|(error, stream)| Refused {
        // A client that has gone is no news.
        reason: (error.kind() == io::ErrorKind::InvalidData)
            .then(|| format!("its TLS handshake failed: {error}")),
        stream: Some(stream),
    })?;
    let names = names_of(&stream);
    if !allowed_names.is_empty() && !names.iter().any(|name| is_allowed(name, allowed_names)) {
        let shown = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let reason = format!(
            "no name of your certificate is allowed at this gateway (`allow_name`); its names: {shown}"
        );
        return Err(refuse(stream, relay::refused(false, &reason), reason).await);
    }
    #[cfg_attr(not(feature = "nats"), expect(unused_mut, reason = "nothing else is read before"))]
    let mut received = Vec::new();
    #[cfg(feature = "nats")]
    let admission = match direct {
        None => None,
        Some(direct) => {
            match crate::nats::direct::admit(direct, &mut stream, &mut received).await {
                Ok(admission) => admission,
                Err(error) => {
                    return Err(match error.refusal() {
                        Some((refusal, reason)) => refuse(stream, refusal, reason).await,
                        None => Refused::gone(),
                    });
                }
            }
        }
    };
    let address = address.to_string();
    let peer = RelayedPeer::Tls { names: &names, address: &address };
    #[cfg(feature = "nats")]
    let peer = match &admission {
        // A certificate says more, and was verified. Without one, nothing but the address is certain.
        Some(admission) if names.is_empty() => {
            RelayedPeer::Nats { name: admission.client(), address: Some(&address) }
        }
        _ => peer,
    };
    match read_hello(&mut stream, received, &peer).await {
        Ok(Hello { hello, rest }) => Ok(Greeted {
            stream,
            hello,
            rest,
            names,
            #[cfg(feature = "nats")]
            admission,
        }),
        Err(HelloFailure::Gone) => Err(Refused::gone()),
        Err(HelloFailure::Wrong(error)) => Err(refuse_hello(stream, error).await),
    }
}

/// A client's first message, as the server gets it.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) hello: Vec<u8>,
    /// What the client has sent behind its first message.
    pub(crate) rest: Vec<u8>,
}

/// Why there is no first message.
#[derive(Debug)]
pub(crate) enum HelloFailure {
    /// The client has gone.
    Gone,
    /// The client has sent something else.
    Wrong(HelloError),
}

/// Reads a client's first message, of which `received` has come, and rewrites it.
pub(crate) async fn read_hello(
    stream: &mut (impl AsyncRead + Unpin),
    mut received: Vec<u8>,
    peer: &RelayedPeer<'_>,
) -> Result<Hello, HelloFailure> {
    loop {
        match relay::hello_length(&received).map_err(HelloFailure::Wrong)? {
            Some(length) => {
                let hello = relay::rewrite_hello(&received[..length], peer);
                let hello = hello.map_err(HelloFailure::Wrong)?;
                return Ok(Hello { hello, rest: received.split_off(length) });
            }
            None if received.len() >= relay::most_hello_bytes() => {
                let blank = HelloError::Invalid("it is all blanks".into());
                return Err(HelloFailure::Wrong(blank));
            }
            None => {}
        }
        // A hello has a few hundred bytes, and what follows it is kept.
        received.reserve(1024);
        match stream.read_buf(&mut received).await {
            Ok(0) | Err(_) => return Err(HelloFailure::Gone),
            Ok(_) => {}
        }
    }
}

/// Sends a client its refusal in place of a worker's hello.
pub(crate) async fn refuse(
    mut stream: TlsStream<TcpStream>,
    refusal: Vec<u8>,
    reason: String,
) -> Refused {
    let sent = async {
        stream.write_all(&refusal).await?;
        stream.shutdown().await
    };
    let stream = sent.await.is_ok().then(|| stream.into_inner().0);
    Refused { reason: Some(reason), stream }
}

async fn refuse_hello(stream: TlsStream<TcpStream>, error: HelloError) -> Refused {
    let reason = error.to_string();
    let refusal = relay::refused(error == HelloError::Json, &reason);
    refuse(stream, refusal, reason).await
}

/// Returns the connection if it begins like one of TLS. Otherwise it tells the client, in the client's protocol.
async fn expect_tls(mut stream: TcpStream) -> Result<TcpStream, Refused> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) if first[0] == TLS_HANDSHAKE => return Ok(stream),
        Ok(1) => {}
        _ => return Err(Refused::gone()),
    }
    let reason = "this port speaks TLS: connect to tls:HOST:PORT instead of tcp:HOST:PORT";
    let sent = async {
        stream.write_all(&relay::refused(first[0] == JSON, reason)).await?;
        stream.shutdown().await
    };
    let stream = sent.await.is_ok().then_some(stream);
    Err(Refused { reason: Some("it does not speak TLS".to_owned()), stream })
}

/// The names in a client's certificate: DNS names and URIs. Empty without a certificate.
fn names_of(stream: &TlsStream<TcpStream>) -> Vec<String> {
    let certificates = stream.get_ref().1.peer_certificates();
    let Some(certificate) = certificates.and_then(|chain| chain.first()) else { return Vec::new() };
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    // A URI has a colon, and a DNS name has none. So no name of one kind can stand for one of the other.
    let uris = certificate.valid_uri_names().filter(|uri| uri.contains(':'));
    let names = certificate.valid_dns_names().chain(uris);
    names
        .filter(|name| name.len() <= relay::MAX_PEER_TEXT)
        .take(relay::MAX_PEER_NAMES)
        .map(str::to_owned)
        .collect()
}

fn is_allowed(name: &str, allowed: &[String]) -> bool {
    let is_dns = !name.contains(':');
    allowed.iter().any(|one| one == name || (is_dns && one.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts_are_compared_without_regard_to_case() {
        let allowed = ["Web.example".to_owned(), "spiffe://a/B".to_owned()];
        assert!(is_allowed("web.EXAMPLE", &allowed) && is_allowed("spiffe://a/B", &allowed));
        assert!(!is_allowed("spiffe://a/b", &allowed) && !is_allowed("web.example.org", &allowed));
    }
}
