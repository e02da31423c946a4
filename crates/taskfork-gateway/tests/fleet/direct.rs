//! Direct connections: which way a client's calls go, and what happens when a way is closed.

use futures_util::StreamExt;
use taskfork::client::{ClientBuilder, NatsRoute};
use taskfork::{Client, Server};
use taskfork_gateway::{Gateway, GatewayBuilder, NatsOptions};

use crate::fixture::{SERVICE, client_builder, reason};
use crate::nats_server::NatsServer;
use crate::proxy::Proxy;
use crate::round_trip::round_trip;
use crate::support::{Authority, Running, address_in, is_gone, trial, until};

/// What a client sends to a node whose place it does not want.
const UNWANTED: [u8; 10] = [5, 0, 0, 0, 0, 0, 0, 0, 0, 4];

fn wants_web(gateway: GatewayBuilder, authority: &Authority) -> GatewayBuilder {
    gateway.client_ca(&authority.file).allow_name("web")
}

/// The options of the node.
pub(crate) fn node_options(nats: &NatsServer) -> NatsOptions {
    NatsOptions::new(nats.url(), SERVICE, "one").sessions(4)
}

/// A gateway that is a node, and has clients of TLS too.
pub(crate) struct Served {
    pub(crate) nats: NatsServer,
    _server: taskfork::server::ServerHandle,
    pub(crate) authority: Authority,
    pub(crate) gateway: Running,
    pub(crate) folder: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn start(
        nats: impl FnOnce(NatsOptions) -> NatsOptions,
        gateway: impl FnOnce(GatewayBuilder, &Authority) -> GatewayBuilder,
    ) -> Self {
        Self::start_entry("served", nats, gateway).await
    }

    /// The same, with the workers of this entry.
    pub(crate) async fn start_entry(
        entry: &str,
        nats: impl FnOnce(NatsOptions) -> NatsOptions,
        gateway: impl FnOnce(GatewayBuilder, &Authority) -> GatewayBuilder,
    ) -> Self {
        let (folder, nats_server) = (tempfile::tempdir().unwrap(), NatsServer::start());
        let server = Server::spawn_with(entry, &address_in(&folder)).unwrap();
        let authority = Authority::new();
        let identity = authority.issue(&["localhost"]);
        let options = nats(node_options(&nats_server));
        let builder = Gateway::builder()
            .server(address_in(&folder))
            .tls("127.0.0.1:0", &identity.certificate, &identity.key)
            .nats(options);
        let gateway = Running::start(gateway(builder, &authority)).await;
        Self { nats: nats_server, _server: server, authority, gateway, folder }
    }

    /// A node that offers direct connections by itself.
    pub(crate) async fn with_direct() -> Self {
        Self::start(|nats| nats, |gateway, _| gateway).await
    }

    /// A node that offers direct connections through a proxy, to clients with a certificate of the right name.
    async fn with_certificates() -> (Self, Proxy) {
        let proxy = Proxy::start().await;
        let served = Self::start(|nats| nats.direct(&proxy.address), wants_web).await;
        proxy.lead_to(served.gateway.address);
        (served, proxy)
    }

    /// Another node of the service, with room for more sessions, and without a server.
    async fn dead_node(&self, name: &str) -> Running {
        let identity = self.authority.issue(&["localhost"]);
        let builder = Gateway::builder()
            .server(format!("{}.{name}", address_in(&self.folder)))
            .tls("127.0.0.1:0", &identity.certificate, &identity.key)
            .nats(NatsOptions::new(self.nats.url(), SERVICE, name).sessions(8));
        Running::start(builder).await
    }

    pub(crate) async fn nodes(&self) -> Vec<taskfork_nats::NodeInfo> {
        let options = taskfork_nats::FleetOptions::new().name("stranger");
        let fleet = taskfork_nats::Fleet::connect(&self.nats.url(), SERVICE, options).await;
        fleet.unwrap().nodes().await.unwrap()
    }

