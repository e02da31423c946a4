//! Calls from another machine, over the loopback interface: through a gateway by TLS, and the same bytes in bare TLS.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use taskfork::{Client, Server};
use taskfork_gateway::Gateway;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::far_client::{FarClient, runtime};
use crate::{roles, sample::Sample};

/// What all of them have: a folder with certificates, and a process at the other end of TLS.
struct Remote {
    folder: tempfile::TempDir,
    address: SocketAddr,
    far: Child,
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.far.kill();
        let _ = self.far.wait();
    }
}

impl Remote {
    /// Starts this program in a role, with the folder and `argument` as arguments, and a listening socket as its
    /// standard input.
    fn start(role: &str, argument: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        Self::start_at(role, argument, address, listener.into())
    }

    /// Starts a gateway at a port that was free, in front of the server at a unix address.
    fn gateway(server: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("an address");
        let nothing = std::fs::File::open("/dev/null").expect("/dev/null");
        Self::start_at("gateway", &format!("{address} {server}"), address, nothing.into())
    }

    fn start_at(role: &str, argument: &str, address: SocketAddr, stdin: OwnedFd) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        make_certificates(folder.path());
        let path = folder.path().display().to_string();
        let far = roles::start(&[role, &path, argument], stdin);
        Self { folder, address, far }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn make_certificates(folder: &Path) {
    let key = || KeyPair::generate().expect("a key");
    let (ca_key, own_key) = (key(), key());
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
    let issuer = Issuer::new(ca, ca_key);
    let own = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let own = own.signed_by(&own_key, &issuer).expect("a certificate");
    let files =
        [("ca", ca_certificate.pem()), ("cert", own.pem()), ("key", own_key.serialize_pem())];
    for (name, text) in files {
        std::fs::write(folder.join(name), text).expect("a file");
    }
}

/// Runs the role that the command line names. Returns false if it names none.
pub fn run(arguments: &[String], stdin: impl FnOnce() -> OwnedFd) -> bool {
    let [role, folder, argument] = arguments else { return false };
    let folder = Path::new(folder);
    match &**role {
        "gateway" => run_gateway(folder, argument),
        "answer_tls" => {
            let bytes = argument.parse().expect("a number");
            serve_tls(folder, stdin(), async |mut stream| {
                let mut buffer = vec![0; bytes];
                while stream.read_exact(&mut buffer).await.is_ok() {
                    let sent = async {
                        stream.write_all(&buffer).await?;
                        stream.flush().await
                    };
                    if sent.await.is_err() {
                        break;
                    }
                }
            });
        }
        "relay_tls" => {
            let (near, far) = UnixStream::pair().expect("a pair of sockets");
            let mut answers = roles::start(&["answer", argument], far.into());
            serve_tls(folder, stdin(), async |mut stream| {
                near.set_nonblocking(true).expect("a socket");
                let mut near = tokio::net::UnixStream::from_std(near).expect("a socket");
                let _ = copy_bidirectional(&mut stream, &mut near).await;
            });
            let _ = answers.kill();
            let _ = answers.wait();
        }
        _ => return false,
    }
    true
}

/// Listens at the first of two addresses, and relays to the server at the second, until it is killed.
fn run_gateway(folder: &Path, addresses: &str) {
    let (address, server) = addresses.split_once(' ').expect("two addresses");
    runtime().block_on(async {
        let (certificate, key) = (folder.join("cert"), folder.join("key"));
        let gateway = Gateway::builder().server(server).tls(address, certificate, key);
        gateway.bind().await.expect("a gateway").run(std::future::pending()).await;
    });
}

/// Serves one TLS connection.
fn serve_tls(
    folder: &Path,
    listener: OwnedFd,
    serve: impl AsyncFnOnce(tokio_rustls::server::TlsStream<TcpStream>),
) {
    let certificate = CertificateDer::from_pem_file(folder.join("cert")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(folder.join("key")).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate], key).expect("a configuration");
    runtime().block_on(async {
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
        serve(stream.expect("a handshake")).await;
    });
}

/// One exchange of `bytes` bytes after the other by bare TLS with the process of this role.
fn bare(role: &str, bytes: usize, exchanges: usize) -> Vec<Duration> {
    let remote = Remote::start(role, &bytes.to_string());
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(remote.file("ca")).expect("a certificate");
    roots.add(ca).expect("a certificate");
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    runtime().block_on(async {
        let stream = TcpStream::connect(remote.address).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let (mut reader, mut writer) = tokio::io::split(stream.expect("a handshake"));
        let (body, mut back) = (vec![b'x'; bytes], vec![0; bytes]);
        let mut times = Vec::new();
        for _ in 0..exchanges {
            let start = Instant::now();
            // Both ways at once, as a relay may pass on the beginning of an answer.
            let write = async {
                writer.write_all(&body).await?;
                writer.flush().await
            };
            let (sent, received) = tokio::join!(write, reader.read_exact(&mut back));
            sent.expect("a peer");
            received.expect("a peer");
            times.push(start.elapsed());
        }
        times
    })
}

/// A server, a gateway in front of it, and a client.
struct Ours {
    client: FarClient,
    _remote: Remote,
    _server: taskfork::server::ServerHandle,
    _folder: tempfile::TempDir,
}

impl Ours {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let address = format!("unix:{}", folder.path().join("socket").display());
        let server = Server::spawn_with("listening", &address).expect("a server");
        let remote = Remote::gateway(&address);
        let client = Client::builder().address(format!("tls:localhost:{}", remote.address.port()));
        let client = FarClient::new(client.tls_ca(remote.file("ca")).max_workers(1));
        Self { client, _remote: remote, _server: server, _folder: folder }
    }
}

/// Calls of 64 bytes, one after the other.
pub fn latency(name: &str, calls: usize) -> Sample {
    let warm = |mut times: Vec<Duration>| Sample::times(times.split_off(calls / 4));
    match name {
        "taskfork tls" => warm(Ours::new().client.latencies(calls)),
        "floor tls" => warm(bare("answer_tls", 64, calls)),
        "floor tls through a relay" => warm(bare("relay_tls", 64, calls)),
        _ => Sample::failed("not known"),
    }
}

/// The rate in MB/s of `bytes` bytes there and back, the median of the last exchanges.
pub fn payload(name: &str, bytes: usize) -> Sample {
    const EXCHANGES: usize = 7;
    let mut times = match name {
        "taskfork tls" => Ours::new().client.exchanges(bytes, EXCHANGES),
        "floor tls" => bare("answer_tls", bytes, EXCHANGES),
        "floor tls through a relay" => bare("relay_tls", bytes, EXCHANGES),
        _ => return Sample::failed("not known"),
    };
    let mut times = times.split_off(2);
    times.sort();
    Sample::of(2.0 * bytes as f64 / times[times.len() / 2].as_secs_f64() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_role_is_not_run() {
        let never = || -> OwnedFd { panic!("its standard input is not needed") };
        assert!(!run(&["fork".to_owned()], never));
        let other = ["serve", "folder", "1"].map(str::to_owned);
        assert!(!run(&other, || panic!("its standard input is not needed")));
    }
}
