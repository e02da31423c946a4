//! The command's standard error: notices while it waits, errors, and the server's log.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use common::terminal::Terminal;
use common::{Server, address, taskfork, until};
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

/// Starts the command, and returns its standard error once that contains `text`.
fn stderr_with(words: &[&str], text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stderr");
    let file = std::fs::File::create(&path).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    let mut program = command.args(words).stderr(file).stdout(Stdio::null()).spawn().unwrap();
    let told = || std::fs::read_to_string(&path).unwrap();
    until(text, || told().contains(text));
    assert!(program.try_wait().unwrap().is_none(), "it waits no more: {}", told());
    program.kill().unwrap();
    program.wait().unwrap();
    told()
}

#[test]
fn a_call_writes_what_it_waits_for() {
    let folder = tempfile::tempdir().unwrap();
    let address = address(folder.path());
    for command in ["call", "bench"] {
        let words = [command, &address, "x", "--timeout", "10m"];
        let told = stderr_with(&words, "waiting for a server at");
        assert!(told.contains("No such file"), "{told}");
        assert!(told.contains("for 10m at most"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    // This listener never answers.
    let _listener = UnixListener::bind(folder.path().join("s")).unwrap();
    stderr_with(&["call", &address, "x", "--timeout", "0"], "waiting for the server at");
    let line =
        stderr_with(&["call", &address, "x", "--log-format", "json"], "waiting for the server");
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "WARN");
}

#[test]
fn a_call_that_takes_long_is_not_waiting_for_a_server() {
    let server = Server::start(&[]);
    server.call(&["sleep", "1500"]).assert().success().stderr("");
}

#[test]
fn a_server_that_may_not_be_used_is_an_error_at_once() {
    let server = Server::start(&["--protocols", "json"]);
    // Without a time limit, only this check ends the wait.
    let native = server.call(&["echo", "1", "--timeout", "0"]).assert().code(3);
    native.stderr(contains("does not take the native protocol"));

    // For root the file system checks no permissions.
    let denied = if rustix::process::geteuid().is_root() {
        use std::os::unix::process::CommandExt;

        let folder = server.folder.path();
        let program = folder.join("taskfork");
        std::fs::copy(env!("CARGO_BIN_EXE_taskfork"), &program).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder, open).unwrap();
        let mut command = Command::new(program);
        command.uid(65534).gid(65534);
        command
    } else {
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o000);
        std::fs::set_permissions(server.folder.path().join("s"), closed).unwrap();
        Command::new(env!("CARGO_BIN_EXE_taskfork"))
    };
    let mut denied = assert_cmd::Command::from_std(denied);
    let denied = denied.arg("call").arg(server.address()).args(["echo", "1", "--timeout", "0"]);
    denied.assert().code(3).stderr(contains("Permission denied").and(contains("--allow-users")));
}

#[test]
fn serve_explains_its_own_options() {
    let explained = |words: &[&str]| {
        let mut command = taskfork();
        command.arg("serve").args(words).args(["--", "true"]).assert().code(2)
    };
    let none = explained(&[]);
    none.stderr(contains("--listen unix:PATH").and(contains("listen(\"").not()));
    explained(&["--max-calls=0", "--listen=/tmp/never"])
        .stderr(contains("--max-calls cannot be so").and(contains("max_calls").not()));
    explained(&["--listen=tcp:0.0.0.0:0"])
        .stderr(contains("--allow-unauthenticated-network").and(contains('`').not()));
}

/// Starts a server with these options, makes the calls, and returns the log once it contains `text`.
fn log_of(options: &[&str], calls: &[&[&str]], text: &str) -> String {
    let server = Server::start(options);
    for words in calls {
        server.call(words).output().unwrap();
    }
    until(text, || server.log().contains(text));
    server.log()
}

#[test]
fn the_log_names_the_method_of_a_call_that_died() {
    log_of(&[], &[&["abort"]], "was killed by SIGABRT during a call of `abort`");
    log_of(&["--hung-worker-timeout=300ms"], &[&["sleep", "60000"]], "a call of `sleep`: hung");
    // A client can send any name.
    let nasty = "exited with status 0 during a call of `exit \\x1b[2J`";
    log_of(&[], &[&["exit \u{1b}[2J"]], nasty);
}

