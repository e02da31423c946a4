//! Clients that say nothing, too much, or something else.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use taskfork::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Authority, Served, client_builder, reason, trial};

/// A connection by TLS that speaks by hand.
async fn raw(served: &Served) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&served.authority.file).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tcp = TcpStream::connect(served.gateway.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// All that comes until the end of a connection, which may be abrupt.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest).await {
        Ok(_) => {}
        Err(error) => assert!(
            [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()),
            "{error}"
        ),
    }
    rest
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

trial!(plain_text_is_refused_in_its_protocol, async || {
    let served = Served::start().await;
    let address = format!("tcp:{}", served.gateway.address);
    let client = Client::builder().address(address).min_workers(0).build().unwrap();
    let text = reason(&client).await;
    assert!(text.contains("this port speaks TLS") && text.contains("tls:HOST:PORT"), "{text}");

    let mut stream = TcpStream::connect(served.gateway.address).await.unwrap();
    stream.write_all(b"[\"do\",{},\"add\",1,2]").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with(b"[\"er\"") && has(&answer, "this port speaks TLS"));
});

trial!(a_port_without_tls_is_an_error, async || {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let server = taskfork::Server::spawn_with("served", &"tcp:127.0.0.1:0".to_owned()).unwrap();
    let address = server.address().to_string();
    let address = address.strip_prefix("tcp:").unwrap().parse().unwrap();
    let client = client_builder(address, &authority).build().unwrap();
    let text = reason(&client).await;
    assert!(text.contains("does not speak TLS") && text.contains("tcp:HOST:PORT"), "{text}");

    // A peer that only closes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client_builder(listener.local_addr().unwrap(), &authority).build().unwrap();
    let closing = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let text = reason(&client).await;
    assert!(text.contains("during the TLS handshake"), "{text}");
    closing.abort();
    drop(folder);
});

trial!(a_silent_client_is_disconnected, async || {
    let served =
        Served::start_with(|gateway, _| gateway.handshake_timeout(Duration::from_millis(200)))
            .await;
    // Before TLS, and within its handshake.
    let mut silent = TcpStream::connect(served.gateway.address).await.unwrap();
    let mut begun = TcpStream::connect(served.gateway.address).await.unwrap();
    begun.write_all(&[0x16, 3, 1]).await.unwrap();
    assert!(rest(&mut silent).await.is_empty() && rest(&mut begun).await.is_empty());
});

trial!(a_client_that_stops_in_its_first_message_is_disconnected, async || {
    let served =
        Served::start_with(|gateway, _| gateway.handshake_timeout(Duration::from_secs(3))).await;
    let mut slow = raw(&served).await;
    slow.write_all(b"taskfork\x10\0").await.unwrap();
    slow.flush().await.unwrap();
    assert!(rest(&mut slow).await.is_empty());
});

trial!(a_client_too_many_displaces_the_oldest, async || {
    let served = Served::start_with(|gateway, _| {
        gateway.max_handshakes(2).handshake_timeout(Duration::from_secs(1000))
    })
    .await;
    let connect = || TcpStream::connect(served.gateway.address);
    let mut first = connect().await.unwrap();
    let (_second, _third) = (connect().await.unwrap(), connect().await.unwrap());
    assert!(rest(&mut first).await.is_empty());
    // A client that sends its first message at once is served.
    assert_eq!(served.client().call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(a_first_message_that_is_none_is_refused, async || {
    let served = Served::start().await;
    let long = [&b"taskfork"[..], &(16_385_u32).to_le_bytes()].concat();
    let call = b"taskfork\x04\0\0\0\x94\x01\x80\xc0";
    for (bytes, text) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "does not speak this protocol"),
        (&long, "over the limit of 16384"),
        (call, "the first message"),
    ] {
        let mut stream = raw(&served).await;
        // The gateway does not read all of this, and its answer arrives nevertheless.
        stream.write_all(&[bytes, &vec![0; 100_000]].concat()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with(b"taskfork") && has(&answer, "refused"), "{answer:?}");
        assert!(has(&answer, text), "{}", String::from_utf8_lossy(&answer));
    }
});

trial!(more_connections_than_allowed_are_told_so, async || {
    let served = Served::start_with(|gateway, _| gateway.max_connections(1)).await;
    let checkout = served.client().checkout();
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let text = reason(&served.client()).await;
    assert!(text.contains("relays 1 connections already"), "{text}");
    drop(checkout);
    assert_eq!(served.client().call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(clients_that_stay_after_their_refusal_displace_the_oldest, async || {
    let served = Served::start_with(|gateway, _| {
        gateway.max_connections(1).max_handshakes(2).handshake_timeout(Duration::from_secs(1000))
    })
    .await;
    let checkout = served.client().checkout();
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let mut oldest = TcpStream::connect(served.gateway.address).await.unwrap();
    let displaced = tokio::spawn(async move { rest(&mut oldest).await });
    // They read their refusals, and do not close.
    let mut staying = Vec::new();
    let fill = async {
        while !displaced.is_finished() {
            let mut client = raw(&served).await;
            client.write_all(b"taskfork\x03\0\0\0\x92\0\x80").await.unwrap();
            let answer = rest(&mut client).await;
            assert!(answer.is_empty() || has(&answer, "relays 1 connections already"));
            staying.push(client);
        }
    };
    let filled = tokio::time::timeout(Duration::from_secs(60), fill).await;
    filled.expect("clients that stay are not counted");
    assert!(displaced.await.unwrap().is_empty());
});

trial!(one_client_cannot_take_all_connections, async || {
    let served = Served::start_with(|gateway, authority| {
        gateway.client_ca(&authority.file).max_connections(8)
    })
    .await;
    let client = |name| {
        let identity = served.authority.issue(&[name]);
        let client = served.client_builder();
        client.tls_identity(&identity.certificate, &identity.key).build().unwrap()
    };
    let (greedy, other) = (client("greedy.example"), client("other.example"));
    let mut held = Vec::new();
    for _ in 0..2 {
        let checkout = greedy.checkout();
        assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
        held.push(checkout);
    }
    let text = reason(&greedy).await;
    assert!(text.contains("this client has 2 connections already"), "{text}");
    assert_eq!(other.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    drop(held);
    assert_eq!(greedy.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(a_server_that_is_not_there_yet_is_waited_for, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = crate::support::address_in(&folder);
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let gateway = crate::support::builder(&address, &identity);
    let gateway = crate::support::Running::start(gateway).await;
    let client = client_builder(gateway.address, &authority).build().unwrap();
    let text = reason(&client).await;
    assert!(text.contains("the gateway cannot reach its server"), "{text}");
    let _server = taskfork::Server::spawn_with("served", &address).unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});
