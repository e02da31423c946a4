//! Calls of nodes with labels, and of the node of a key.

use std::process::Output;

use serde_json::Value;

use crate::common::taskfork;
use crate::nats_server::NatsServer;
use crate::node::{address, start, status};

fn run(words: &[&str]) -> Output {
    taskfork().args(words).output().unwrap()
}

/// How many workers each node has had. A command leaves its worker when it ends.
fn workers(nats: &NatsServer) -> [u64; 2] {
    let nodes = status(nats, &[]);
    [0, 1].map(|index| nodes[index]["details"]["forked"].as_u64().unwrap())
}

#[test]
fn a_call_with_labels_reaches_a_node_that_has_them() {
    let nats = NatsServer::start();
    let _plain = start(&nats, "a", &[]);
    let _labelled = start(&nats, "b", &["--label", "gpu=a100", "--label", "zone=1"]);
    let address = address(&nats);
    for _ in 0..4 {
        let labels = ["--label", "zone=1", "--label", "gpu=a100"];
        let output = run(&[&["call", &address, "echo", "7"], &labels[..]].concat());
        assert_eq!(String::from_utf8_lossy(&output.stdout), "7\n", "{output:?}");
    }
    let load = ["bench", &address, "echo", "7", "--label", "gpu=a100", "--calls", "10", "--json"];
    let output = run(&load);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&result["calls"], &result["failed"]), (&10.into(), &0.into()), "{output:?}");
    let [plain, labelled] = workers(&nats);
    assert!(plain == 0 && labelled >= 5, "{plain} and {labelled} workers");

    let output = run(&["call", &address, "echo", "7", "--label", "gpu=h100", "--timeout", "1s"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("no node of the service work with gpu=h100 has room now"), "{text}");
}

#[test]
fn calls_with_a_key_reach_one_node() {
    let nats = NatsServer::start();
    let _nodes = ["a", "b"].map(|node| start(&nats, node, &[]));
    let address = address(&nats);
    for _ in 0..4 {
        let output = run(&["call", &address, "echo", "7", "--by-key", "tenant-7"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "7\n", "{output:?}");
    }
    let mut workers = workers(&nats);
    workers.sort_unstable();
    assert_eq!(workers, [0, 4]);
}

#[test]
fn a_choice_that_cannot_be_made_is_told() {
    let nats = NatsServer::start();
    let _node = start(&nats, "a", &[]);
    let address = address(&nats);
    for (words, code, expected) in [
        (&["unix:/nowhere", "echo", "--label", "gpu=a100"][..], 2, "--label: the server at"),
        (&["unix:/nowhere", "echo", "--by-key", "k"], 2, "--by-key: the server at"),
        (&["unix:/nowhere", "echo", "--route", "direct"], 2, "--route: the client has no address"),
        (
            &[&address, "echo", "--label", "gpu"],
            2,
            "--label: \"gpu\" cannot be the name of a label",
        ),
        (&[&address, "echo", "--label", "a b=c"], 2, "letters, digits"),
        // The node has no TLS.
        (&[&address, "echo", "--route", "direct", "--timeout", "1s"], 3, "the node a refused"),
    ] {
        let output = run(&[&["call"], words].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        assert!(text.contains(expected), "{words:?}: {text}");
    }
    let output = run(&["call", &address, "echo", "7", "--route", "relayed"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "7\n", "{output:?}");
}
