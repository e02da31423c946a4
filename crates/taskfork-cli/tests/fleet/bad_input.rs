//! What is wrong is told at the start, with what to do.

use std::process::{Command, Output, Stdio};

use crate::common::{Server, taskfork, until};
use crate::nats_server::NatsServer;
use crate::node::{self, address, start};

fn assert_fails(output: &Output, code: i32, expected: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(expected), "{expected}: {text}");
}

/// The output of a node that must not start.
fn refused(url: &str, node: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = node::command(folder.path(), url, node, more);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(!folder.path().join("s").exists(), "it served");
    output
}

/// The output of a call that must fail.
fn call(address: &str, more: &[&str]) -> Output {
    let mut call = taskfork();
    call.args(["call", address, "echo", "7", "--timeout", "1500ms"]).args(more).output().unwrap()
}

/// Somebody has answered, and the error does not say that nobody has.
fn assert_is_refusal(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("no server answered") && !text.contains("start the server"), "{text}");
}

#[test]
fn the_reason_of_a_call_without_a_node_is_not_that_nobody_answers() {
    let nats = NatsServer::start();
    let _node = start(&nats, "one", &["--label", "gpu=a100"]);
    for (more, expected) in [
        (&["--label", "gpu=h100"][..], "no worker came from nats://"),
        (&["--label", "gpu=h100"], "or none has these labels"),
        (&["--route", "direct"], "no worker came from nats://"),
    ] {
        let output = call(&address(&nats), more);
        assert_fails(&output, 3, expected);
        assert_is_refusal(&output);
    }
}

#[test]
fn wrong_options_end_the_command_before_anything_serves() {
    let nats = NatsServer::start();
    let url = nats.url();
    let (path, tls) = (format!("{url}/adder"), url.replace("nats:", "tls:"));
    for (url, node, more, expected) in [
        ("http://localhost", "one", &[][..], "--nats: \"http://localhost\" is not the address"),
        (&url, "a.b", &[], "--node: \"a.b\" cannot be the name of a node"),
        (&url, "a b", &[], "letters, digits"),
        (&url, "one", &["--label", "gpu"], "--label: \"gpu\" cannot be the name of a label"),
        (
            &url,
            "one",
            &["--service-version", "1"],
            "--service-version: \"1\" cannot be the version of",
        ),
        (&url, "one", &["--method", "a b"], "--method: \"a b\" cannot be the name of a method"),
        (&path, "one", &[], "it has something behind the port"),
        (&tls, "one", &[], "does not speak TLS at this port: write nats://"),
        (&url, "one", &["--direct", "h:1"], "--direct cannot be so: without --tls the gateway"),
        (&url, "one", &["--nats-cert", "c"], "--nats-cert needs --nats-key"),
        (&url, "one", &["--creds", "/does/not/exist"], "/does/not/exist cannot be used"),
        (
            &url,
            "one",
            &[
                "--label", "a=1", "--label", "b=1", "--label", "c=1", "--label", "d=1", "--label",
                "e=1", "--label", "f=1",
            ],
            "at most 5",
        ),
    ] {
        assert_fails(&refused(url, node, more), 2, expected);
    }
    let serve = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        command.arg("serve").args(words).args(["--", "cat"]).output().unwrap()
    };
    assert_fails(
        &serve(&["--listen", "unix:/nowhere/s", "--nats", &url]),
        2,
        "--nats needs --service",
    );
    assert_fails(
        &serve(&["--listen", "unix:/nowhere/s", "--node", "n"]),
        2,
        "no effect without --nats",
    );
    let service = ["--nats", &url, "--service", "work"];
    assert_fails(&serve(&service), 2, "--nats needs a server at a unix socket");
    let dotted = ["--listen", "unix:/nowhere/s", "--nats", &url, "--service", "work.er"];
    assert_fails(&serve(&dotted), 2, "--service: \"work.er\" cannot be the name of a service");
}

#[test]
fn refused_credentials_are_told() {
    let nats = NatsServer::with_config("authorization { user: u, password: p }\n");
    assert_fails(&refused(&nats.url(), "one", &[]), 2, "refuses the credentials");
    let wrong = format!("nats://u:secret@127.0.0.1:{}", nats.port);
    let output = refused(&wrong, "one", &[]);
    assert_fails(&output, 2, "refuses the credentials");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"), "{output:?}");
    let output = taskfork().args(["status", &address(&nats)]).output().unwrap();
    assert_fails(&output, 2, "refuses the credentials");
    let output = call(&address(&nats), &[]);
    assert_fails(&output, 3, "--creds is the file");
    assert_is_refusal(&output);
}

