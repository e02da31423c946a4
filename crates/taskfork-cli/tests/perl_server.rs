//! Unchanged server programs of AnyEvent::Task as workers of `taskfork serve`, by the module in
//! `examples/perl_server`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use log_defer::Log;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use taskfork::client::Protocol;
use taskfork::error::FatalError;
use taskfork::{Checkout, Client, Error};

/// The modules that a program finds: Perl's own and the replacements, or AnyEvent and JSON::XS as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Modules {
    StandIns,
    Installed,
}

/// The sets of modules that are installed here. In CI all must be.
fn modules() -> Vec<Modules> {
    let found = |module: &str| {
        let tried = Command::new("perl").args([module, "-e", "1"]).stderr(Stdio::null()).status();
        let found = tried.is_ok_and(|status| status.success());
        assert!(found || std::env::var_os("CI").is_none(), "perl {module} does not work");
        if !found {
            eprintln!("not tried: perl {module} does not work");
        }
        found
    };
    let tried = [
        (Modules::StandIns, found("-MJSON::PP")),
        (Modules::Installed, found("-MAnyEvent") && found("-MJSON::XS")),
    ];
    tried.into_iter().filter_map(|(modules, found)| found.then_some(modules)).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn program(name: &str) -> PathBuf {
    match name {
        "ledger" => root().join("examples/perl_server/ledger.pl"),
        name => root().join(format!("crates/taskfork-cli/tests/perl_server/{name}.pl")),
    }
}

/// The command that starts a program with the module. `folder` gets files that hide installed modules.
fn perl(modules: Modules, program: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut words = vec![PathBuf::from("perl")];
    let mut include = |path: &Path| words.push(format!("-I{}", path.display()).into());
    if modules == Modules::StandIns {
        for module in ["JSON", "Cpanel/JSON"] {
            std::fs::create_dir_all(folder.join(module)).unwrap();
            std::fs::write(folder.join(module).join("XS.pm"), "die 'not installed'").unwrap();
        }
        include(folder);
        include(&root().join("examples/perl_server/standin"));
    }
    include(&root().join("examples/perl_server/lib"));
    words.extend(["-MAnyEvent::Task::Server".into(), program.to_owned()]);
    words
}

/// A server that ends with the test.
struct Server {
    folder: tempfile::TempDir,
    program: Child,
}

impl Server {
    fn start(modules: Modules, name: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::File::create(folder.path().join(name)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        command.args(["serve", "--protocol", "json", "--listen", &address(folder.path()), "--"]);
        command.args(perl(modules, &program(name), folder.path()));
        command.env_remove("TASKFORK_SERVER").envs(environment.iter().copied());
        let command = command.stdin(Stdio::piped()).stdout(file("out")).stderr(file("log"));
        let mut program = command.spawn().unwrap();
        // The program's functions must not be able to read this.
        program.stdin.as_mut().unwrap().write_all(b"a line for the server\n").unwrap();
        let server = Self { folder, program };
        until("the server", || server.log().contains("listening at"));
        server
    }

    fn client(&self, protocol: Protocol) -> Client {
        let client = Client::builder().address(address(self.folder.path())).protocol(protocol);
        let client = client.min_workers(0).max_workers(1).reuse_after_error(true);
        client.build().unwrap()
    }

    fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(self.folder.path().join("s")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    fn log(&self) -> String {
        self.read("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.program.id().cast_signed()).unwrap();
        // The test may have ended it.
        let _ = kill_process(pid, Signal::TERM);
        self.program.wait().unwrap();
    }
}

fn address(folder: &Path) -> String {
    format!("unix:{}", folder.join("s").display())
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn message_of(error: &Error) -> String {
    error.to_string().trim_end().to_owned()
}

async fn value(checkout: &Checkout, method: &str, arguments: impl serde::Serialize) -> Value {
    checkout.call(method, (arguments,)).await.unwrap()
}

async fn called(checkout: &Checkout, method: &str) -> Value {
    checkout.call(method, ()).await.unwrap()
}

/// The next message on a socket, or `None` at its end.
fn message(socket: &mut UnixStream) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        let mut byte = [0];
        if socket.read(&mut byte).unwrap() == 0 {
            assert!(text.is_empty(), "it ended in a message: {text:?}");
            return None;
        }
        text.push(byte[0]);
        if byte[0] == b']' && serde_json::from_slice::<Value>(&text).is_ok() {
            return Some(text);
        }
    }
}

/// The messages of a recorded client, and the answers to them.
fn recorded(scenario: &str) -> Vec<Value> {
    let file = root().join(format!("crates/taskfork/tests/recorded/{scenario}.jsonl"));
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The part of an answer that does not depend on times, addresses and texts of modules.
fn comparable(message: &[u8]) -> Value {
    let mut message: Value = serde_json::from_slice(message).unwrap();
    if let Some(text) = message[2].as_str() {
        let text = text.trim_end();
        let begin = ["interface returned object: ", "error JSON encoding interface output: "];
        let begin = begin.iter().find(|begin| text.starts_with(**begin));
        let is_missing =
            text.contains("subroutine reference") || text.starts_with("unknown method");
        message[2] = match begin {
            Some(begin) => json!(begin),
            None if is_missing => json!("no such method"),
            None => json!(text),
        };
    }
    if let Some(log) = message[1].get_mut("ld") {
        let without_time = |line: &Value| line.as_array().unwrap()[1..].to_vec();
        let lines: Vec<_> = log["logs"].as_array().unwrap().iter().map(without_time).collect();
        let timers = log["timers"].as_array().into_iter().flatten();
        let timers: Vec<_> = timers.map(|timer| &timer[0]).collect();
        *log = json!({"logs": lines, "timers": timers, "data": log["data"]});
    }
    message
}

/// Sends the recorded messages of a client of the original.
fn play(server: &Server, scenario: &str) {
    let mut connections = BTreeMap::new();
    for read in recorded(scenario) {
        let number = read["conn"].as_u64().unwrap();
        let socket = connections.entry(number).or_insert_with(|| server.connect());
        // The recording has each byte as a character.
        let bytes = read["bytes"].as_str();
        let bytes = bytes.map(|text| text.chars().map(|octet| octet as u8).collect::<Vec<_>>());
        match (read["from"] == "client", bytes) {
            (true, Some(bytes)) => socket.write_all(&bytes).unwrap(),
            // The server may have closed the connection after its worker's death.
            (true, None) => drop(socket.shutdown(std::net::Shutdown::Write)),
            (false, None) => assert_eq!(message(socket), None, "{scenario}"),
            (false, Some(bytes)) => {
                let [ours, theirs] =
                    [message(socket).unwrap(), bytes].map(|text| comparable(&text));
                match scenario {
                    // The count is a text in one of three answers of the original, as Perl has it.
                    "coderef" => assert_eq!(ours[2]["argv"], theirs[2]["argv"]),
                    _ => assert_eq!(ours, theirs, "{scenario}"),
                }
            }
        }
    }
}

#[test]
fn recorded_clients_are_answered_as_the_original_did() {
    for modules in modules() {
        let server = Server::start(modules, "everything", &[]);
        for scenario in [
            "calls",
            "errors",
            "queue_cleared",
            "log",
            "died",
            "timeout",
            "max_checkouts",
            "standby",
            "abort",
        ] {
            play(&server, scenario);
        }
        play(&Server::start(modules, "everything", &[("SETUP_FAILS", "1")]), "setup");
        play(&Server::start(modules, "everything", &[("HUNG_AFTER", "1")]), "hung");
        play(&Server::start(modules, "one_function", &[]), "coderef");
    }
}

#[tokio::test]
async fn the_example_works_as_it_stands() {
    for modules in modules() {
        let server = Server::start(modules, "ledger", &[]);
        let client = server.client(Protocol::Native);
        let log = Log::new(drop);
        let checkout = client.checkout().log(&log);
        assert_eq!(checkout.call::<u64>("add", ("tea", 3)).await.unwrap(), 1);
        assert_eq!(called(&checkout, "commit").await, json!({"coffee": 10, "tea": 3}));
        assert_eq!(checkout.call::<u64>("add", ("tea", 4)).await.unwrap(), 1);
        drop(checkout);
        let checkout = client.checkout();
        // The same worker continues after its `checkout_done`.
        assert_eq!(called(&checkout, "pending").await, json!(0));
        assert_eq!(checkout.call::<u64>("total", ("tea",)).await.unwrap(), 3);
        let error = checkout.call::<u64>("total", ("milk",)).await.unwrap_err();
        assert_eq!(message_of(&error), "there is no milk");
        let message = log.message();
        assert_eq!(message.logs.len(), 2, "{message:?}");
        assert!(message.timers.iter().any(|timer| timer.name == "writing"), "{message:?}");
        assert_eq!(message.data["entries"], 2);
    }
}

#[tokio::test]
async fn setup_runs_once_before_the_first_call_and_checkout_done_after_each_checkout() {
    for modules in modules() {
        let environment = [("SETUP_FAILS", "1"), ("SETUP_LOGS", "1")];
        let server = Server::start(modules, "everything", &environment);
        for protocol in [Protocol::Native, Protocol::Perl] {
            let client = server.client(protocol);
            let log = Log::new(drop);
            let checkout = client.checkout().log(&log);
            let error = checkout.call::<()>("pid", ()).await.unwrap_err();
            assert_eq!(message_of(&error), "setup exception: no database", "{error:?}");
            let pid = called(&checkout, "pid").await;
            assert_eq!(called(&checkout, "setups").await, 2);
            // The log of setup is part of the call before which setup ran.
            assert_eq!(log.message().logs.len(), 2, "{:?}", log.message());
            assert_eq!(value(&checkout, "keep", "row").await, 1);
            drop(checkout);
            let checkout = client.checkout();
            assert_eq!(called(&checkout, "pid").await, pid, "the same worker");
            assert_eq!(called(&checkout, "kept").await, json!([]));
            assert_eq!(called(&checkout, "checkouts").await, 1);
            assert_eq!(called(&checkout, "setups").await, 2);
            value(&checkout, "hold", "last").await;
            drop(checkout);
            assert_eq!(called(&client.checkout(), "pid").await, pid, "though `last` left it");
        }
    }
}

#[tokio::test]
async fn errors_and_results_of_every_kind_leave_the_worker_in_use() {
    for modules in modules() {
        let server = Server::start(modules, "everything", &[]);
        let client = server.client(Protocol::Native);
        let checkout = client.checkout();
        let pid = called(&checkout, "pid").await;
        assert_eq!(called(&checkout, "list").await, 3, "scalar context");
        assert_eq!(called(&checkout, "context").await, "");
        for (method, arguments, expected) in [
            ("throw", json!(["one\n", "two\n"]), "one\ntwo"),
            ("throw_hash", json!([]), "{\"code\":5,\"why\":[\"a\"]}"),
            ("throw_foo", json!([3]), "Foo of 3"),
            ("throw_mute", json!([]), "an object of Mute, which has no text"),
            ("leaves", json!([]), "it was left by `next`, `last` or `redo` instead of returning"),
            ("foo", json!([4]), "interface returned object: Foo=(Foo of 4)"),
            ("object", json!([]), "interface returned object: Bar=(Bar=HASH"),
            ("mute", json!([]), "interface returned object: Mute=(an object of Mute"),
            ("inside", json!([]), "error JSON encoding interface output: encountered object"),
            ("code", json!([]), "error JSON encoding interface output: "),
            ("glob", json!([]), "error JSON encoding interface output: "),
            ("cycle", json!([]), "error JSON encoding interface output: "),
            ("infinity", json!([]), "error JSON encoding interface output: infinity and NaN are"),
            ("not_unicode", json!(["d800"]), "error JSON encoding interface output: a string has"),
            ("not_unicode", json!(["110000"]), "error JSON encoding interface output: "),
            ("alarms", json!([]), "too late"),
            ("croaks", json!([]), "from here at "),
            ("no such", json!([]), "unknown method `no such`: there is add, alarms, args"),
        ] {
            let arguments = arguments.as_array().unwrap().clone();
            let error = match arguments.as_slice() {
                [] => checkout.call::<Value>(method, ()).await,
                [one] => checkout.call::<Value>(method, (one,)).await,
                [one, two, ..] => checkout.call::<Value>(method, (one, two)).await,
            };
            let error = message_of(&error.unwrap_err());
            assert!(error.starts_with(expected), "{method}: {error}");
        }
        for (method, argument) in [
            ("true", json!(true)),
            ("echo", json!("\n\"\\".repeat(100_000))),
            ("echo", json!({"é😀": [null, 1.5, -3, u64::MAX]})),
            ("args", json!([[[[]]], {}])),
        ] {
            let answer = value(&checkout, method, &argument).await;
            let expected = if method == "args" { json!([argument]) } else { argument };
            assert_eq!(answer, expected, "{method}");
        }
        assert_eq!(value(&checkout, "not_unicode", "10ffff").await, json!(["\u{10ffff}"]));
        assert_eq!(called(&checkout, "words").await, json!(["inf", "nan and \"infinity\"", "\\"]));
        assert_eq!(called(&checkout, "pid").await, pid, "the same worker");
    }
}

#[tokio::test]
async fn logs_arrive_whatever_is_in_them() {
    for modules in modules() {
        let server = Server::start(modules, "everything", &[]);
        let client = server.client(Protocol::Perl);
        let log = Log::new(drop);
        let checkout = client.checkout().log(&log);
        assert_eq!(called(&checkout, "log_odd").await, 1);
        assert_eq!(called(&checkout, "log_runs_on").await, 1);
        let error = checkout.call::<()>("logboom", ()).await.unwrap_err();
        assert_eq!(message_of(&error), "dead");
        let message = log.message();
        let lines: Vec<Value> = message.logs.iter().map(|line| json!(line)).collect();
        let of = |text: &str| lines.iter().find(|line| line[2] == text).unwrap();
        let odd = of("odd");
        assert!(odd[3].as_str().unwrap().starts_with("CODE("), "{odd}");
        assert_eq!(
            (&odd[1], &odd[4], &odd[6]),
            (&json!(30), &json!("Foo of 1"), &json!("\u{fffd}"))
        );
        assert_eq!((&of("late")[1], &of("late")[3]), (&json!(20), &json!(1)));
        assert_eq!(of("before dying")[1], 10);
        assert!(message.data["handle"].as_str().unwrap().starts_with("GLOB("));
        // A running timer ends with its call.
        let timer = message.timers.iter().find(|timer| timer.name == "runs on").unwrap();
        assert!(timer.to >= Some(timer.from), "{timer:?}");
    }
}

#[tokio::test]
async fn a_child_that_comes_back_from_a_function_answers_nothing() {
    for modules in modules() {
        let server = Server::start(modules, "everything", &[]);
        let client = server.client(Protocol::Native);
        let checkout = client.checkout();
        assert_eq!(called(&checkout, "forks").await, 70, "the status of the child");
        assert_eq!(called(&checkout, "fork_dies").await, 70);
        for number in 0..20 {
            assert_eq!(value(&checkout, "echo", number).await, number);
        }
    }
}

#[tokio::test]
async fn a_worker_ignores_the_signals_that_end_a_server() {
    for modules in modules() {
        let server = Server::start(modules, "everything", &[]);
        let client = server.client(Protocol::Native);
        let checkout = client.checkout();
        let pid = called(&checkout, "pid").await;
        let worker = Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap()).unwrap();
        for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
            kill_process(worker, signal).unwrap();
        }
        assert_eq!(called(&checkout, "pid").await, pid);
    }
}

#[tokio::test]
async fn functions_share_no_descriptor_with_the_connection() {
    for modules in modules() {
        let server = Server::start(modules, "everything", &[]);
        let client = server.client(Protocol::Native);
        let checkout = client.checkout();
        assert_eq!(called(&checkout, "prints").await, Value::Null, "standard input is empty");
        assert_eq!(called(&checkout, "descriptors").await, "0", "of a program that it starts");
        assert_eq!(called(&checkout, "title").await, "AET-Worker:everything");
        drop((checkout, client));
        until("what it has printed", || {
            server.read("out") == "to standard output" && server.log().contains("to standard error")
        });
    }
}

#[tokio::test]
async fn a_program_that_ends_is_a_dead_worker() {
    for modules in modules() {
        let server = Server::start(modules, "everything", &[]);
        let client = server.client(Protocol::Native);
        let checkout = client.checkout();
        let error = checkout.call::<()>("exit_now", ()).await.unwrap_err();
        assert!(error.to_string().contains("exited with status 1 during a call"), "{error}");
        let again = checkout.call::<()>("echo", (1,)).await.unwrap_err();
        assert!(matches!(again, Error::Fatal { cause: FatalError::WorkerDied(_), .. }), "{again}");
        drop(checkout);

        let checkout = client.checkout();
        let pid = called(&checkout, "pid").await;
        value(&checkout, "hold", "die").await;
        drop(checkout);
        until("the end of the worker", || server.log().contains("checkout_done: cannot roll back"));
        until("another worker", || !Path::new(&format!("/proc/{pid}")).exists());
        assert_ne!(client.call::<Value>("pid", ()).await.unwrap(), pid);
    }
}

#[tokio::test]
async fn a_program_with_several_servers_serves_the_one_that_is_named() {
    for modules in modules() {
        for (named, answer) in
            [(None, "one"), (Some("one"), "one"), (Some("/tmp/not-there/two.sock"), "two")]
        {
            let environment = named.map(|named| ("TASKFORK_SERVER", named));
            let server = Server::start(modules, "several", environment.as_slice());
            let client = server.client(Protocol::Native);
            assert_eq!(client.call::<String>("which", ()).await.unwrap(), answer, "{named:?}");
            if answer == "two" {
                // The program's own limit ends this.
                let error = client.call::<()>("hang", ()).await.unwrap_err();
                let said = format!("{error:#}");
                assert!(said.contains("hung_worker_timeout is 0.3 seconds"), "{said}");
            }
        }
    }
}

/// A program and the other end of its connection, without a server.
fn direct(modules: Modules, program: &Path, folder: &Path) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = start(modules, program, folder);
    command.env("TASKFORK_FD", "0").stdin(OwnedFd::from(theirs));
    (command.spawn().unwrap(), ours)
}

fn called_directly(socket: &mut UnixStream, method: &str) -> Value {
    socket.write_all(json!(["do", {}, method]).to_string().as_bytes()).unwrap();
    serde_json::from_slice(&message(socket).unwrap()).unwrap()
}

/// A program without a connection.
fn start(modules: Modules, program: &Path, folder: &Path) -> Command {
    let words = perl(modules, program, folder);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_remove("TASKFORK_FD").env_remove("TASKFORK_SERVER");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The exit status of a program, and its standard error.
fn end(program: Child) -> (Option<i32>, String) {
    let output = program.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn messages_may_be_cut_anywhere_and_come_together() {
    for modules in modules() {
        let folder = tempfile::tempdir().unwrap();
        let (perl, mut socket) = direct(modules, &program("everything"), folder.path());
        let calls = recorded("calls");
        let of = |side: &str| {
            let reads = calls.iter().filter(|read| read["from"] == side);
            let texts: String = reads.filter_map(|read| read["bytes"].as_str()).collect();
            texts.chars().map(|octet| octet as u8).collect::<Vec<_>>()
        };
        let (sent, expected) = (of("client"), of("worker"));
        let mut received = vec![0; expected.len()];
        for byte in &sent {
            socket.write_all(&[b' ', *byte][usize::from(*byte != b'[')..]).unwrap();
        }
        socket.read_exact(&mut received).unwrap();
        assert_eq!(String::from_utf8_lossy(&received), String::from_utf8_lossy(&expected));
        socket.write_all(&sent).unwrap();
        socket.read_exact(&mut received).unwrap();
        assert_eq!(String::from_utf8_lossy(&received), String::from_utf8_lossy(&expected));

        // Programs that it starts do not inherit the connection, whatever its number.
        let answer = called_directly(&mut socket, "descriptors");
        assert_eq!(answer[2], "0");
        // A timer ends when its last reference is dropped, before the next line.
        let answer = called_directly(&mut socket, "log");
        let log = &answer[1]["ld"];
        assert!(log["timers"][0][2].as_f64() <= log["logs"][1][0].as_f64(), "{answer}");
        // A running timer is sent with an end.
        let answer = called_directly(&mut socket, "log_runs_on");
        let timer = &answer[1]["ld"]["timers"][0];
        assert!(timer[2].is_f64() && timer[2].as_f64() >= timer[1].as_f64(), "{answer}");

        socket.write_all(b"[\"do\",{},\"ec").unwrap();
        drop(socket);
        let said = "the connection has ended in the middle of a message\n".to_owned();
        assert_eq!(end(perl), (Some(1), said));
        let (perl, socket) = direct(modules, &program("everything"), folder.path());
        drop(socket);
        assert_eq!(end(perl), (Some(0), String::new()));
    }
}

#[test]
fn a_program_started_by_hand_says_how_to_start_it() {
    for modules in modules() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = start(modules, &program("several"), folder.path());
        let (status, said) = end(command.arg("it's").env("TASKFORK_FD", "7x").spawn().unwrap());
        assert_ne!(status, Some(0));
        assert!(said.contains("TASKFORK_FD is 7x, which is no open descriptor"), "{said}");
        assert!(
            said.contains("serve --protocol json --listen unix:/tmp/not-there/one.sock"),
            "{said}"
        );
        assert!(said.contains("several.pl 'it'\\''s'\n"), "{said}");

        let tcp = folder.path().join("tcp.pl");
        let text = "AnyEvent::Task::Server->new(listen => [undef, 4000], interface => {})";
        std::fs::write(&tcp, text).unwrap();
        let (_, said) = end(start(modules, &tcp, folder.path()).spawn().unwrap());
        let options =
            "--listen tcp:0.0.0.0:4000 --protocols native,json --allow-unauthenticated-network --";
        assert!(said.contains(options), "{said}");

        // The message contains a command that works, except for the address.
        let (_, said) = end(start(modules, &program("everything"), folder.path()).spawn().unwrap());
        let line = said.lines().find(|line| line.starts_with("    taskfork serve ")).unwrap();
        assert!(line.contains("--name everything --hung-worker-timeout 30 -- "), "{line}");
        let line = line.trim().replace("/tmp/not-there/everything.sock", "$SOCKET");
        let line = line.replacen("taskfork", "exec \"$TASKFORK\"", 1);
        let socket = folder.path().join("s");
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).env("TASKFORK", env!("CARGO_BIN_EXE_taskfork"));
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let shell = shell.env("SOCKET", &socket).stdin(Stdio::piped()).stderr(log).spawn().unwrap();
        let server = Server { folder, program: shell };
        until("the server", || server.log().contains("listening at"));
        let mut socket = server.connect();
        socket.write_all(b"[\"do\",{},\"add\",2,3]").unwrap();
        assert_eq!(message(&mut socket).unwrap(), b"[\"ok\",{},5]");
    }
}

#[test]
fn a_program_that_cannot_be_served_says_why() {
    const TWO: &str =
        "AnyEvent::Task::Server->new(name => 'a', listen => ['unix/', '/a'], interface => {});
        AnyEvent::Task::Server->new(name => 'b', listen => ['', 80], interface => {});";
    for modules in modules() {
        for (text, named, why) in [
            (
                TWO,
                None,
                "the program makes several servers, and a worker serves one: set TASKFORK_SERVER",
            ),
            (&format!("{TWO} AE::cv->recv"), Some("c"), "the program makes no server c"),
            (
                "fork and exit; AnyEvent::Task::Server->new(listen => [0, 1], interface => {})->run",
                None,
                "it must stay in the foreground",
            ),
            ("AnyEvent::Task::Server->new(interface => {})", None, "unspecified listen path"),
            ("AnyEvent::Task::Server->new(listen => [0, 1])", None, "unspecified interface"),
            (
                "AnyEvent::Task::Server->new(listen => [0, 1], interface => 'f')",
                None,
                "interface must be a sub or a hash",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("program.pl");
            std::fs::write(&file, text).unwrap();
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut command = start(modules, &file, folder.path());
            command.env("TASKFORK_FD", "0").stdin(OwnedFd::from(theirs));
            command.envs(named.map(|named| ("TASKFORK_SERVER", named)));
            let (_, said) = end(command.spawn().unwrap());
            assert!(said.contains(why), "{text}: {said}");
            drop(ours);
        }
    }
}

#[test]
fn the_commands_of_the_chapter_work_as_they_stand() {
    if modules().is_empty() {
        return;
    }
    let chapter = std::fs::read_to_string(root().join("docs/guide/perl.md")).unwrap();
    let blocks = chapter.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let blocks = blocks.filter(|block| block.contains("ledger"));
    let [by_hand, serve, calls] = blocks.collect::<Vec<_>>()[..] else {
        panic!("the chapter has other blocks");
    };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let shell = |text: &str| {
        let text = text.replace("/tmp/ledger.sock", socket.to_str().unwrap());
        let text = text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
        let mut shell = Command::new("sh");
        let commands = Path::new(env!("CARGO_BIN_EXE_taskfork")).parent().unwrap();
        let paths = std::env::var("PATH").unwrap();
        shell.env("PATH", format!("{}:{paths}", commands.display())).env_remove("TASKFORK_FD");
        shell.args(["-ec", &text]).current_dir(root()).stdin(Stdio::null());
        shell
    };

    // The chapter redirects the program's output to a file, and shows that.
    let by_hand = by_hand.lines().find(|line| line.contains("ledger")).unwrap();
    let (by_hand, _) = by_hand.split_once(" 2>").unwrap();
    let said = shell(by_hand).output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.lines().nth(1).map(str::trim), Some(serve.trim()), "{said}");

    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let program = shell(&format!("exec {}", serve.trim())).stderr(log).spawn().unwrap();
    let server = Server { folder, program };
    until("the server", || server.log().contains("listening at"));
    let called = shell(calls).output().unwrap();
    let [out, err] = [called.stdout, called.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(called.status.success() && out.starts_with("10\n1\nledger (process "), "{out}{err}");
    assert!(err.contains("info  adds {"), "{err}");
}
