//! Joining and leaving a service.

use std::time::Duration;

use taskfork::Server;
use taskfork::client::Client;
use taskfork_gateway::{Gateway, GatewayError, NatsOptions, taskfork_nats};

use crate::fixture::{
    NodeServed, RunningNode, builder, client_builder, fleet, node_options, wait_for_nodes,
};
use crate::nats_server::NatsServer;
use crate::support::{Authority, address_in, client_builder as tls_client, trial, until};

trial!(a_node_has_as_many_sessions_as_its_server_has_workers, async || {
    let (folder, nats) = (tempfile::tempdir().unwrap(), NatsServer::start());
    // The gateway comes first.
    let _gateway = RunningNode::start(builder(&folder, node_options(&nats, "one"))).await;
    let server = Server::spawn_with("served", &address_in(&folder)).unwrap();
    wait_for_nodes(&nats, 1).await;
    let node = fleet(&nats).await.nodes().await.unwrap().remove(0);
    let workers = server.status().unwrap().max_workers;
    assert_eq!((&*node.name, node.free), ("one", Some(workers as u64)));
});

trial!(a_node_tells_the_methods_of_its_server, async || {
    // This one has a number of sessions, and asks nothing.
    let served = NodeServed::start().await;
    let (folder, nats) = (&served.folder, &served.nats);
    let _asking = RunningNode::start(builder(folder, node_options(nats, "two"))).await;
    let named = node_options(nats, "three").methods(["other"]);
    let _named = RunningNode::start(builder(folder, named)).await;
    wait_for_nodes(nats, 3).await;
    let nodes = fleet(nats).await.nodes().await.unwrap();
    let methods = |name: &str| {
        let node = nodes.iter().find(|node| node.name == name).unwrap();
        node.methods.clone()
    };
    assert_eq!((methods("one"), methods("three")), (vec![], vec!["other".to_owned()]));
    let known = served.server.status().unwrap().methods;
    assert!(known.contains(&"add".to_owned()), "{known:?}");
    assert_eq!(methods("two"), known);
});

