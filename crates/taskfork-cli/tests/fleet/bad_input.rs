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

#[test]
fn wrong_options_end_the_command_before_anything_serves() {
    let nats = NatsServer::start();
    let url = nats.url();
    for (url, node, more, expected) in [
        ("http://localhost", "one", &[][..], "--nats: \"http://localhost\" is not the address"),
        (&url, "a.b", &[], "--node: \"a.b\" cannot be the name of a node"),
        (&url, "a b", &[], "letters, digits"),
        (&url, "one", &["--label", "gpu"], "--label: \"gpu\" cannot be the name of a label"),
        (&url, "one", &["--service-version", "1"], "three numbers"),
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
