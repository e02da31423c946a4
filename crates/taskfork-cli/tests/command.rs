//! The subcommands, with real servers and workers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{Server, taskfork, until, worker};
use predicates::prelude::*;
use predicates::str::{contains, is_match, starts_with};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn arguments_are_json_and_so_is_the_result() {
    let server = Server::start(&[]);
    for (argument, printed) in [
        ("word", "\"word\"\n"),
        ("7", "7\n"),
        ("-7", "-7\n"),
        ("\"7\"", "\"7\"\n"),
        ("[1,{\"a\":null}]", "[1,{\"a\":null}]\n"),
    ] {
        server.call(&["echo", argument]).assert().success().stdout(printed);
    }
    server.call(&["echo", "-"]).write_stdin("{\"b\": 1}").assert().success().stdout("{\"b\":1}\n");
    server.call(&["echo", "-"]).write_stdin("two\nlines").assert().stdout("\"two\\nlines\"\n");
    server.call(&["echo", "--raw", "word"]).assert().stdout("word");
    server.call(&["echo", "{\"b\": 1"]).assert().code(2).stderr(contains("is broken JSON"));
    server
        .call(&["echo", "-"])
        .write_stdin("[1,")
        .assert()
        .code(2)
        .stderr(contains("is broken JSON"));
    server.call(&["echo", "-", "-"]).assert().code(2).stderr(contains("only one argument"));
}

#[test]
fn bytes_are_passed_as_they_are() {
    let server = Server::start(&[]);
    let file = server.folder.path().join("picture");
    let bytes: Vec<u8> = (0..=255).collect();
    std::fs::write(&file, &bytes).unwrap();
    let file = format!("@{}", file.display());
    // The worker's protocol is JSON, in which each byte becomes a character.
    let kind = |words: &[&str]| server.call(&["kind"]).args(words).assert().success();
    let characters: String = bytes.iter().map(|&byte| char::from(byte)).collect();
    let echoed = server.call(&["echo", &file]).output().unwrap();
    let echoed: String = serde_json::from_slice(&echoed.stdout).unwrap();
    assert_eq!(echoed, characters);
    for words in [&["{\"base64\": \"/w==\"}"][..], &["--bytes", "ÿ"], &["--bytes", "-"], &["@-"]] {
        let mut call = server.call(&["echo"]);
        let out = call.args(words).write_stdin(&b"\xff"[..]).output().unwrap();
        let out: String = serde_json::from_slice(&out.stdout).unwrap();
        let expected = if words.contains(&"ÿ") { "\u{c3}\u{bf}" } else { "\u{ff}" };
        assert_eq!(out, expected, "{words:?}");
    }
    kind(&["--bytes", "7"]).stdout("\"string\"\n");
    kind(&["7"]).stdout("\"number\"\n");
}

#[test]
fn each_kind_of_error_has_an_exit_status() {
    let server = Server::start(&[]);
    let error = server.call(&["nothing"]).assert().code(1);
    error.stdout("").stderr("taskfork: no method nothing\n");
    let death = server.call(&["abort"]).assert().code(3);
    death.stderr(contains("was killed by SIGABRT during a call"));
    let late = server.call(&["sleep", "20000", "--timeout", "200ms"]).assert().code(3);
    late.stderr(contains("timed out after 0.2 seconds").and(contains("give it more time")));
    taskfork().args(["call"]).assert().code(2);
    taskfork()
        .args(["call", "somewhere", "x"])
        .assert()
        .code(2)
        .stderr(contains("write unix:PATH"));
    let nobody = ["call", "unix:/nonexistent/s", "x", "--timeout", "100ms"];
    taskfork().args(nobody).assert().code(3).stderr(
        contains("no server answered").and(contains("start the server, or check the address")),
    );
}