trial!(a_node_waits_for_nats, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut nats = NatsServer::start();
    let _server = Server::spawn_with("served", &address_in(&folder)).unwrap();
    nats.kill();
    let gateway = builder(&folder, node_options(&nats, "one"));
    let checked = gateway.bind().await.unwrap().check().await.unwrap_err();
    assert!(checked.to_string().contains("no NATS server answers"), "{checked}");
    let _gateway = RunningNode::start(builder(&folder, node_options(&nats, "one"))).await;
    nats.start_again();
    wait_for_nodes(&nats, 1).await;
    let client = client_builder(&nats).build().unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(an_unused_client_notices_nothing_when_its_node_leaves, async || {
    let mut served = NodeServed::start().await;
    let client = served.client();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let checkout = client.checkout();
    let marker = served.folder.path().join("runs");
    let go = served.folder.path().join("go");
    let call = tokio::spawn(checkout.call::<taskfork::Blob>("make_after", (&marker, &go, 10)));
    until("the call", || marker.exists()).await;
    served.gateway.stop();
    // The name is free, and a successor serves.
    let options = node_options(&served.nats, "one").sessions(4);
    let _successor = RunningNode::start(builder(&served.folder, options)).await;
    assert_eq!(client.call::<i64>("add", (3, 4)).await.unwrap(), 7);
    assert!(!served.gateway.task.is_finished(), "a checkout goes on");
    std::fs::write(go, "").unwrap();
    assert_eq!(call.await.unwrap().unwrap().len(), 10);
    drop(checkout);
    served.gateway.task.await.unwrap();
});

trial!(a_gateway_without_clients_is_an_error, async || {
    let folder = tempfile::tempdir().unwrap();
    let error = Gateway::builder().server(address_in(&folder)).bind().await.unwrap_err();
    assert!(matches!(error, GatewayError::NoListener), "{error}");
    assert!(error.to_string().contains("`nats`"), "{error}");
});

trial!(a_gateway_serves_by_tls_and_nats, async || {
    let (folder, nats) = (tempfile::tempdir().unwrap(), NatsServer::start());
    let _server = Server::spawn_with("served", &address_in(&folder)).unwrap();
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let gateway = builder(&folder, node_options(&nats, "one"))
        .tls("127.0.0.1:0", &identity.certificate, &identity.key)
        .bind()
        .await
        .unwrap();
    gateway.check().await.unwrap();
    let address = gateway.local_addr().unwrap();
    let running = tokio::spawn(gateway.run(std::future::pending()));
    wait_for_nodes(&nats, 1).await;
    let clients: [Client; 2] = [tls_client(address, &authority), client_builder(&nats)]
        .map(|builder| builder.build().unwrap());
    for client in clients {
        assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    }
    running.abort();
});

trial!(what_is_wrong_is_told_at_the_start, async || {
    let (folder, nats) = (
        tempfile::tempdir().unwrap(),
        NatsServer::with_config("authorization { user: u, password: p }\n"),
    );
    let check = async |options: NatsOptions| {
        let gateway = builder(&folder, options).bind().await.unwrap();
        let checked = tokio::time::timeout(Duration::from_secs(60), gateway.check()).await.unwrap();
        checked.unwrap_err()
    };
    let refused = check(node_options(&nats, "one")).await;
    assert!(matches!(refused, GatewayError::Nats(taskfork_nats::Error::Credentials { .. })));
    let wrong = check(NatsOptions::new(nats.url(), "work.er", "one")).await;
    assert!(wrong.to_string().contains("letters, digits"), "{wrong}");
    let wrong = check(NatsOptions::new("http://localhost", "work", "one")).await;
    assert!(wrong.to_string().contains("nats://HOST:PORT"), "{wrong}");
});

trial!(two_nodes_of_one_name_are_an_error, async || {
    let served = NodeServed::start().await;
    let options = node_options(&served.nats, "one").sessions(1);
    let second = builder(&served.folder, options).bind().await.unwrap();
    let error = second.check().await.unwrap_err().to_string();
    assert!(error.contains("has the name one") && error.contains("name of its own"), "{error}");
});

trial!(a_busy_client_goes_to_another_node_between_two_checkouts, async || {
    let mut served = NodeServed::start().await;
    // Four tasks and one worker: one checkout follows the other.
    let client = served.client_builder().max_workers(1).build().unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let tasks = (0..4_i64).map(|task| {
        let (client, stop) = (client.clone(), stop.clone());
        tokio::spawn(async move {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let checkout = client.checkout();
                for _ in 0..3 {
                    assert_eq!(checkout.call::<i64>("add", (task, 1)).await.unwrap(), task + 1);
                }
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let options = node_options(&served.nats, "two").sessions(4);
    let _other = RunningNode::start(builder(&served.folder, options)).await;
    wait_for_nodes(&served.nats, 2).await;
    served.gateway.stop();
    let ended = tokio::time::timeout(Duration::from_secs(60), &mut served.gateway.task).await;
    ended.expect("the connection is never unused").unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
});

trial!(a_node_that_has_lost_nats_ends_all_the_same, async || {
    let (folder, mut nats) = (tempfile::tempdir().unwrap(), NatsServer::start());
    let _server = Server::spawn_with("served", &address_in(&folder)).unwrap();
    // What the node has to say waits in a queue of one while NATS is away.
    let connect = async_nats::ConnectOptions::new().client_capacity(1);
    let options = node_options(&nats, "one").sessions(4).connect_options(connect);
    let builder = builder(&folder, options).shutdown_grace(Duration::ZERO);
    let mut gateway = RunningNode::start(builder).await;
    wait_for_nodes(&nats, 1).await;
    nats.kill();
    gateway.stop();
    gateway.task.await.unwrap();
});
