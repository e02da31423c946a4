//! Calls of nodes, and their status.

use futures_util::StreamExt;
use serde_json::json;

use crate::common::{taskfork, until};
use crate::nats_server::NatsServer;
use crate::node::{self, address, start, status};

fn call(nats: &NatsServer, method: &str, arguments: &str) -> async_nats::Message {
    request(nats, &format!("work.call.{method}"), arguments)
}

fn request(nats: &NatsServer, subject: &str, payload: &str) -> async_nats::Message {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = nats.client().await;
        client.request(subject.to_owned(), payload.to_owned().into()).await.unwrap()
    })
}

#[test]
fn a_node_tells_the_methods_that_its_options_name() {
    let nats = NatsServer::start();
    let _node = start(&nats, "one", &["--method", "echo", "--method", "pid"]);
    let answer = request(&nats, "$SRV.INFO.work", "");
    let info: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(info["metadata"]["methods"], "echo,pid", "{info}");
}

#[test]
fn clients_and_programs_call_a_node() {
    let nats = NatsServer::start();
    let _node = start(&nats, "one", &["--max-workers", "3"]);
    let output = taskfork().args(["call", &address(&nats), "echo", "\"hello\""]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "\"hello\"\n", "{output:?}");

    assert_eq!(call(&nats, "echo", "[\"hello\"]").payload, "\"hello\"");
    let headers = call(&nats, "nothing", "").headers.unwrap();
    assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "500");
    assert!(headers.get("Nats-Service-Error").unwrap().as_str().contains("no method nothing"));
}

#[test]
fn commands_that_end_leave_no_session_behind() {
    let nats = NatsServer::start();
    let _node = start(&nats, "one", &[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stranger = nats.client().await;
        let mut messages = stranger.subscribe("_INBOX.>").await.unwrap();
        stranger.flush().await.unwrap();
        for words in ["call ADDRESS echo 7", "bench ADDRESS echo 7 --calls 3 --concurrency 1"] {
            let words = words.replace("ADDRESS", &address(&nats));
            let run = move || taskfork().args(words.split(' ')).output().unwrap();
            let output = tokio::task::spawn_blocking(run).await.unwrap();
            assert!(output.status.success(), "{output:?}");
            // Either the client says that its session is closed, or the node notices its silence.
            let end = loop {
                let message = messages.next().await.unwrap();
                if message.payload.first() == Some(&5) {
                    break message.payload;
                }
            };
            assert_eq!(end[9], 0, "{end:?}");
        }
    });
}

#[test]
fn the_gateway_of_a_node_is_confined_and_finds_names() {
    let nats = NatsServer::start();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("nats://localhost:{}", nats.port);
    let command = node::command(folder.path(), &url, "one", &[]);
    let server = crate::common::Server::run(folder, command);
    until("the node", || server.log().contains("the node one serves work"));
    let children = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let command_line = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let is_gateway =
        |pid: &&String| String::from_utf8_lossy(&command_line(pid)).contains("--part=gateway");
    let children = children(server.program.id());
    let gateway = children.iter().find(is_gateway).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{gateway}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
}