#[test]
fn text_of_workers_is_escaped_for_a_terminal() {
    let server = Server::start(&[]);
    let nasty = "\u{1b}[2J\u{9b}31m\u{202e}";
    let shown = r"no method \x1b[2J\u{9b}31m\u{202e}";
    server.call(&[nasty]).assert().code(1).stderr(contains(shown));
    server.call(&["--verbose", nasty]).assert().code(1).stderr(contains(shown));
    server.call(&["echo", nasty]).assert().stdout("\"\\u001b[2J\\u009b31m\\u202e\"\n");
    // Without a terminal, `--raw` writes all bytes.
    server.call(&["--raw", "echo", nasty]).assert().stdout(nasty);

    let long = "x".repeat(100_000);
    let cut = contains("--full shows all of them").and(contains(long.as_str()).not());
    server.call(&[&long]).assert().code(1).stderr(cut);
    server.call(&["--full", &long]).assert().code(1).stderr(contains(long.as_str()));
}

#[test]
fn verbose_shows_the_full_report() {
    let server = Server::start(&[]);
    let error = server.call(&["nothing", "--verbose"]).assert().code(1);
    error.stderr(contains("taskfork -> nothing"));
}

#[test]
fn logs_are_drawn_on_standard_error() {
    let server = Server::start(&[]);
    let call = server.call(&["logged", "7", "--log"]).assert().success().stdout("7\n");
    call.stderr(contains("info  asked \"logged\"").or(contains("info  asked logged")));
}

#[test]
fn repeated_calls_run_concurrently() {
    let server = Server::start(&[]);
    let words = ["pid", "--repeat", "20", "--concurrency", "4"];
    let out = server.call(&words).output().unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.lines().count(), 20, "{out}");
    let mut pids: Vec<_> = out.lines().collect();
    pids.sort_unstable();
    pids.dedup();
    assert!((2..=4).contains(&pids.len()), "{pids:?}");
    server.call(&["pid", "--concurrency", "0"]).assert().code(2);
}

#[test]
fn workers_are_replaced_after_the_errors_that_the_server_says() {
    let forked = |options: &[&str]| {
        let server = Server::start(options);
        server.call(&["nothing", "--repeat", "3"]).assert().code(1);
        server.status()["forked"].as_u64().unwrap()
    };
    assert_eq!(forked(&[]), 3);
    assert_eq!(forked(&["--replace-after", "any-error"]), 3);
    assert_eq!(forked(&["--replace-after", "panic"]), 1);
    assert_eq!(forked(&["--replace-after", "never"]), 1);
    let wrong = taskfork().args(["serve", "--replace-after", "sometimes", "--", "cat"]).assert();
    wrong.code(2).stderr(contains("sometimes"));
}

#[test]
fn either_protocol_reaches_the_same_worker() {
    let server = Server::start(&[]);
    server.call(&["--protocol", "json", "echo", "é"]).assert().success().stdout("\"é\"\n");
}

#[test]
fn status_for_people_scripts_and_prometheus() {
    let server = Server::start(&["--name", "plain", "--spare-workers", "1", "--max-workers", "5"]);
    until("a spare worker", || server.status()["workers"][0]["state"] == "spare");
    let status = server.status();
    assert_eq!((&status["name"], &status["max_workers"]), (&"plain".into(), &5.into()));
    let people = taskfork().args(["status", &server.address()]).assert().success();
    people.stdout(starts_with("plain (process ").and(is_match("spare  ").unwrap()));
    let metrics = taskfork().args(["status", &server.address(), "--metrics"]).assert().success();
    metrics.stdout(contains("taskfork_server_workers{server=\"plain\",state=\"spare\"} 1"));
    let path = server.folder.path().join("s");
    for path in [path.clone(), path.with_extension("status")] {
        taskfork()
            .arg("status")
            .arg(path)
            .assert()
            .success()
            .stdout(starts_with("plain (process "));
    }
    taskfork().arg("call").arg(path).args(["echo", "1"]).assert().success();
    taskfork().args(["status", "tcp:host:1"]).assert().code(2).stderr(contains("--status-socket"));
    taskfork().args(["status", "/nonexistent"]).assert().code(3);
}