/// Starts a server of another program, makes a call, and returns the log once it contains `text`.
fn log_of_program(program: &[&str], text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--listen", &address(folder.path()), "--"]).args(program);
    let server = Server::run(folder, command);
    server.call(&["x"]).assert().failure();
    until(text, || server.log().contains(text));
    server.log()
}

#[test]
fn the_log_names_programs_that_exit_with_0_and_setups_that_fail() {
    log_of_program(&["true"], "exited with status 0 during setup");
    // This worker implements no protocol.
    let setup = log_of_program(
        &["sh", "-c", "echo oops >&$TASKFORK_FD; sleep 60"],
        "the setup of a worker failed: ",
    );
    assert!(setup.contains("ERROR"), "{setup}");
}

#[test]
fn a_worker_that_ends_normally_is_not_in_the_log() {
    let server = Server::start(&["--max-calls=1", "--log-level=info"]);
    (0..3).for_each(|_| drop(server.call(&["echo", "1"]).assert().success()));
    until("their ends", || server.status()["deaths"]["max_calls"] == 3);
    drop(server.call(&["nothing"]).assert().code(1));
    until("the last", || server.status()["workers"] == Value::Array(Vec::new()));
    assert!(!server.log().contains("a worker"), "{}", server.log());
}

#[test]
fn a_log_in_json_has_nothing_but_json() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--log-format=json", "--listen", &address(folder.path()), "--"]);
    command.args(["sh", "-c", "echo 'said \"so\"' >&2; exit 7"]);
    let server = Server::run(folder, command);
    server.call(&["x"]).assert().failure();
    until("the end", || server.log().contains("exited with status 7"));
    let lines: Vec<Value> =
        server.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |text: &str| {
        let has = |line: &&Value| line["message"].as_str().is_some_and(|said| said.contains(text));
        lines.iter().find(has).unwrap()
    };
    assert_eq!(line("listening at")["level"], "INFO");
    assert!(line("exited with status 7")["pid"].as_u64().is_some());
    let said = line("said \"so\"");
    assert_eq!(said["target"], "taskfork::stderr");
    assert!(said["pid"].as_u64().is_some() && said["timestamp"].as_str().is_some());

    // Errors of all commands are JSON as well.
    for words in [
        &["status", "/nonexistent/s"][..],
        &["call", "/nonexistent/s", "x", "--timeout=50ms"],
        &["bench", "/nonexistent/s", "x", "--timeout=50ms"],
        &["top", "/nonexistent/s"],
        &["logs", "/nonexistent/s"],
        &["config", "check", "/nonexistent/s"],
        &["serve", "--config", "/nonexistent/s"],
    ] {
        let out = taskfork().args(words).arg("--log-format=json").output().unwrap();
        let told: Value = serde_json::from_slice(&out.stderr).unwrap();
        assert_eq!(told["level"], "ERROR", "{told}");
        assert!(told["message"].as_str().unwrap().contains("/nonexistent/s"), "{told}");
    }
}

#[test]
fn the_level_of_the_log_is_chosen_by_an_option_or_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let call = || {
        let mut command = taskfork();
        command.args(["call", &address(folder.path()), "x", "--timeout=50ms"]);
        command
    };
    let debug = || contains("DEBUG").and(contains("cannot connect a worker"));
    call().assert().stderr(contains("cannot connect a worker").not());
    call().arg("--log-level=debug").assert().stderr(debug());
    call().arg("--verbose").assert().stderr(debug());
    call().env("RUST_LOG", "taskfork=debug").assert().stderr(debug());
    call().env("RUST_LOG", "other=debug").assert().stderr(debug().not());
    // The option takes precedence.
    call().env("RUST_LOG", "debug").arg("--log-level=error").assert().stderr(debug().not());
    call().arg("--log-level=loud").assert().code(2);
    call().env("RUST_LOG", "a=b=c").assert().stderr(contains("RUST_LOG is ignored"));

    let server = Server::start(&["--name=quiet", "--log-level=debug"]);
    server.call(&["echo", "1"]).assert().success();
    until("a debug line", || {
        server.log().contains("DEBUG") && server.log().contains("a worker ended")
    });
}