/// A NATS server with a user that may do what the guide says of nodes, and others that may do less.
fn with_permissions() -> NatsServer {
    let users = [
        (
            "node",
            r#"["_INBOX.>", "work.node.*", "work.load", "work.acquire.>"]"#,
            r#"["work.>", "$SRV.>", "_INBOX.>"]"#,
        ),
        ("deaf", r#"[">"]"#, r#"["_INBOX.>"]"#),
        ("mute", r#"["work.node.*"]"#, r#"[">"]"#),
        ("client", r#"["work.>", "$SRV.INFO.work", "_INBOX.>"]"#, r#"["_INBOX.>"]"#),
        ("nopub", r#"["foo", "_INBOX.>"]"#, r#"["_INBOX.>"]"#),
        ("nosub", r#"[">"]"#, r#"["foo"]"#),
    ];
    let users = users.map(|(name, publish, subscribe)| {
        format!(
            "{{ user: {name}, password: p, \
             permissions: {{ publish: {publish}, subscribe: {subscribe} }} }}\n"
        )
    });
    NatsServer::with_config(&format!("authorization {{ users: [ {} ] }}\n", users.concat()))
}

#[test]
fn a_node_without_permissions_does_not_start() {
    let nats = with_permissions();
    let url = |user: &str| format!("nats://{user}:p@127.0.0.1:{}", nats.port);
    let refuses = "--nats: the NATS server does not permit this to";
    let deaf = refused(&url("deaf"), "one", &[]);
    assert_fails(&deaf, 2, &format!("{refuses} subscribe to work.acquire.any"));
    assert_fails(&deaf, 2, "subscribes to SERVICE.>");
    let mute = refused(&url("mute"), "one", &[]);
    assert_fails(&mute, 2, &format!("{refuses} publish to _INBOX.>, publish to work.acquire.node"));
}

#[test]
fn the_documented_permissions_are_enough_and_clients_without_them_are_told() {
    let nats = with_permissions();
    let url = |user: &str| format!("nats://{user}:p@127.0.0.1:{}", nats.port);
    let folder = tempfile::tempdir().unwrap();
    let node = node::command(folder.path(), &url("node"), "one", &["--label", "gpu=a100"]);
    let server = Server::run(folder, node);
    until("the node", || server.log().contains("the node one serves work"));
    assert!(!server.log().contains("does not permit"), "{}", server.log());

    let status =
        |user: &str| taskfork().args(["status", &format!("{}/work", url(user))]).output().unwrap();
    let call = |user: &str| {
        let mut call = taskfork();
        call.args(["call", &format!("{}/work", url(user)), "echo", "7", "--timeout", "8s"]);
        call.output().unwrap()
    };
    assert!(status("client").status.success() && call("client").status.success());
    let nopub = "answered within 1.0s: the NATS user may not publish to work.status";
    assert_fails(&status("nopub"), 3, nopub);
    assert_fails(&call("nopub"), 3, "the NATS user may not publish to work.acquire.any");
    for output in [status("nosub"), call("nosub")] {
        assert_fails(&output, 3, "the NATS user may not subscribe to _INBOX.>");
    }
}

#[test]
fn short_messages_are_told() {
    let nats = NatsServer::with_config("max_payload: 512\nmax_control_line: 512\n");
    assert_fails(&refused(&nats.url(), "one", &[]), 2, "raise max_payload");
}

#[test]
fn two_nodes_of_one_name_are_told() {
    let nats = NatsServer::start();
    let _first = start(&nats, "one", &[]);
    let output = refused(&nats.url(), "one", &[]);
    assert_fails(&output, 2, "--node: another node of the service work has the name one");
}

#[test]
fn a_node_waits_for_nats_that_is_not_there() {
    let mut nats = NatsServer::start();
    nats.kill();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::run(tempfile::tempdir().unwrap(), {
        let mut command = node::command(folder.path(), &nats.url(), "one", &[]);
        command.stdin(Stdio::null());
        command
    });
    until("the warning", || server.log().contains("no NATS server answers at"));
    nats.start_again();
    until("the node", || server.log().contains("the node one serves work"));
    let output = taskfork().args(["call", &address(&nats), "echo", "7"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "7\n", "{output:?}");
}

#[test]
fn a_service_without_nodes_is_told() {
    let nats = NatsServer::start();
    let output = taskfork().args(["status", &address(&nats)]).output().unwrap();
    assert_fails(&output, 3, "the service work has no node that answers");
    let url = format!("{}/a.b", nats.url());
    let output = taskfork().args(["status", &url]).output().unwrap();
    assert_fails(&output, 2, "letters, digits");
}
