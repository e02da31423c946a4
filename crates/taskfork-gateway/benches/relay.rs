//! A call through a gateway, by a bare exchange of the same bytes through TLS between two threads. Each round measures both,
//! one after the other; it prints the medians, and what one takes by what the other takes: `cargo bench -p taskfork-gateway --bench relay`.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use taskfork::server::Entry;
use taskfork::{Blob, Client, Methods, Server, ServerBuilder, ServerError};
use taskfork_gateway::Gateway;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ENTRIES: &[(&str, Entry)] = &[("measured", serve)];

/// What is measured: how many bytes go one way, how many times in a round, and how many rounds.
const WORKS: [(&str, usize, u32, usize); 2] =
    [("a short call", 40, 500, 61), ("16 MiB", 16 << 20, 1, 61)];

fn serve(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    let methods = Methods::new().function("length", |bytes: Blob| Ok(bytes.len()));
    server.listen(address).interface(methods).run()
}

fn main() {
    taskfork::init(ENTRIES);
    // `cargo test` runs it too, with an argument of its own.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("s").display());
    let _server = Server::spawn_with("measured", &address).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let (certificate_file, key_file) = (folder.path().join("cert"), folder.path().join("key"));
    std::fs::write(&certificate_file, certificate.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();

    let gateway = in_thread({
        let files = (certificate_file.clone(), key_file.clone());
        async move |tell| {
            let gateway = Gateway::builder().server(address).tls("127.0.0.1:0", files.0, files.1);
            let gateway = gateway.bind().await.unwrap();
            tell(gateway.local_addr());
            gateway.run(std::future::pending()).await;
        }
    });
    let bare = in_thread({
        let files = (certificate_file.clone(), key_file);
        async move |tell| answer(&files.0, &files.1, tell).await
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::builder()
            .address(format!("tls:localhost:{}", gateway.port()))
            .tls_ca(&certificate_file)
            .build()
            .unwrap();
        let mut bare = connect(bare, &certificate_file).await;
        for (name, length, times, rounds) in WORKS {
            let checkout = client.checkout();
            let blob = Blob::from(vec![1; length]);
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            // The first rounds are for the caches.
            for round in 0..rounds + 3 {
                let start = Instant::now();
                for _ in 0..times {
                    assert_eq!(checkout.call::<usize>("length", (&blob,)).await.unwrap(), length);
                }
                let our_time = start.elapsed() / times;
                let start = Instant::now();
                for _ in 0..times {
                    exchange(&mut bare, &blob).await;
                }
                if round >= 3 {
                    ours.push(our_time);
                    theirs.push(start.elapsed() / times);
                }
            }
            ours.sort_unstable();
            theirs.sort_unstable();
            let (our_time, their_time) = (ours[rounds / 2], theirs[rounds / 2]);
            let ratio = our_time.as_secs_f64() / their_time.as_secs_f64();
            println!("{name}: {our_time:?} through the gateway, {their_time:?} bare, {ratio:.2}");
        }
    });
}

/// Runs something in a thread with a runtime of its own, and returns the address that it tells.
fn in_thread<F: Future<Output = ()>>(
    run: impl FnOnce(Box<dyn FnOnce(SocketAddr)>) -> F + Send + 'static,
) -> SocketAddr {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(Box::new(move |address| sender.send(address).unwrap())));
    });
    receiver.recv_timeout(Duration::from_secs(60)).unwrap()
}

/// Answers each message, which is its length and so many bytes, by eight bytes.
async fn answer(certificate: &Path, key: &Path, tell: Box<dyn FnOnce(SocketAddr)>) {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(certificate).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    tell(listener.local_addr().unwrap());
    let (stream, _) = listener.accept().await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
    let mut bytes = Vec::new();
    while let Ok(length) = stream.read_u64().await {
        bytes.resize(length as usize, 0);
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_u64(length).await.unwrap();
        stream.flush().await.unwrap();
    }
}

async fn connect(address: SocketAddr, authority: &Path) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

async fn exchange(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) {
    stream
        .write_all(
            &[&(bytes.len() as u64).to_be_bytes()[..], &bytes[..32.min(bytes.len())]].concat(),
        )
        .await
        .unwrap();
    stream.write_all(&bytes[32.min(bytes.len())..]).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(stream.read_u64().await.unwrap(), bytes.len() as u64);
}
