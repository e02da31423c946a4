//! Servers in test programs without a `main` of their own: `taskfork::test_support!` under the standard test harness.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

use std::process::{Command, Output};

use taskfork::server::Entry;
use taskfork::{Client, Methods, Server, ServerBuilder, ServerError, blocking};

fn adder(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("add", |a: i64, b: i64| Ok(a + b))
        .function("pid", || Ok(std::process::id()));
    server.interface(methods).run()
}

fn greeter(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .interface(Methods::new().function("greet", |name: String| Ok(format!("hello {name}"))))
        .run()
}

taskfork::test_support!(("adder", adder), ("twice", adder));

mod another_module {
    taskfork::test_support!(("greeter", super::greeter as super::Entry), ("twice", super::greeter));
}

fn client(server: &taskfork::server::ServerHandle) -> blocking::Client {
    Client::builder().address(server.address()).build_blocking().unwrap()
}

#[test]
fn a_test_starts_servers_side_by_side() {
    let (one, other) = (Server::spawn("adder").unwrap(), Server::spawn("adder").unwrap());
    let third = Server::spawn("greeter").unwrap();
    let pids: Vec<u32> =
        [&one, &other].map(|server| client(server).call("pid", ()).unwrap()).into();
    assert_ne!(pids[0], pids[1]);
    assert!(!pids.contains(&std::process::id()));
    let greeting: String = client(&third).call("greet", ("you",)).unwrap();
    assert_eq!(greeting, "hello you");
}

#[tokio::test]
async fn an_async_test_starts_a_server() {
    let server = Server::spawn("adder").unwrap();
    let client = Client::builder().address(server.address()).build().unwrap();
    let sum: i64 = client.call("add", (2, 3)).await.unwrap();
    assert_eq!(sum, 5);
}

#[test]
fn a_name_that_is_registered_twice_is_an_error() {
    let error = Server::spawn("twice").unwrap_err();
    assert!(matches!(&error, ServerError::AmbiguousEntry { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "`taskfork::test_support!` has a server `twice` in test_programs and in \
         test_programs::another_module of this program: give each a name of its own"
    );
}

#[test]
fn a_name_that_is_not_registered_is_an_error_that_names_the_macro() {
    let error = Server::spawn("unknown").unwrap_err().to_string();
    assert!(error.contains("taskfork::test_support!((\"unknown\", …));"), "{error}");
}

/// Set in a copy of this program, whose test then ends in another way.
const ENDING: &str = "TASKFORK_TEST_ENDING";

/// The test that ends as the variable says. Without it, it does nothing.
#[test]
fn ends_as_told() {
    let Ok(ending) = std::env::var(ENDING) else { return };
    let server = Server::spawn("adder").unwrap();
    let client = client(&server);
    let checkout = client.checkout();
    let _: u32 = checkout.call("pid", ()).unwrap();
    println!("the worker has answered");
    match &*ending {
        "panic" => panic!("as told"),
        "abort" => std::process::abort(),
        other => std::process::exit(other.parse().unwrap()),
    }
}

fn run_ending(ending: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ends_as_told", "--nocapture"])
        .env(ENDING, ending)
        .output()
        .unwrap()
}

/// Server and workers have the program's standard output. So `output` waits until they have ended too.
#[test]
fn a_test_program_leaves_no_process_behind_however_it_ends() {
    for ending in ["panic", "abort", "3"] {
        let output = run_ending(ending);
        assert!(!output.status.success(), "{ending}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("the worker has answered"), "{ending}: {output:?}");
    }
}
