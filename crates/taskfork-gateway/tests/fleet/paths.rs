//! Direct connections that fail: which failures make a client avoid an address, and what it does instead.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
use taskfork::client::NatsRoute;
use taskfork::error::FatalError;
use taskfork_gateway::Gateway;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::direct::{Served, node_options};
use crate::fixture::SERVICE;
use crate::proxy::Proxy;
use crate::round_trip::round_trip;
use crate::support::{Authority, Identity, Running, address_in, trial, until};

/// An interface that differs from that of the servers with types.
mod other {
    #[taskfork::interface]
    pub(crate) trait Adder {
        fn add(&mut self, a: f64, b: f64) -> f64;
    }
}

/// A port at which connections get no answer, as behind a firewall that drops packets: its queue of connections is full.
struct Firewall {
    address: SocketAddr,
    _listener: OwnedFd,
    _queued: Vec<TcpStream>,
}

impl Firewall {
    fn start() -> Self {
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        listen(&listener, 0).unwrap();
        let address = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
        let mut queued = Vec::new();
        // The kernel completes those for which there is room at once.
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
        }
        Self { address, _listener: listener, _queued: queued }
    }
}

/// A listener that has the gateway's certificate, and closes each connection behind the token.
async fn closing_listener(identity: &Identity) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let chain = CertificateDer::pem_file_iter(&identity.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let mut config = config.with_single_cert(chain.map(Result::unwrap).collect(), key).unwrap();
    config.alpn_protocols = vec![b"taskfork".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            stream.read_exact(&mut [0; 24]).await.unwrap();
        }
    });
    (address, task)
}

trial!(a_firewall_that_drops_leaves_time_for_the_way_through_nats, async || {
    let firewall = Firewall::start();
    let address = firewall.address.to_string();
    let served = Served::start(|nats| nats.direct(&address), |gateway, _| gateway).await;
    // An attempt that has to wait for a node has no time limit.
    while served.nodes().await.is_empty() {}
    let client = served
        .client_builder(NatsRoute::Auto)
        .connect_timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(a_final_answer_over_a_direct_connection_says_nothing_about_its_address, async || {
    let served = Served::start_entry("typed", |nats| nats, |gateway, _| gateway).await;
    while served.nodes().await.is_empty() {}
    // The stranger would take the request of a client that comes before the node, and not answer.
    let stranger = served.nats.client().await;
    let mut requests = stranger.subscribe(format!("{SERVICE}.acquire.any")).await.unwrap();
    round_trip(&stranger).await;
    let client: other::AdderClient =
        served.client_builder(NatsRoute::Auto).timeout(None).build_as().unwrap();
    // Calls again until another attempt has asked for a place.
    let calls = async {
        loop {
            let error = client.add(1.0, 2.0).await.unwrap_err();
            let taskfork::Error::Fatal { cause: FatalError::WrongInterface { .. }, .. } = error
            else {
                panic!("{error}")
            };
            tokio::task::yield_now().await;
        }
    };
    let asked = async {
        for _ in 0..2 {
            let request = requests.next().await.unwrap().payload;
            let request = String::from_utf8_lossy(&request).into_owned();
            assert!(request.contains("\"route\":\"auto\""), "{request}");
            assert!(!request.contains("avoid"), "{request}");
        }
    };
    tokio::select! {
        () = asked => {}
        () = calls => {}
    }
});

trial!(an_address_whose_gateway_has_just_closed_is_tried_again, async || {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let (address, listener) = closing_listener(&identity).await;
    let (certificate, key) = (identity.certificate.clone(), identity.key.clone());
    let served = Served::start(
        |nats| nats.direct(address.to_string()),
        |gateway, _| gateway.tls("127.0.0.1:0", certificate, key),
    )
    .await;
    let client = served.client_builder(NatsRoute::Auto).build().unwrap();
    while served.nodes().await.is_empty() {}
    let stranger = served.nats.client().await;
    let mut requests = stranger.subscribe(format!("{SERVICE}.acquire.any")).await.unwrap();
    round_trip(&stranger).await;
    // Both at the same time: each needs a connection of its own.
    let checkouts = [client.checkout(), client.checkout()];
    for checkout in &checkouts {
        assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    }
    let mut direct = 0;
    for _ in 0..4 {
        let request = requests.next().await.unwrap().payload;
        let request = String::from_utf8_lossy(&request).into_owned();
        assert!(!request.contains("avoid"), "{request}");
        direct += usize::from(request.contains("\"route\":\"auto\""));
    }
    assert_eq!(direct, 2);
    listener.abort();
});

trial!(a_gateway_that_starts_again_is_connected_directly, async || {
    let proxy = Proxy::start().await;
    let mut served = Served::start(|nats| nats.direct(&proxy.address), |gateway, _| gateway).await;
    let client = served.client_builder(NatsRoute::Auto).timeout(None).build().unwrap();
    let checkout = client.checkout();
    let call = tokio::spawn(checkout.call::<i64>("add", (1, 2)));
    until("the direct connection", || proxy.accepted() == 1).await;
    // The gateway ends while the client has its token.
    served.gateway.stop();
    until("the end", || served.gateway.task.is_finished()).await;
    let identity = served.authority.issue(&["localhost"]);
    let builder = Gateway::builder()
        .server(address_in(&served.folder))
        .tls("127.0.0.1:0", &identity.certificate, &identity.key)
        .nats(node_options(&served.nats).direct(&proxy.address));
    let gateway = Running::start(builder).await;
    // The connection that waits comes to another certificate than the one that it was promised.
    proxy.lead_to(gateway.address);
    assert_eq!(call.await.unwrap().unwrap(), 3);
    // Another worker, since the first one is in use.
    let other = client.checkout();
    served.gateway = gateway;
    assert_eq!(other.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    assert!(served.connections() > 0);
    drop(checkout);
});