#[test]
fn every_option_of_the_server_can_be_given() {
    let server = Server::start(&[
        "--name=all",
        "--hung-worker-timeout=0",
        "--shutdown-grace=1s",
        "--stall-timeout=5",
        "--spare-workers=1",
        "--max-workers=10",
        "--max-calls=3",
        "--max-age=1h",
        "--max-idle=10m",
        "--max-memory=1GiB",
        "--limit=open-files=100",
        "--limit=core-size=0",
        "--niceness=5",
        "--oom-score-adj=100",
        "--socket-mode=660",
        "--max-frame=1MiB",
        "--max-blob=2MiB",
        "--stderr=inherit",
        "--busy-poll=off",
        "--protocols=native,json",
        "--allow-users=root,12345",
        "--allow-groups=root",
        "--allow-unauthenticated-network",
        "--share-details",
        "--handshake-timeout=5s",
        "--max-handshakes=50",
    ]);
    let pids: Vec<_> = (0..4)
        .map(|_| String::from_utf8(server.call(&["pid"]).output().unwrap().stdout).unwrap())
        .collect();
    assert!(pids.iter().all(|pid| pid.trim().parse::<u32>().is_ok()), "{pids:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(server.folder.path().join("s")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o660);
}

#[test]
fn who_may_connect_is_checked_at_the_start() {
    let serve = |option: &str, address: &str| {
        let mut command = taskfork();
        command.args(["serve", option, "--listen", address, "--", "true"]).assert().code(2)
    };
    serve("--allow-users=no-such-user", "unix:/tmp/never")
        .stderr(contains("there is no user `no-such-user`"));
    serve("--allow-groups=no-such-group", "unix:/tmp/never")
        .stderr(contains("there is no group `no-such-group`"));
    serve("--max-handshakes=0", "unix:/tmp/never").stderr(contains("--max-handshakes"));
    serve("--handshake-timeout=0", "unix:/tmp/never").stderr(contains("--handshake-timeout"));
    serve("--name=open", "tcp:0.0.0.0:0").stderr(contains("--allow-unauthenticated-network"));
}

#[test]
fn a_file_says_who_may_connect() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(
        folder.path(),
        r#"
        [pool.one]
        listen = "unix:FOLDER/s"
        protocol = "json"
        protocols = ["native"]
        allow_users = ["root", 12345]
        allow_groups = [0]
        share_details = true
        handshake_timeout = "5s"
        max_handshakes = 50
        command = ["WORKER"]
        "#,
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--config", &file]);
    let server = Server::run(folder, command);
    server.call(&["echo", "1"]).assert().success();
    let json = server.call(&["--protocol", "json", "echo", "1"]).assert().failure();
    json.stderr(contains("does not take the JSON protocol"));
}

#[test]
fn a_missing_program_is_an_error_at_the_start() {
    let mut command = taskfork();
    command.args(["serve", "--listen", "unix:/tmp/never", "--", "no-such-program"]);
    command.assert().code(2).stderr(contains("there is no program `no-such-program`"));
    let none = taskfork().args(["serve", "--listen", "unix:/tmp/never"]).assert();
    none.code(2);
    let limit = ["serve", "--limit", "cpu-tim=1", "--listen", "unix:/tmp/never", "--", "true"];
    taskfork().args(limit).assert().code(2).stderr(contains("did you mean `cpu-time`?"));
    let wrong = ["serve", "--max-memory", "much", "--listen", "unix:/tmp/never", "--", "true"];
    taskfork().args(wrong).assert().code(2).stderr(contains("such as 64KiB"));
}

fn config(folder: &Path, text: &str) -> String {
    let path = folder.join("pools.toml");
    let worker = worker().display().to_string();
    let text = text.replace("FOLDER", &folder.display().to_string()).replace("WORKER", &worker);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_file_has_several_pools() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(
        folder.path(),
        r#"
        [pool.one]
        listen = "unix:FOLDER/s"
        protocol = "json"
        command = ["WORKER"]
        max_workers = 3
        hung_worker_timeout = "1m"
        limit = ["cpu-time=60", "address-space=4GiB"]

        [pool.two]
        listen = "unix:FOLDER/t"
        protocol = "json"
        command = ["WORKER"]
        max_age = 3600
        "#,
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    // The tests may run in a terminal, where SIGHUP would end the server.
    command.args(["serve", "--restart-on-hangup", "--config", &file]);
    let mut server = Server::run(folder, command);
    let two = format!("unix:{}", server.folder.path().join("t").display());
    until("both", || server.log().matches("listening at").count() == 2);
    server.call(&["echo", "1"]).assert().success();
    taskfork().args(["call", &two, "echo", "2"]).assert().success().stdout("2\n");
    assert_eq!(
        (&server.status()["name"], &server.status()["max_workers"]),
        (&"one".into(), &3.into())
    );
    // Each pool starts a new server, and the command keeps running.
    let pid = rustix::process::Pid::from_raw(server.program.id().cast_signed()).unwrap();
    let first = server.status()["pid"].clone();
    rustix::process::kill_process(pid, Signal::HUP).unwrap();
    until("four servers in all", || server.log().matches("listening at").count() == 4);
    until("the first one's end", || {
        !Path::new(&format!("/proc/{first}")).exists()
            && server.log().matches("shutting").count() == 2
    });
    server.call(&["echo", "1"]).assert().success();
    taskfork().args(["call", &two, "echo", "2"]).assert().success().stdout("2\n");
    assert!(server.program.try_wait().unwrap().is_none());
    // Both servers end with the command.
    let pid = rustix::process::Pid::from_raw(server.program.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(server.program.wait().unwrap().success());
    for name in ["s", "t"] {
        assert!(!server.folder.path().join(name).exists(), "{name} is left");
    }
}

#[test]
fn mistakes_in_a_file_are_reported_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    for (text, said) in [
        (
            "[pool.one]\nlisten = \"unix:FOLDER/s\"\nmax_worker = 3\n",
            ":3: unknown field `max_worker`",
        ),
        ("[pool.one]\nmax_worker = 3\n", "did you mean `max_workers`?"),
        ("[pool.one]\nlimit = { cpu_tme = 3 }\n", "did you mean `cpu-time`?"),
        ("[pol.one]\n", "did you mean `pool`?"),
        ("[pool.one]\nmax_age = \"soon\"\n", ":2: `soon` is no time"),
        ("[pool.one]\nlisten = \"unix:FOLDER/s\"\n", "pool.one has no `command`"),
        ("[pool.one]\nlisten = 7\n", ":2: invalid type: integer `7`, expected a string"),
        ("[pool]\n", "has no pool"),
        ("[pool.one\n", ":1: "),
        (
            "[pool.one]\nlisten=\"unix:FOLDER/s\"\ncommand=[\"nothing-like-it\"]",
            "there is no program",
        ),
    ] {
        let file = config(folder.path(), text);
        let tried = taskfork().args(["serve", "--config", &file]).assert().code(2);
        tried.stderr(contains(said));
    }
    let missing = ["serve", "--config", "/nonexistent.toml"];
    taskfork().args(missing).assert().code(2).stderr(contains("cannot read /nonexistent.toml"));
}

#[test]
fn bench_measures_a_load() {
    let server = Server::start(&[]);
    let words = ["bench", &server.address(), "echo", "x", "--calls", "200", "--json"];
    let out = taskfork().args(words).output().unwrap();
    assert!(out.status.success());
    let measured: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&measured["calls"], &measured["failed"]), (&200.into(), &0.into()));
    let times = &measured["times_us"];
    assert!(times["p50"].as_f64().unwrap() > 0.0);
    assert!(times["p99"].as_f64() <= times["max"].as_f64());
    let words = ["bench", &server.address(), "echo", "x", "--calls", "50"];
    let drawn = taskfork().args(words).assert().success();
    drawn.stdout(contains("50 calls in").and(contains("p99.9")).and(contains("█")));
    let words = ["bench", &server.address(), "nothing", "--calls", "5"];
    taskfork()
        .args(words)
        .assert()
        .code(1)
        .stderr(contains("5 calls failed; the first: no method"));
}

