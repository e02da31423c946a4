//! `taskfork serve --http`: the page of a gateway about its server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]
#![cfg(feature = "dashboard")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Server, taskfork, until};
use predicates::str::contains;
use rustix::process::{Pid, Signal, kill_process};

const TOKEN: &str = "a token of some length";

/// A port that the kernel does not give to another socket soon.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The answer to a request, or nothing if nobody listens.
fn ask(port: u16, method: &str, path: &str, headers: &str, body: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    let mut answer = String::new();
    // The process may end meanwhile.
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
    answer
}

fn get(port: u16, path: &str) -> String {
    ask(port, "GET", path, "", "")
}

fn has_line(port: u16, line: &str) -> bool {
    get(port, "/metrics").lines().any(|it| it == line)
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// The process of the gateway.
fn gateway(server: &Server) -> Option<u32> {
    let own = server.program.id();
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    children.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).find(|pid| {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split('\0').any(|it| it == "--part=gateway")
    })
}

#[test]
fn the_page_shows_the_server_of_the_gateway_and_stays_with_it() {
    let port = free_port();
    let server = Server::start(&["--restart-on-hangup", "--http", &format!("127.0.0.1:{port}")]);
    until("the server to be shown", || has_line(port, "taskfork_server_up{pool=\"s\"} 1"));
    assert!(get(port, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(get(port, "/").contains("<title>taskfork</title>"));
    assert!(
        server.log().contains(&format!("the page of the gateway is at http://127.0.0.1:{port}/"))
    );
    // Without a token, nothing can be done.
    let json = "Content-Type: application/json\r\n";
    assert!(ask(port, "POST", "/api/actions", json, "{}").starts_with("HTTP/1.1 403"));

    let first = gateway(&server).unwrap();
    signal(server.program.id(), Signal::HUP);
    until("a restart", || has_line(port, "taskfork_server_restarts_total{pool=\"s\"} 1"));
    assert_eq!(gateway(&server), Some(first));
    assert!(get(port, "/readyz").starts_with("HTTP/1.1 200"));

    signal(first, Signal::KILL);
    until("another gateway", || {
        gateway(&server).is_some_and(|pid| pid != first)
            && has_line(port, "taskfork_server_up{pool=\"s\"} 1")
    });
}

#[test]
fn workers_are_ended_from_within_the_sandbox_with_a_token_only() {
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    let (address, token) = (format!("127.0.0.1:{port}"), token.display().to_string());
    let options = [
        "--http",
        &address,
        "--http-token-file",
        &token,
        "--http-allow-actions",
        "--spare-workers",
        "1",
    ];
    let server = Server::start(&options);
    let bearer = format!("Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
    let status = || {
        let answer = ask(port, "GET", "/api/status", &bearer, "");
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned();
        serde_json::from_str::<serde_json::Value>(&body).unwrap_or_default()
    };
    until("a worker", || status()["pools"][0]["workers"][0]["pid"].is_u64());
    assert!(get(port, "/api/status").starts_with("HTTP/1.1 401"));
    let worker = status()["pools"][0]["workers"][0].clone();
    let body = serde_json::json!({
        "action": "kill", "pool": "s", "worker": worker["number"], "pid": worker["pid"],
    });
    let json = "Content-Type: application/json\r\n";
    assert!(ask(port, "POST", "/api/actions", json, &body.to_string()).starts_with("HTTP/1.1 401"));
    let answer = ask(port, "POST", "/api/actions", &bearer, &body.to_string());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    until("its death", || server.status()["deaths"]["signaled"].as_u64() == Some(1));
}

#[test]
fn a_page_with_other_options_takes_the_place_of_one_at_the_same_port() {
    let folder = tempfile::tempdir().unwrap();
    let (port, file) = (free_port(), folder.path().join("pools.toml"));
    let token = folder.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    let write = |more: &str| {
        let text = format!(
            "[pool.p]\nlisten = \"{}\"\nprotocol = \"json\"\ncommand = [\"{}\"]\nhttp = \"127.0.0.1:{port}\"\n{more}\n",
            common::address(folder.path()),
            common::worker().display(),
        );
        fs::write(&file, text).unwrap();
    };
    write("");
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--restart-on-hangup", "--config"]).arg(&file);
    let server = Server::run(tempfile::tempdir().unwrap(), command);
    until("the page", || get(port, "/metrics").starts_with("HTTP/1.1 200"));
    write(&format!("http_token_file = \"{}\"", token.display()));
    signal(server.program.id(), Signal::HUP);
    until("the token", || get(port, "/metrics").starts_with("HTTP/1.1 401"));
    // A file that cannot be used changes nothing.
    write("http_token_file = \"/none\"");
    signal(server.program.id(), Signal::HUP);
    until("the mistake to be told", || server.log().contains("the token in /none cannot be read"));
    until("the gateway to go on", || server.log().contains("goes on as it is"));
    assert!(get(port, "/metrics").starts_with("HTTP/1.1 401"));
}

/// Serving ends at once with status 2, and these texts.
fn is_refused(folder: &Path, options: &[&str], texts: &[&str]) {
    let mut command = taskfork();
    command.timeout(Duration::from_secs(30));
    command.args(["serve", "--listen", &common::address(folder)]).args(options);
    let mut refused = command.arg("--").arg(common::worker()).assert().code(2);
    for text in texts {
        refused = refused.stderr(contains(*text));
    }
}

#[test]
fn mistakes_end_the_command_before_anything_serves() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |options: &[&str], texts: &[&str]| is_refused(folder.path(), options, texts);
    let used = TcpListener::bind("127.0.0.1:0").unwrap();
    let used = used.local_addr().unwrap().to_string();
    refused(
        &["--http", &used],
        &["cannot listen at 127.0.0.1:", "choose another port with --http"],
    );
    refused(&["--http", "nowhere"], &["cannot listen at nowhere", "--http is HOST:PORT"]);
    refused(
        &["--http", "0.0.0.0:0"],
        &["without a token or certificates of clients", "--http-token-file", "--http-client-ca"],
    );
    let free = "127.0.0.1:0";
    refused(
        &["--http", free, "--http-allow-actions"],
        &["--http-allow-actions needs --http-token-file"],
    );
    refused(&["--http-no-stacks"], &["--http-no-stacks has no effect without --http"]);
    refused(&["--http", free, "--http-cert", "/none"], &["--http-cert needs --http-key"]);
    refused(
        &["--http", free, "--http-client-ca", "/none"],
        &["--http-client-ca needs --http-cert"],
    );
    refused(
        &["--http", free, "--http-cert", "/none", "--http-key", "/none"],
        &["the file /none of the dashboard's certificate", "--http-cert must be a file in PEM"],
    );
    refused(
        &["--http", free, "--status-socket", "none"],
        &["--http needs the server's status socket"],
    );
    refused(
        &["--http", free, "--gateway-user", "nobody"],
        &["the user `nobody` may not read the status", "taskfork dashboard"],
    );
    let short = folder.path().join("token");
    fs::write(&short, "short").unwrap();
    refused(
        &["--http", free, "--http-token-file", &short.display().to_string()],
        &["the token cannot be used", "give FILE to --http-token-file"],
    );
    assert!(!folder.path().join("s").exists(), "nothing has listened");
}