    pub(crate) fn client_builder(&self, route: NatsRoute) -> ClientBuilder {
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
    pub(crate) async fn is_direct(&self, client: &Client) -> bool {
        until("the end of other connections", || self.connections() == 0).await;
        let checkout = client.checkout();
        let _: u32 = checkout.call("pid", ()).await.unwrap();
        self.connections() > 0
    }

    /// How many established connections lead to the gateway.
    pub(crate) fn connections(&self) -> usize {
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

trial!(a_gateway_that_wants_certificates_offers_itself_only_where_it_is_told_to, async || {
    let served = Served::start(|nats| nats, wants_web).await;
    let client = served.client_builder(NatsRoute::Auto).build().unwrap();
    assert!(!served.is_direct(&client).await);
    served.wait_for_reason("it offers no direct connections").await;
});

trial!(a_direct_connection_needs_the_certificate_that_the_gateway_wants, async || {
    let (served, _proxy) = Served::with_certificates().await;
    let identity = served.authority.issue(&["web"]);
    let client = served
        .client_builder(NatsRoute::Direct)
        .tls_identity(&identity.certificate, &identity.key)
        .build()
        .unwrap();
    assert!(served.is_direct(&client).await);
    // Another client learns why it is refused.
    served.wait_for_reason("wants a certificate of this client").await;
    let other = served.authority.issue(&["other"]);
    let client = served
        .client_builder(NatsRoute::Direct)
        .tls_identity(&other.certificate, &other.key)
        .build()
        .unwrap();
    let text = reason(&client).await;
    assert!(text.contains("no name of your certificate is allowed"), "{text}");
    assert!(text.contains("the node one"), "{text}");
});

trial!(a_client_that_the_gateway_refuses_takes_the_way_through_nats, async || {
    // Without a certificate, and with one that is refused only behind the handshake.
    for name in [None, Some("other")] {
        let (served, proxy) = Served::with_certificates().await;
        // The stranger would take the request of a client that comes before the node, and not answer.
        while served.nodes().await.is_empty() {}
        let stranger = served.nats.client().await;
        let mut messages = stranger.subscribe("_INBOX.>").await.unwrap();
        let mut requests = stranger.subscribe(format!("{SERVICE}.acquire.any")).await.unwrap();
        round_trip(&stranger).await;
        let mut builder = served.client_builder(NatsRoute::Auto);
        if let Some(name) = name {
            let identity = served.authority.issue(&[name]);
            builder = builder.tls_identity(&identity.certificate, &identity.key);
        }
        let client = builder.build().unwrap();
        let checkout = client.checkout();
        assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
        // The same attempt has asked for another way. A new one would begin as the first did.
        for route in ["\"route\":\"auto\"", ""] {
            let request = requests.next().await.unwrap().payload;
            let request = String::from_utf8_lossy(&request).into_owned();
            assert_eq!(request.contains("route"), !route.is_empty(), "{request}");
            assert!(request.contains(route), "{request}");
        }
        // Its first place was given up.
        while messages.next().await.unwrap().payload != UNWANTED[..] {}
        // Others do not try.
        let others: Vec<_> = (0..3).map(|_| client.checkout()).collect();
        for other in &others {
            assert_eq!(other.call::<i64>("add", (1, 2)).await.unwrap(), 3);
        }
        assert_eq!(proxy.accepted(), 1);
        assert_eq!(served.connections(), 0);
    }
});

trial!(an_address_that_does_not_answer_is_tried_once, async || {
    // It leads nowhere.
    let proxy = Proxy::start().await;
    let served = Served::start(|nats| nats.direct(&proxy.address), |gateway, _| gateway).await;
    let client = served.client_builder(NatsRoute::Auto).build().unwrap();
    let checkout = client.checkout();
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    // One after the other.
    let others = [client.checkout(), client.checkout()];
    for other in &others {
        assert_eq!(other.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    }
    assert_eq!(proxy.accepted(), 1);
});

trial!(a_node_whose_server_is_dead_leaves_direct_clients_to_others, async || {
    let served = Served::with_direct().await;
    let holder = served.client_builder(NatsRoute::Direct).build().unwrap();
    let checkouts: Vec<_> = (0..4).map(|_| holder.checkout()).collect();
    for checkout in &checkouts {
        checkout.ready().await.unwrap();
    }
    let _dead = served.dead_node("two").await;
    let client = served.client_builder(NatsRoute::Direct).timeout(None).build().unwrap();
    let call = tokio::spawn(client.call::<i64>("add", (1, 2)));
    // It has no sessions, and pauses.
    let pauses = |node: &taskfork_nats::NodeInfo| node.name == "two" && node.free == Some(0);
    while !served.nodes().await.iter().any(pauses) {}

    drop(checkouts);
    holder.close().await;
    assert_eq!(call.await.unwrap().unwrap(), 3);
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