#[test]
fn an_interrupted_bench_prints_its_results_so_far() {
    let server = Server::start(&[]);
    for (signal, format) in [(Signal::INT, "--json"), (Signal::TERM, "--calls=100000")] {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        bench.args(["bench", &server.address(), "sleep", "5"]).arg(format);
        let bench =
            bench.args(["--concurrency", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let bench = bench.spawn().unwrap();
        // The first call of a worker is not counted.
        until("some calls", || {
            server.status()["workers"][0]["calls"].as_u64().is_some_and(|calls| calls > 3)
        });
        let pid = rustix::process::Pid::from_raw(bench.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let out = bench.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(130), "{out:?}");
        let text = String::from_utf8(out.stdout).unwrap();
        if format == "--json" {
            let measured: Value = serde_json::from_str(&text).unwrap();
            assert!(measured["calls"].as_u64().unwrap() > 0 && measured["interrupted"] == true);
            assert!(measured["times_us"]["p50"].as_f64().unwrap() >= 5000.0);
        } else {
            assert!(text.contains("p99.9") && text.contains(" calls in "), "{text}");
        }
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(stderr.contains("interrupted after"), "{stderr}");
        until("its worker's end", || server.status()["workers"] == Value::Array(Vec::new()));
    }
}

#[test]
fn logs_draws_messages_or_writes_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let message =
        r#"{"start":1700000000,"end":0.1,"timers":[["query",0.05,0.1]],"logs":[[0.01,30,"go"]]}"#;
    let drawn = taskfork().arg("logs").write_stdin(message).assert().success();
    drawn.stdout(contains("2023-11-14T22:13:20").and(contains("query")).and(contains("info  go")));
    let trace = folder.path().join("trace.json");
    let trace = trace.to_str().unwrap();
    taskfork().args(["logs", "--trace", trace]).write_stdin(message).assert().success();
    let written: Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    assert!(written["traceEvents"].as_array().is_some_and(|events| !events.is_empty()));
    let wrong = taskfork().arg("logs").write_stdin("{}\nno\n").assert().code(1);
    wrong.stderr(contains("of the lines are no Log::Defer messages; line 1: "));
    // The valid parts of a message from Perl are shown. The message after a line in another encoding is shown as well.
    let odd = [
        &br#"{"start":"1","data":null,"logs":[[-4.9,12.5,"early"],["x"]],"timers":[[null,0,"1"]]}"#
            [..],
        b"\xff\xfe",
        message.as_bytes(),
    ];
    let drawn = taskfork().arg("logs").write_stdin(odd.join(&b'\n')).assert().code(1);
    let drawn = drawn.stderr(contains("1 of the lines are no Log::Defer messages; line 2: "));
    drawn.stdout(
        contains("-4.90 s  12.5  early")
            .and(contains("1 lines, timers or values cannot be read"))
            .and(contains("query")),
    );
    taskfork().args(["logs", "/nonexistent"]).assert().code(2);
}

#[test]
fn times_of_every_size_can_be_given() {
    let server = Server::start(&["--hung-worker-timeout", "inf", "--shutdown-grace", "1e300"]);
    for time in ["1e15", "inf", "1e300", "18446744073709551615", "0", "1e-9"] {
        let called = server.call(&["--timeout", time, "echo", "5"]).output().unwrap();
        // The shortest time has passed before the call begins.
        let is_answered = called.stdout == b"5\n";
        assert!(is_answered || time == "1e-9", "{time}: {called:?}");
    }
    for time in ["-1", "NaN", "soon"] {
        let wrong = server.call(&["--timeout", time, "echo", "5"]).assert().code(2);
        wrong.stderr(contains("is no time"));
    }
    for option in ["--max-age", "--max-idle", "--stall-timeout", "--max-workers"] {
        let mut command = taskfork();
        command.args(["serve", "--listen", "unix:/nonexistent/s", option, "0", "--", "true"]);
        command.assert().code(2).stderr(contains(format!("{option} cannot be so: with 0")));
    }
}

#[test]
fn an_address_may_have_any_bytes() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;

    let folder = tempfile::tempdir().unwrap();
    let mut address = OsString::from("unix:");
    address.push(folder.path().join(OsStr::from_bytes(b"s\xff")));
    let escaped = format!("unix-percent:{}", folder.path().join("s%FF").display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--protocol", "json", "--listen"]).arg(&address);
    command.arg("--").arg(worker());
    let server = Server::run(folder, command);
    assert!(server.log().contains(&format!("listening at {escaped}")), "{}", server.log());
    for address in [&address, OsStr::new(&escaped)] {
        let mut call = taskfork();
        call.arg("call").arg(address).args(["echo", "5"]);
        call.assert().success().stdout("5\n");
        let mut bench = taskfork();
        bench.arg("bench").arg(address).args(["--calls", "3", "echo", "5"]);
        bench.assert().success();
        taskfork().arg("status").arg(address).assert().success().stdout(contains("serving"));
        taskfork().arg("top").arg(address).args(["--once"]).assert().success();
    }
    let path = address.as_bytes().strip_prefix(b"unix:").unwrap();
    let status = [path, b".status"].concat();
    taskfork().arg("status").arg(OsStr::from_bytes(&status)).assert().success();
}

#[test]
fn completions_and_the_manual_page_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let made = taskfork().args(["completions", shell]).assert().success();
        made.stdout(contains("taskfork"));
    }
    let page = taskfork().arg("man").assert().success();
    page.stdout(contains(".TH taskfork").and(contains("hung\\-worker\\-timeout")));
}

