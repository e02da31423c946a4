//! Direct connections: which way a client's calls go, and what happens when a way is closed.

use taskfork::client::{ClientBuilder, NatsRoute};
use taskfork::{Client, Server};
use taskfork_gateway::{Gateway, GatewayBuilder, NatsOptions};

use crate::fixture::{SERVICE, client_builder, reason};
use crate::nats_server::NatsServer;
use crate::support::{Authority, Running, address_in, is_gone, trial, until};

/// A gateway that is a node, and has clients of TLS too.
struct Served {
    nats: NatsServer,
    _server: taskfork::server::ServerHandle,
    authority: Authority,
    gateway: Running,
    folder: tempfile::TempDir,
}

impl Served {
    async fn start(
        nats: impl FnOnce(NatsOptions) -> NatsOptions,
        gateway: impl FnOnce(GatewayBuilder, &Authority) -> GatewayBuilder,
    ) -> Self {
        let (folder, nats_server) = (tempfile::tempdir().unwrap(), NatsServer::start());
        let server = Server::spawn_with("served", &address_in(&folder)).unwrap();
        let authority = Authority::new();
        let identity = authority.issue(&["localhost"]);
        let options = nats(NatsOptions::new(nats_server.url(), SERVICE, "one").sessions(4));
        let builder = Gateway::builder()
            .server(address_in(&folder))
            .tls("127.0.0.1:0", &identity.certificate, &identity.key)
            .nats(options);
        let gateway = Running::start(gateway(builder, &authority)).await;
        Self { nats: nats_server, _server: server, authority, gateway, folder }
    }

    /// A node that offers direct connections by itself.
    async fn with_direct() -> Self {
        Self::start(|nats| nats, |gateway, _| gateway).await
    }

    fn client_builder(&self, route: NatsRoute) -> ClientBuilder {
        client_builder(&format!("{}/{SERVICE}", self.nats.url())).nats_route(route)
    }

    /// Waits until a client that insists on a direct connection has this reason why it has none. There are others
    /// while the places of earlier attempts are taken.
    async fn wait_for_reason(&self, text: &str) {
        let client = self.client_builder(NatsRoute::Direct).timeout(None).build().unwrap();
        let call = tokio::spawn(client.call::<i64>("add", (1, 2)));
        until(text, || client.stats().unreachable.is_some_and(|reason| reason.contains(text)))
            .await;
        call.abort();
    }

    /// Whether a client's calls go directly: then it has a connection to the gateway.
    async fn is_direct(&self, client: &Client) -> bool {
        until("the end of other connections", || self.connections() == 0).await;
        let checkout = client.checkout();
        let _: u32 = checkout.call("pid", ()).await.unwrap();
        self.connections() > 0
    }

    /// How many established connections lead to the gateway.
    fn connections(&self) -> usize {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let (remote, established) = (format!(":{:04X}", self.gateway.address.port()), "01");
        let is_one = |line: &&str| {
            let columns: Vec<_> = line.split_whitespace().collect();
            columns[2].ends_with(&remote) && columns[3] == established
        };
        table.lines().skip(1).filter(is_one).count()
    }
}

trial!(a_client_is_connected_directly_where_a_node_offers_it, async || {
    let served = Served::with_direct().await;
    for route in [NatsRoute::Auto, NatsRoute::Direct] {
        let client = served.client_builder(route).build().unwrap();
        assert!(served.is_direct(&client).await, "{route:?}");
    }
    // It is what happens without the option.
    let address = format!("{}/{SERVICE}", served.nats.url());
    assert!(served.is_direct(&client_builder(&address).build().unwrap()).await);
});

trial!(a_client_can_insist_on_the_way_through_nats, async || {
    let served = Served::with_direct().await;
    let client = served.client_builder(NatsRoute::Relayed).build().unwrap();
    assert!(!served.is_direct(&client).await);
});

trial!(a_client_takes_the_way_through_nats_where_no_node_offers_another, async || {
    let served = Served::start(NatsOptions::no_direct, |gateway, _| gateway).await;
    let client = served.client_builder(NatsRoute::Auto).build().unwrap();
    assert!(!served.is_direct(&client).await);
    served.wait_for_reason("it offers no direct connections").await;
});

trial!(a_client_takes_the_way_through_nats_if_the_other_is_closed, async || {
    // Nobody listens there.
    let closed = |nats: NatsOptions| nats.direct("127.0.0.1:1");
    let served = Served::start(closed, |gateway, _| gateway).await;
    let client = served.client_builder(NatsRoute::Auto).build().unwrap();
    assert!(!served.is_direct(&client).await);
    served.wait_for_reason("cannot be reached directly at 127.0.0.1:1").await;
});

trial!(a_direct_connection_needs_the_certificate_that_the_gateway_wants, async || {
    let wants = |gateway: GatewayBuilder, authority: &Authority| {
        gateway.client_ca(&authority.file).allow_name("web")
    };
    let served = Served::start(|nats| nats, wants).await;
    let identity = served.authority.issue(&["web"]);
    let client = served
        .client_builder(NatsRoute::Direct)
        .tls_identity(&identity.certificate, &identity.key)
        .build()
        .unwrap();
    assert!(served.is_direct(&client).await);
    served.wait_for_reason("wants a certificate of this client").await;
});

trial!(a_cancelled_call_on_a_direct_connection_kills_its_worker, async || {
    let served = Served::with_direct().await;
    let checkout = served.client_builder(NatsRoute::Direct).build().unwrap().checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = served.folder.path().join("runs");
    let call = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    drop(checkout);
    until("the call", || marker.exists()).await;
    call.abort();
    until("the worker's end", || is_gone(worker)).await;
});

trial!(direct_connections_count_as_sessions_of_their_node, async || {
    let served = Served::with_direct().await;
    let client = served.client_builder(NatsRoute::Direct).build().unwrap();
    let checkouts: Vec<_> = (0..4).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        checkout.ready().await.unwrap();
    }
    let other = served.client_builder(NatsRoute::Auto).build().unwrap();
    let text = reason(&other).await;
    assert!(text.contains("no node of the service work has room now"), "{text}");
    drop(checkouts);
    client.close().await;
    assert_eq!(other.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});
