//! Labels and keys: which nodes a client gets workers of.

use taskfork::client::ConfigError;
use taskfork::{Client, Server};
use taskfork_nats::{Label, Node};

use crate::fixture::{Fleet, node, reason};
use crate::support::{address_in, is_gone, trial, until};

/// Nodes with servers of their own, and the name of the node of a worker.
struct Nodes {
    fleet: Fleet,
    servers: Vec<(String, taskfork::server::ServerHandle, tempfile::TempDir)>,
    nodes: Vec<Node>,
}

impl Nodes {
    async fn start(nodes: &[(&str, &[&str], usize)]) -> Self {
        let mut started = Self { fleet: Fleet::start(), servers: Vec::new(), nodes: Vec::new() };
        for (name, labels, sessions) in nodes {
            let folder = tempfile::tempdir().unwrap();
            let server = Server::spawn_with("served", &address_in(&folder)).unwrap();
            let socket = server.address().path().unwrap().to_str().unwrap().to_owned();
            let labels: Vec<Label> = labels.iter().map(|label| label.parse().unwrap()).collect();
            let builder = node(name, socket, *sessions).labels(&labels);
            started.nodes.push(builder.start(&started.fleet.nats.url()).await.unwrap());
            started.servers.push(((*name).to_owned(), server, folder));
        }
        started
    }

    /// The node of the worker that answers a call.
    async fn of_call(&self, client: &Client) -> String {
        let checkout = client.checkout();
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        let workers = |server: &taskfork::server::ServerHandle| {
            let status = server.status().unwrap();
            status.workers.iter().any(|worker| worker.pid == pid)
        };
        let found = self.servers.iter().find(|(_, server, _)| workers(server));
        found.unwrap().0.clone()
    }
}

trial!(a_client_with_labels_gets_workers_of_nodes_that_have_them, async || {
    let nodes: [(&str, &[&str], usize); 3] =
        [("plain", &[], 8), ("gpu", &["gpu=a100"], 8), ("far", &["gpu=a100", "zone=b"], 8)];
    let nodes = Nodes::start(&nodes).await;
    let client = nodes.fleet.client();
    let far = client.with_labels(["zone=b", "gpu=a100"]).unwrap();
    for _ in 0..3 {
        assert_eq!(nodes.of_call(&far).await, "far");
    }
    let gpu = client.with_labels(["gpu=a100"]).unwrap();
    assert_ne!(nodes.of_call(&gpu).await, "plain");
    // Labels add up.
    let also_far = gpu.with_labels(["zone=b"]).unwrap();
    assert_eq!(nodes.of_call(&also_far).await, "far");
});

trial!(an_idle_worker_of_another_node_serves_no_checkout_with_labels, async || {
    let nodes = Nodes::start(&[("plain", &[], 8)]).await;
    let client = nodes.fleet.client();
    // It has an idle worker now.
    assert_eq!(nodes.of_call(&client).await, "plain");
    let text = reason(&client.with_labels(["gpu=a100"]).unwrap()).await;
    assert!(text.contains("no node of the service work with gpu=a100 has room now"), "{text}");
});

trial!(a_checkout_with_labels_waits_for_a_node_that_has_them, async || {
    let nodes: [(&str, &[&str], usize); 2] = [("plain", &[], 8), ("gpu", &["gpu=a100"], 1)];
    let nodes = Nodes::start(&nodes).await;
    let client = nodes.fleet.client().with_labels(["gpu=a100"]).unwrap();
    let checkout = client.checkout();
    checkout.ready().await.unwrap();
    let waiting = tokio::spawn(client.call::<i64>("add", (1, 2)));
    until("the wait", || client.stats().unreachable.is_some()).await;
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    drop(checkout);
    assert_eq!(waiting.await.unwrap().unwrap(), 3);
});

trial!(calls_with_a_key_reach_one_node_and_another_when_that_is_full, async || {
    let nodes: [(&str, &[&str], usize); 3] = [("one", &[], 2), ("two", &[], 2), ("six", &[], 2)];
    let nodes = Nodes::start(&nodes).await;
    let first = nodes.of_call(&nodes.fleet.client().by_key("tenant-7").unwrap()).await;
    // Other clients find the same node, and each has a worker of its own.
    for _ in 0..3 {
        let client = nodes.fleet.client();
        assert_eq!(nodes.of_call(&client.by_key("tenant-7").unwrap()).await, first);
        client.close().await;
    }
    let home = nodes.nodes.iter().find(|node| node.name() == first).unwrap();
    home.wait_for_free(2).await;
    let client = nodes.fleet.client().by_key("tenant-7").unwrap();
    let mut held = Vec::new();
    // A node that has just got room may not be asked yet, so a worker of another one is possible.
    while home.free() > 0 {
        let other = nodes.fleet.client().by_key("tenant-7").unwrap().checkout();
        other.ready().await.unwrap();
        held.push(other);
    }
    assert_ne!(nodes.of_call(&client).await, first);
});

trial!(the_workers_of_a_client_with_labels_end_with_it, async || {
    let nodes = Nodes::start(&[("gpu", &["gpu=a100"], 1)]).await;
    let client = nodes.fleet.client();
    let gpu = client.with_labels(["gpu=a100"]).unwrap();
    let pid: u32 = gpu.call("pid", ()).await.unwrap();
    drop(gpu);
    until("the worker's end", || is_gone(pid)).await;
    nodes.nodes[0].wait_for_free(1).await;
});

trial!(labels_and_keys_need_a_service, async || {
    let client = Client::builder().address("unix:/nowhere").min_workers(0).build().unwrap();
    for error in [client.with_labels(["a=b"]).unwrap_err(), client.by_key("k").unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("unix:/nowhere") && text.contains("nats://HOST:PORT"), "{text}");
    }
    let fleet = Fleet::start();
    let client = fleet.client();
    let wrong = [
        (client.with_labels(["gpu"]), "KEY=VALUE"),
        (client.with_labels(["a b=c"]), "letters, digits"),
        (client.with_labels(["a=1", "b=1", "c=1", "d=1", "e=1", "f=1"]), "at most 5"),
    ];
    for (outcome, why) in wrong {
        let error = outcome.unwrap_err();
        assert!(matches!(error, ConfigError::Option { option: "with_labels", .. }));
        assert!(error.to_string().contains(why), "{error}");
    }
});