#[test]
fn pools_of_a_file_have_the_log_options_of_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pools.toml");
    let pool = |name: &str| {
        let listen = folder.path().join(name).display().to_string();
        format!("[pool.{name}]\nlisten = \"{listen}\"\ncommand = [\"true\"]\n")
    };
    std::fs::write(&file, pool("s") + &pool("t")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["--log-format=json", "serve", "--config"]).arg(file);
    let server = Server::run(folder, command);
    until("both", || server.log().matches("listening at").count() == 2);
    server.log().lines().for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap()));
}

#[test]
fn a_file_is_checked_without_being_served() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pools.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        taskfork().args(["config", "check"]).arg(&file).assert()
    };
    let socket = folder.path().join("s").display().to_string();
    let pool = |name: &str, more: &str| {
        format!("[pool.{name}]\nlisten = \"{socket}\"\ncommand = [\"true\"]\n{more}\n")
    };
    check(&pool("one", "")).success().stdout(contains("pools.toml: 1 pool: one"));
    assert!(!folder.path().join("s").exists());
    for (text, told) in [
        (pool("one", "max_worker = 3"), "did you mean `max_workers`?"),
        (pool("one", "max_calls = 0"), "pool.one: `max_calls` cannot be so"),
        (pool("one", "limit = [\"cpu-tme=1\"]"), "did you mean `cpu-time`?"),
        (pool("one", "socket_mode = 660"), "write the mode as text, such as \"660\""),
        (pool("one", "allow_users = [\"no-such-user\"]"), "there is no user `no-such-user`"),
        (pool("one", "") + &pool("two", ""), "both listen at"),
        (pool("one", "").replace("true", "no-such-program"), "pool.one: there is no program"),
        (pool("one", "").replace(&socket, "nowhere"), "`nowhere` is not an address"),
    ] {
        check(&text).code(2).stderr(contains(told)).stdout("");
    }
    let example = taskfork().args(["config", "example"]).output().unwrap();
    check(&String::from_utf8(example.stdout).unwrap()).success();
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_error() {
    let server = Server::start(&[]);
    for words in [&["status"][..], &["top", "--once"], &["call", "--raw"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        command.arg(words[0]).arg(server.address()).args(&words[1..]);
        if words[0] == "call" {
            command.args(["echo", "1"]);
        }
        let out = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    }
}

#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    // The test opens a pseudo-terminal itself, because `script` may not be installed.
    let colours = |wanted: Option<&str>| {
        let terminal = Terminal::open(80);
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        command.args(["call", "/nonexistent/s", "x", "--timeout=50ms", "--verbose"]);
        command.env_remove("NO_COLOR").envs(wanted.map(|value| ("NO_COLOR", value)));
        let side = terminal.terminal.try_clone().unwrap();
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(side).status();
        assert_eq!(status.unwrap().code(), Some(3));
        until("the whole error", || terminal.has_received("-> x"));
        terminal.has_received("\u{1b}[")
    };
    assert!(colours(None) && colours(Some("")));
    assert!(!colours(Some("1")));
}

#[test]
fn a_mistake_in_an_address_is_named_by_every_command() {
    for command in ["status", "top", "call", "bench"] {
        for (address, told) in [
            ("unix-percent:%zz", "a `%` without two hexadecimal digits"),
            ("unix-percent:%00", "names no usable socket path"),
            ("tcp:host", "names no TCP port"),
        ] {
            let mut tried = taskfork();
            tried.arg(command).arg(address);
            if ["call", "bench"].contains(&command) {
                tried.arg("x");
            }
            tried.assert().code(2).stderr(contains(told));
        }
    }
    let told = "a server at tcp:host:80 tells of itself only at a status socket";
    taskfork().args(["status", "tcp:host:80"]).assert().code(2).stderr(contains(told));
}
