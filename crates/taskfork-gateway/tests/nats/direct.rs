//! Clients that a node sends to the gateway's TLS listener.

use std::sync::Arc;

use taskfork::Server;
use taskfork::server::ServerHandle;
use taskfork_gateway::taskfork_nats::{Acquired, Fleet, Grant, Holder, Route, Token};
use taskfork_gateway::{GatewayBuilder, NatsOptions, Reloader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::fixture::{builder, fleet, node_options, wait_for_nodes};
use crate::nats_server::NatsServer;
use crate::proxy::Proxy;
use crate::support::{Authority, Identity, Running, address_in, replace, trial, until};

/// A hello with nothing but a version.
const HELLO: &[u8] = b"taskfork\x0e\0\0\0\x92\0\x81\xa8versions\x91\x01";

/// A node with room for two sessions that offers direct connections.
struct Served {
    server: ServerHandle,
    nats: NatsServer,
    authority: Authority,
    identity: Identity,
    reloader: Reloader,
    gateway: Running,
    _folder: tempfile::TempDir,
}

impl Served {
    async fn start(options: impl FnOnce(GatewayBuilder, &Authority) -> GatewayBuilder) -> Self {
        Self::start_with(|nats| nats, options).await
    }

    async fn start_with(
        nats_options: impl FnOnce(NatsOptions) -> NatsOptions,
        options: impl FnOnce(GatewayBuilder, &Authority) -> GatewayBuilder,
    ) -> Self {
        let (folder, nats) = (tempfile::tempdir().unwrap(), NatsServer::start());
        let server = Server::spawn_with("served", &address_in(&folder)).unwrap();
        let authority = Authority::new();
        let identity = authority.issue(&["localhost"]);
        let node = nats_options(node_options(&nats, "one").sessions(2));
        let gateway =
            builder(&folder, node).tls("127.0.0.1:0", &identity.certificate, &identity.key);
        let gateway = Running::start(options(gateway, &authority)).await;
        wait_for_nodes(&nats, 1).await;
        let reloader = gateway.reloader.clone();
        Self { server, nats, authority, identity, reloader, gateway, _folder: folder }
    }

    async fn grant(&self, fleet: &Fleet) -> Grant {
        match fleet.acquire_by(&Holder::new(), &[], None, None, Route::Direct).await.unwrap() {
            Acquired::Grant(grant) => grant,
            Acquired::Session(session) => panic!("no grant: {session:?}"),
        }
    }

    /// Connects by TLS, and sends this.
    async fn connect(
        &self,
        address: &str,
        identity: Option<&Identity>,
        sent: &[&[u8]],
    ) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.authority.file).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = CertificateDer::pem_file_iter(certificate).unwrap();
                let key = PrivateKeyDer::from_pem_file(key).unwrap();
                config.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
            }
        };
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        for sent in sent {
            stream.write_all(sent).await.unwrap();
            stream.flush().await.unwrap();
        }
        stream
    }

    /// Who the clients of the workers are.
    fn peers(&self) -> Vec<String> {
        let workers = self.server.status().unwrap().workers;
        workers
            .iter()
            .map(|worker| worker.peer.as_ref().map_or(String::new(), ToString::to_string))
            .collect()
    }
}

/// The kind of the first message, and all that came until it was complete.
async fn first_message(stream: &mut TlsStream<TcpStream>) -> (u8, String) {
    let mut header = [0; 12];
    stream.read_exact(&mut header).await.unwrap();
    assert!(header.starts_with(b"taskfork"));
    let mut body = vec![0; u32::from_le_bytes(header[8..].try_into().unwrap()) as usize];
    stream.read_exact(&mut body).await.unwrap();
    (body[1], String::from_utf8_lossy(&body).into_owned())
}

fn sha256(certificate: &Identity) -> [u8; 32] {
    let certificate = CertificateDer::from_pem_file(&certificate.certificate).unwrap();
    let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    suite.common.hash_provider.hash(&certificate).as_ref().try_into().unwrap()
}

async fn free(fleet: &Fleet) -> u64 {
    fleet.nodes().await.unwrap()[0].free.unwrap()
}

