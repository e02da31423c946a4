//! Calls of any NATS client.

use std::time::Duration;

use serde_json::{Value, json};
use taskfork::Server;

use crate::fixture::{NodeServed, RunningNode, builder, node_options, wait_for_nodes};
use crate::nats_server::NatsServer;
use crate::support::{address_in, trial};

/// The result of a call, or its code and its error.
async fn call(nats: &NatsServer, method: &str, arguments: &str) -> Result<Value, (String, String)> {
    let client = nats.client().await;
    let subject = format!("work.call.{method}");
    let answer = client.request(subject, arguments.to_owned().into()).await.unwrap();
    match answer.headers {
        None => Ok(serde_json::from_slice(&answer.payload).unwrap()),
        Some(headers) => {
            let get = |name: &str| headers.get(name).unwrap().as_str().to_owned();
            Err((get("Nats-Service-Error-Code"), get("Nats-Service-Error")))
        }
    }
}

trial!(results_and_errors_are_told, async || {
    let served = NodeServed::start().await;
    assert_eq!(call(&served.nats, "add", "[1, 2]").await, Ok(json!(3)));
    assert_eq!(call(&served.nats, "work", "[\"x\"]").await, Ok(json!(null)));
    for (method, arguments, code, text) in [
        ("add", "[1]", "400", "argument"),
        ("add", "{}", "400", "array"),
        ("subtract", "[1, 2]", "404", "subtract"),
        ("fail", "", "500", "it failed"),
        ("exit", "[3]", "502", "exit"),
    ] {
        let (told, error) = call(&served.nats, method, arguments).await.unwrap_err();
        assert_eq!(told, code, "{method}: {error}");
        assert!(error.contains(text), "{method}: {error}");
    }
});

trial!(a_call_that_takes_too_long_ends_with_its_worker, async || {
    let (folder, nats) = (tempfile::tempdir().unwrap(), NatsServer::start());
    let server = Server::spawn_with("served", &address_in(&folder)).unwrap();
    let options = node_options(&nats, "one").call_timeout(Duration::from_millis(300));
    let _gateway = RunningNode::start(builder(&folder, options)).await;
    wait_for_nodes(&nats, 1).await;
    let (code, text) = call(&nats, "hang", "").await.unwrap_err();
    assert_eq!(code, "504", "{text}");
    while !server.status().unwrap().deaths.contains_key("timed_out") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
});

trial!(the_server_sees_them_as_calls_of_a_remote_client, async || {
    let served = NodeServed::start().await;
    let marker = served.folder.path().join("runs");
    let client = served.nats.client().await;
    let arguments = json!([marker]).to_string();
    let hanging = tokio::spawn(async move {
        client.request("work.call.hang_after", arguments.into()).await.is_ok()
    });
    crate::support::until("the call", || marker.exists()).await;
    let status = served.server.status().unwrap();
    let peer = status.workers[0].peer.as_ref().unwrap();
    assert_eq!(peer.to_string(), "NATS client named `calls in JSON`");
    hanging.abort();
});

trial!(a_server_that_has_gone_is_told, async || {
    let (folder, nats) = (tempfile::tempdir().unwrap(), NatsServer::start());
    let server = Server::spawn_with("served", &address_in(&folder)).unwrap();
    let options = node_options(&nats, "one").call_timeout(Duration::from_millis(500));
    let _gateway = RunningNode::start(builder(&folder, options)).await;
    wait_for_nodes(&nats, 1).await;
    // It accepts connections, and forks no worker.
    crate::support::signal(server.pid(), rustix::process::Signal::STOP);
    let (code, text) = call(&nats, "add", "[1, 2]").await.unwrap_err();
    assert_eq!(code, "503", "{text}");
    crate::support::signal(server.pid(), rustix::process::Signal::CONT);
});
