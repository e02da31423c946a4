//! `taskfork dashboard`: the page of a real server, and mistakes in its options. The crate of the dashboard tests the page.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]
#![cfg(feature = "dashboard")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use common::{Server, taskfork, until};
use predicates::str::contains;
use rcgen::{CertificateParams, KeyPair};

/// A dashboard that ends with the test.
struct Dashboard {
    program: Child,
    address: String,
}

impl Dashboard {
    fn start(arguments: &[&str]) -> Self {
        Self::start_with_log(arguments, Stdio::null())
    }

    fn start_with_log(arguments: &[&str], log: Stdio) -> Self {
        common::reset_sighup();
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        command.args(["dashboard", "--listen", "127.0.0.1:0"]).args(arguments);
        let mut program = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().split("://").nth(1).unwrap().trim_end_matches('/').to_owned();
        Self { program, address }
    }

    fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let host = &self.address;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.program.kill().unwrap();
        self.program.wait().unwrap();
    }
}

#[test]
fn a_server_is_shown_under_the_name_of_its_socket() {
    let server = Server::start(&[]);
    let dashboard = Dashboard::start(&[&server.address()]);
    until("the server to be shown", || {
        dashboard.get("/metrics", "").contains("taskfork_server_up{pool=\"s\"} 1")
    });
    assert!(dashboard.get("/readyz", "").starts_with("HTTP/1.1 200"));
    assert!(dashboard.get("/", "").contains("<title>taskfork</title>"));
}

#[test]
fn a_token_is_read_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "a token of some length\n").unwrap();
    let socket = folder.path().join("none").display().to_string();
    let file = file.display().to_string();
    let dashboard = Dashboard::start(&[&socket, "--token-file", &file]);
    assert!(dashboard.get("/metrics", "").starts_with("HTTP/1.1 401"));
    let answer = dashboard.get("/metrics", "Authorization: Bearer a token of some length\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    std::fs::write(&file, "short").unwrap();
    let fails = |arguments: &[&str], texts: &[&str]| {
        let mut failed =
            taskfork().arg("dashboard").arg(&socket).args(arguments).assert().failure();
        for text in texts {
            failed = failed.stderr(contains(*text));
        }
    };
    fails(&["--token-file", &file], &["the token cannot be used", "openssl rand"]);
    fails(&["--token-file", "/none"], &["the token in /none cannot be read", "No such file"]);
    fails(&["--listen", "0.0.0.0:0"], &["without a token", "--token-file"]);
    fails(&["--allow-actions"], &["--token-file"]);
}

#[test]
fn an_address_in_use_says_what_to_do() {
    let used = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = used.local_addr().unwrap().to_string();
    taskfork()
        .args(["dashboard", "/none/s", "--listen", &address])
        .assert()
        .code(2)
        .stderr(contains("cannot listen at 127.0.0.1:"))
        .stderr(contains("choose another port with --listen"));
    taskfork()
        .args(["dashboard", "tcp:localhost:1"])
        .assert()
        .failure()
        .stderr(contains("tells of itself only at a status socket"));
}

#[test]
fn a_status_socket_that_may_not_be_read_says_who_may() {
    let server = Server::start(&[]);
    let socket = server.folder.path().join("s.status");
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o000)).unwrap();
    // Without these capabilities, the mode of a file holds for root too.
    let mut command = match rustix::process::geteuid().is_root() {
        true => Command::new("setpriv"),
        false => Command::new("env"),
    };
    if rustix::process::geteuid().is_root() {
        command.arg("--bounding-set=-dac_override,-dac_read_search");
    }
    command.arg(env!("CARGO_BIN_EXE_taskfork")).args(["dashboard", &server.address()]);
    command.args(["--listen", "127.0.0.1:0"]);
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("Permission denied"), "{said}");
    assert!(said.contains("as the user of the server"), "{said}");
}

#[test]
fn certificates_are_read_again_at_sighup_and_wrong_ones_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(file("cert.pem"), own.pem()).unwrap();
    std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
    let [socket, cert, key] =
        ["none", "cert.pem", "key.pem"].map(|it| file(it).display().to_string());
    let log = std::fs::File::create(file("log")).unwrap();
    let options = [&*socket, "--cert", &cert, "--key", &key];
    let dashboard = Dashboard::start_with_log(&options, log.into());
    let ask = || {
        let mut command = Command::new("curl");
        command.args(["--silent", "--max-time", "30", "--cacert", &cert]);
        let out = command.arg(format!("https://{}/healthz", dashboard.address)).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(ask(), "this dashboard works\n");
    let pid = rustix::process::Pid::from_raw(dashboard.program.id().cast_signed()).unwrap();
    std::fs::write(&key, "no key").unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    until("the mistake to be told", || {
        let log = std::fs::read_to_string(file("log")).unwrap();
        // A change that is noticed without the signal is a warning.
        log.lines().any(|line| line.contains("ERROR") && line.contains("it has no private key"))
    });
    assert_eq!(ask(), "this dashboard works\n");

    let fails = |arguments: &[&str], text: &str| {
        taskfork()
            .arg("dashboard")
            .arg(&socket)
            .args(arguments)
            .assert()
            .code(2)
            .stderr(contains(text));
    };
    fails(&["--cert", &cert, "--key", &key], "--key must be a file in PEM");
    fails(&["--cert", "/none", "--key", &key], "the file /none of the dashboard's certificate");
    fails(&["--cert", &cert], "--key");
    fails(&["--client-ca", &cert], "--cert");
}