#[test]
fn sandbox_check_prints_what_the_kernel_supports() {
    let table = taskfork().args(["sandbox", "check"]).assert().success();
    // Nothing can be missing for this level.
    table.stdout(contains("seccomp filters").and(contains("\nyes  level off\n")));
    let json = taskfork().args(["sandbox", "check", "--json"]).output().unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["levels"][0]["level"], "off");
    assert!(json["features"].as_array().is_some_and(|features| !features.is_empty()), "{json}");
}

#[test]
fn a_sandboxed_worker_reads_only_what_is_opened() {
    let server = Server::start(&["--sandbox", "compute"]);
    server.call(&["echo", "7"]).assert().success().stdout("7\n");
    let refused = server.call(&["read", "/etc/passwd"]).assert().code(1);
    refused.stderr(contains("Permission denied"));
    assert_eq!(server.status()["sandbox"], "compute");
    drop(server);

    let opened = Server::start(&["--sandbox", "compute", "--allow-read", "/etc/passwd"]);
    opened.call(&["read", "/etc/passwd"]).assert().success();
    opened.call(&["read", "/etc/group"]).assert().code(1).stderr(contains("Permission denied"));
}

#[test]
fn workers_get_the_environment_and_directory_of_the_options() {
    let server = Server::start(&["--clear-env=PATH,LANG", "--scratch", "1MiB", "--umask", "077"]);
    server.call(&["variable", "HOME"]).assert().success().stdout("null\n");
    server.call(&["variable", "PATH"]).assert().success().stdout(starts_with("\"/"));
    server.call(&["variable", "TASKFORK_SCRATCH"]).assert().success().stdout(starts_with("\"/"));
    drop(server);
    let empty = Server::start(&["--clear-env"]);
    empty.call(&["variable", "PATH"]).assert().success().stdout("null\n");
}

#[test]
fn mistakes_about_the_sandbox_are_named_as_options_are_written() {
    let serve = |options: &[&str]| {
        let mut command = taskfork();
        command.args(["serve", "--listen", "unix:/nonexistent/s"]).args(options);
        command.args(["--", "cat"]).assert().code(2)
    };
    serve(&["--allow-connect", "80"])
        .stderr(contains("--allow-connect has no effect without --sandbox"));
    serve(&["--sandbox", "strict"]).stderr(contains("no-network, files, compute, gateway, python"));
    serve(&["--sandbox", "compute", "--allow-read", "/nonexistent"])
        .stderr(contains("`/nonexistent`"));
    serve(&["--user", "no such user"]).stderr(contains("--user cannot be so"));

    let folder = tempfile::tempdir().unwrap();
    let text = "[pool.a]\nlisten = \"unix:/tmp/a\"\ncommand = [\"cat\"]\nallow_connect = [80]";
    let file = config(folder.path(), text);
    let checked = taskfork().args(["config", "check", &file]).assert().code(2);
    checked.stderr(contains("`allow_connect` has no effect without `sandbox`"));
}