#[test]
fn nodes_are_rows_of_the_status() {
    let nats = NatsServer::start();
    let _one = start(&nats, "one", &["--max-workers", "3", "--label", "gpu=a100"]);
    let _two = start(&nats, "two", &["--max-workers", "5", "--service-version", "1.2.3"]);
    let nodes = status(&nats, &[]);
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
    assert_eq!((&nodes[0]["node"], &nodes[1]["node"]), (&json!("one"), &json!("two")));
    assert_eq!((&nodes[0]["free"], &nodes[1]["sessions"]), (&json!(3), &json!(5)));
    assert_eq!(
        (&nodes[0]["labels"], &nodes[1]["version"]),
        (&json!(["gpu=a100"]), &json!("1.2.3"))
    );
    assert_eq!(nodes[1]["details"]["max_workers"], json!(5));
    assert!(nodes[0]["details"].get("server").is_none());

    let full = status(&nats, &["--workers"]);
    assert!(full[0]["details"]["server"]["workers"].is_array(), "{full}");

    for words in [vec!["status"], vec!["top", "--once"], vec!["status", "--workers"]] {
        let output = taskfork().args(&words).arg(address(&nats)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        for part in ["node", "one", "two", "1.2.3", "0/3", "gpu=a100", "serving"] {
            assert!(text.contains(part), "{words:?}: {part}: {text}");
        }
    }
    let metrics = taskfork().args(["status", "--metrics", &address(&nats)]).output().unwrap();
    assert_eq!(metrics.status.code(), Some(2), "{metrics:?}");
}

#[test]
fn the_permissions_of_the_guide_are_enough() {
    let users = r#"authorization { users: [
        { user: node, password: p, permissions: {
            publish: ["_INBOX.>", "work.node.*", "work.load", "work.acquire.>"], subscribe: ["work.>", "$SRV.>", "_INBOX.>"] } },
        { user: client, password: p, permissions: {
            publish: ["work.>", "$SRV.INFO.work", "_INBOX.>"], subscribe: ["_INBOX.>"] } },
    ] }
    "#;
    let nats = NatsServer::with_config(users);
    let url = |user: &str| format!("nats://{user}:p@127.0.0.1:{}", nats.port);
    let folder = tempfile::tempdir().unwrap();
    let command = node::command(folder.path(), &url("node"), "one", &[]);
    let server = crate::common::Server::run(folder, command);
    until("the node", || server.log().contains("the node one serves work"));
    let client = format!("{}/work", url("client"));
    let output = taskfork().args(["call", &client, "echo", "7"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "7\n", "{output:?}");
    let output = taskfork().args(["status", &client]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("serving"), "{output:?}");
    let log = server.log();
    assert!(!log.to_lowercase().contains("permissions violation"), "{log}");
}

#[test]
fn a_pool_of_a_file_is_a_node_that_gets_new_labels_at_a_reload() {
    let nats = NatsServer::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pools.toml");
    let write = |zone: &str| {
        let text = format!(
            "[pool.pictures]\nlisten = {:?}\nprotocol = \"json\"\ncommand = [{:?}]\nnats = {:?}\n\
             service = \"work\"\nnode = \"one\"\nlabel = [\"zone={zone}\"]\n",
            crate::common::address(folder.path()),
            crate::common::worker(),
            nats.url(),
        );
        std::fs::write(&file, text).unwrap();
    };
    write("a");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--config"]).arg(&file);
    let server = crate::common::Server::run(tempfile::tempdir().unwrap(), command);
    until("the node", || server.log().contains("the node one serves work"));
    assert_eq!(status(&nats, &[])[0]["labels"], json!(["zone=a"]));
    write("b");
    let pid = rustix::process::Pid::from_raw(server.program.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    until("the new label", || {
        let output = taskfork().args(["status", &address(&nats), "--json"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("zone=b")
    });
    let output = taskfork().args(["call", &address(&nats), "echo", "7"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "7\n", "{output:?}");
}

#[test]
fn a_confined_node_connects_by_tls() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let [ca, key_file] = ["ca.pem", "key.pem"].map(|name| folder.path().join(name));
    std::fs::write(&ca, certificate.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let tls = format!("tls {{ cert_file: {ca:?}, key_file: {key_file:?} }}\n");
    let nats = NatsServer::with_config(&tls);
    let (url, ca) = (format!("tls://localhost:{}", nats.port), ca.to_str().unwrap());
    let mut command = node::command(folder.path(), &url, "one", &["--nats-ca", ca]);
    command.env_remove("SSL_CERT_FILE");
    let server = crate::common::Server::run(tempfile::tempdir().unwrap(), command);
    until("the node", || server.log().contains("the node one serves work"));
    let address = format!("nats+tls://localhost:{}/work", nats.port);
    let output = taskfork().args(["status", &address, "--nats-ca", ca]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("serving"), "{output:?}");
    // Without the authority it is another issuer.
    let output = taskfork().args(["status", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--nats-ca"), "{output:?}");
}