trial!(a_client_with_a_token_is_a_session_of_the_node, async || {
    let served = Served::start(|gateway, _| gateway).await;
    let fleet = fleet(&served.nats).await;
    let grant = served.grant(&fleet).await;
    assert_eq!(grant.fingerprint(), sha256(&served.identity));
    let (address, preamble) = (grant.address().to_owned(), grant.token().preamble());
    grant.used();
    // In two pieces.
    let sent = [&preamble[..5], &preamble[5..], HELLO];
    let mut stream = served.connect(&address, None, &sent).await;
    let (kind, text) = first_message(&mut stream).await;
    assert_eq!(kind, 0, "{text}");
    // Its name is what it says of itself, and its address is certain.
    let own = stream.get_ref().0.local_addr().unwrap();
    assert_eq!(served.peers(), [format!("NATS client named `stranger` at {own}")]);
    assert_eq!(free(&fleet).await, 1);

    // The token is used, and another one was never given.
    let other = [&b"tf-token"[..], &[7; 16], HELLO].concat();
    assert!(Token::read(&other).is_some());
    for wrong in [&[&preamble[..], HELLO].concat(), &other] {
        let mut stream = served.connect(&address, None, &[wrong]).await;
        let (kind, text) = first_message(&mut stream).await;
        assert!(kind == 2 && text.contains("busy") && text.contains("ask for another"), "{text}");
    }
    // Without a token the gateway serves as ever.
    let mut plain = served.connect(&address, None, &[HELLO]).await;
    assert_eq!(first_message(&mut plain).await.0, 0);

    drop(stream);
    while free(&fleet).await != 2 {}
});

trial!(a_token_stands_for_no_certificate, async || {
    let proxy = Proxy::start().await;
    // A gateway that wants certificates offers itself only where it is told to.
    let options = |options: NatsOptions| options.direct(&proxy.address);
    let served =
        Served::start_with(options, |gateway, authority| gateway.client_ca(&authority.file)).await;
    proxy.lead_to(served.gateway.address);
    let fleet = fleet(&served.nats).await;
    let grant = served.grant(&fleet).await;
    let (address, preamble) = (grant.address().to_owned(), grant.token().preamble());
    let sent = [&preamble[..], HELLO];
    let mut without = served.connect(&address, None, &sent).await;
    let error = without.read_u8().await.unwrap_err().to_string();
    assert!(error.contains("CertificateRequired"), "{error}");

    let client = served.authority.issue(&["client.example"]);
    let mut with = served.connect(&address, Some(&client), &sent).await;
    assert_eq!(first_message(&mut with).await.0, 0);
    let peers = served.peers();
    assert!(peers.len() == 1 && peers[0].contains("client.example"), "{peers:?}");
    grant.used();
});

trial!(a_new_certificate_is_in_the_next_grant, async || {
    let served = Served::start(|gateway, _| gateway).await;
    let new = served.authority.issue(&["localhost"]);
    assert_ne!(sha256(&served.identity), sha256(&new));
    replace(&served.identity, &new);
    served.reloader.reload().unwrap();
    let grant = served.grant(&fleet(&served.nats).await).await;
    assert_eq!(grant.fingerprint(), sha256(&new));
});

trial!(direct_connections_count_for_their_node_only, async || {
    let served =
        Served::start(|gateway, _| gateway.max_connections(1).max_client_connections(1)).await;
    let fleet = fleet(&served.nats).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let grant = served.grant(&fleet).await;
        let preamble = grant.token().preamble();
        let mut stream = served.connect(grant.address(), None, &[&preamble, HELLO]).await;
        grant.used();
        let (kind, text) = first_message(&mut stream).await;
        assert_eq!(kind, 0, "{text}");
        streams.push(stream);
    }
    until("both workers", || served.peers().len() == 2).await;
    // They do not keep others away.
    let mut plain = served.connect(&served.gateway.address.to_string(), None, &[HELLO]).await;
    assert_eq!(first_message(&mut plain).await.0, 0);
});
