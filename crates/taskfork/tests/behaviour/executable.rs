//! Workers that are programs of their own. The program is this binary, which speaks JSON by hand.

use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use log_defer::Log;
use serde_json::{Value, json};
use taskfork::blob::{BlobMut, OpenFile};
use taskfork::client::Protocol;
use taskfork::error::{CallError, End, FatalError, Stage};
use taskfork::server::ServerStatus;
use taskfork::worker::Executable;
use taskfork::{Client, Error, Server, ServerBuilder, ServerError};

use crate::setup::timed_out;
use crate::support::processes::{children, is_gone, signal};
use crate::support::raw::{Raw, greet_as, map, of_call};
use crate::support::{address_in, programs, start, start_with, trial, until};

fn this_program(program: &str) -> Executable {
    let path = std::env::current_exe().unwrap();
    let script = format!("TASKFORK_TEST_PROGRAM={program} exec '{}'", path.display());
    Executable::new("sh").arg("-c").arg(script).protocol(Protocol::Perl)
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    server.executable(this_program("json_worker")).run()
}

pub(crate) fn missing(server: ServerBuilder) -> Result<(), ServerError> {
    server.executable(Executable::new("/nonexistent/program")).run()
}

pub(crate) fn silent(server: ServerBuilder) -> Result<(), ServerError> {
    let script = "echo no such module >&2; exit 3";
    server.executable(Executable::new("sh").arg("-c").arg(script)).run()
}

/// A program that becomes a worker when a file is there.
pub(crate) fn waiting(server: ServerBuilder) -> Result<(), ServerError> {
    let (folder, own): (PathBuf, _) = (server.config()?, std::env::current_exe().unwrap());
    let script = "while [ ! -e \"$0/go\" ]; do sleep 0.01; done; exec \"$1\"";
    let shell = Executable::new("env").arg("TASKFORK_TEST_PROGRAM=native_worker").arg("sh");
    server.executable(shell.arg("-c").arg(script).arg(folder).arg(own)).run()
}

pub(crate) fn native(server: ServerBuilder) -> Result<(), ServerError> {
    server.executable(this_program("native_worker").protocol(Protocol::Native)).run()
}

/// A program that speaks the native protocol by hand.
pub(crate) fn work_natively() {
    let descriptor = std::env::var("TASKFORK_FD").unwrap().parse().unwrap();
    // SAFETY: it is this program's own.
    #[allow(unsafe_code)]
    let mut raw = Raw(unsafe { UnixStream::from_raw_fd(descriptor) });
    greet_as(&mut raw, &[]);
    let mut calls = 0;
    while let Some(message) = raw.receive() {
        if message[0] != 1.into() {
            continue;
        }
        calls += 1;
        let meta = match message[2].as_str().unwrap() {
            "right" => of_call(calls),
            "before" => of_call(calls - 1),
            _ => map(&[]),
        };
        raw.send_message(vec![1.into(), meta, 5.into()]);
    }
}

/// What the program does.
pub(crate) fn work() {
    let descriptor = std::env::var("TASKFORK_FD").unwrap().parse().unwrap();
    // SAFETY: it is this program's own.
    #[allow(unsafe_code)]
    let mut socket = unsafe { UnixStream::from_raw_fd(descriptor) };
    let (mut text, mut done) = (Vec::new(), 0);
    let mut byte = [0];
    while socket.read(&mut byte).unwrap() == 1 {
        text.push(byte[0]);
        // No other byte ends a message.
        if byte[0] != b']' {
            continue;
        }
        let Ok(message) = serde_json::from_slice::<Value>(&text) else { continue };
        text.clear();
        if message[0] == "dn" {
            done += 1;
            continue;
        }
        let answer = match message[2].as_str().unwrap() {
            "echo" => json!(["ok", {}, message[3]]),
            "pid" => json!(["ok", {}, std::process::id()]),
            "variables" => {
                let names = std::env::vars_os().map(|(name, _)| name.display().to_string());
                json!(["ok", {}, names.collect::<Vec<_>>()])
            }
            "status" => {
                let status = std::fs::read_to_string("/proc/self/status").unwrap();
                json!(["ok", {}, status])
            }
            "raw" => {
                socket.write_all(message[3].as_str().unwrap().as_bytes()).unwrap();
                continue;
            }
            "done" => json!(["ok", {}, done]),
            "boom" => json!(["er", {"ld": {"start": 1.0, "logs": [[0.5, 20, "careful"]]}}, "no"]),
            "wait_for" => {
                crate::signals::wait_for(message[3].as_str().unwrap()).unwrap();
                json!(["ok", {}, std::process::id()])
            }
            "bye" => json!(["ok", {}, "bye"]),
            "garbage" => json!({"what": 1}),
            "answer_twice" => {
                // In one piece, as of a child that has answered while the answer to this call was sent.
                socket.write_all(b"[\"ok\",{},1] [\"ok\",{},1]").unwrap();
                continue;
            }
            "abort_with_holder" => {
                crate::forks::start_holder();
                std::process::abort()
            }
            "exit" => std::process::exit(7),
            "abort" => std::process::abort(),
            "hang" => loop {
                std::thread::park();
            },
            other => json!(["er", {}, format!("there is no {other}")]),
        };
        socket.write_all(answer.to_string().as_bytes()).unwrap();
        if message[2] == "bye" {
            return;
        }
    }
}

trial!(a_program_answers_in_another_protocol_than_the_client_speaks, async || {
    let (_server, client) = start("executable");
    let long = "x".repeat(200_000);
    assert_eq!(client.call::<String>("echo", (&long,)).await.unwrap(), long);
    let checkout = client.checkout();
    let calls: Vec<_> = (0..100).map(|number| checkout.call::<u64>("echo", (number,))).collect();
    for (number, call) in (0..).zip(calls) {
        assert_eq!(call.await.unwrap(), number);
    }
    let (_server, client) = start_with("executable", |client| client.protocol(Protocol::Perl));
    assert_eq!(client.call::<String>("echo", ("text",)).await.unwrap(), "text");
});

trial!(errors_and_logs_of_a_program_arrive, async || {
    let (_server, client) = start("executable");
    let log = Log::new(drop);
    let checkout = client.checkout().log(&log);
    let error = checkout.call::<()>("boom", ()).await.unwrap_err();
    assert_eq!(error.to_string(), "no");
    let lines = log.message().logs;
    assert_eq!(lines[0].items, ["careful"]);
    assert_eq!(checkout.call::<String>("echo", ("still here",)).await.unwrap(), "still here");
});

trial!(errors_of_a_program_are_one_line_for_all_but_clients_in_perl, async || {
    let (_server, client) = start("executable");
    let answer = r#"["er",{},"ouch at worker.pl line 5.\n"]"#;
    let said = |error: Error| error.to_string();
    let expected = "ouch at worker.pl line 5.";
    assert_eq!(client.call::<()>("raw", (answer,)).await.map_err(said), Err(expected.to_owned()));
    // Of a client in Perl, `die` adds nothing to a text with a newline.
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_executable", &address_in(&folder)]);
    let mut socket = None;
    until("the server", || {
        socket = UnixStream::connect(folder.path().join("s")).ok();
        socket.is_some()
    })
    .await;
    let mut socket = socket.unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let call = json!(["do", {}, "raw", answer]).to_string();
    socket.write_all(call.as_bytes()).unwrap();
    assert_eq!(crate::perl::message(&mut socket).unwrap(), answer.as_bytes());
});

trial!(a_program_that_ends_is_a_worker_that_ends_so, async || {
    let (_server, client) = start("executable");
    for (method, end) in [("exit", End::Exited(7)), ("abort", End::Signaled(libc::SIGABRT))] {
        let error = client.call::<()>(method, ()).await.unwrap_err();
        let Error::Fatal { cause: FatalError::WorkerDied(death), may_have_run, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((death.end, may_have_run), (end, true));
    }
});

trial!(a_program_that_dies_between_calls_is_replaced_unseen, async || {
    let (_server, client) = start_with("executable", |client| client.max_workers(1));
    for _ in 0..5 {
        let pid: u32 = client.call("pid", ()).await.unwrap();
        signal(pid, libc::SIGKILL);
        until("its end", || is_gone(pid)).await;
        assert_eq!(client.call::<String>("echo", ("next",)).await.unwrap(), "next");
    }
});

trial!(the_last_answer_of_a_program_that_ends_arrives, async || {
    let (_server, client) = start("executable");
    for _ in 0..20 {
        let checkout = client.checkout();
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        assert_eq!(checkout.call::<String>("bye", ()).await.unwrap(), "bye");
        drop(checkout);
        // A call that comes just before its end would be lost with it.
        until("its end", || is_gone(pid)).await;
    }
});

trial!(a_program_that_hangs_is_killed_at_its_calls_deadline, async || {
    let (_server, client) = start("executable");
    let checkout = client.checkout().timeout(Duration::from_millis(200));
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let error = checkout.call::<()>("hang", ()).await.unwrap_err();
    assert!(error.to_string().starts_with("timed out after 0.2 seconds"), "{error}");
    until("the program's end", || is_gone(pid)).await;
});

trial!(a_program_ends_with_its_client, async || {
    let (_server, client) = start("executable");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let hanging = checkout.call::<()>("hang", ());
    until("the call", || client.stats().busy == 1).await;
    drop((hanging, checkout));
    until("the busy program's end", || is_gone(pid)).await;
    let pid: u32 = client.call("pid", ()).await.unwrap();
    drop(client);
    until("the idle program's end", || is_gone(pid)).await;
});

trial!(a_program_that_is_not_there_is_a_failed_setup, async || {
    let (_server, client) = start("executable_missing");
    let error = client.call::<()>("echo", ()).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Setup { .. }, .. }), "{error}");
    let said = "setup exception: cannot start the program /nonexistent/program: No such file";
    assert!(error.to_string().starts_with(said), "{error}");
});

trial!(the_error_of_a_program_that_ends_before_its_hello_has_its_stderr, async || {
    let (_server, client) = start("executable_silent");
    let error = client.call::<()>("echo", ()).await.unwrap_err();
    let Error::Fatal { cause: FatalError::WorkerDied(death), .. } = error else {
        panic!("{error}");
    };
    assert_eq!(death.end, End::Exited(3));
    assert_eq!(death.stderr.as_deref(), Some("no such module"));
});

trial!(a_call_whose_time_ends_before_the_programs_hello_has_not_run, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::spawn_with("executable_waits", &folder.path()).unwrap();
    let client = Client::builder().address(server.address()).min_workers(0).build().unwrap();
    let short = client.with_timeout(Duration::from_millis(300));
    assert_eq!(timed_out(short.call::<u64>("right", ()).await), (Stage::Setup, false));
    let waiting = client.call::<u64>("right", ());
    std::fs::write(folder.path().join("go"), "").unwrap();
    assert_eq!(waiting.await.unwrap(), 5);
});

trial!(a_program_that_breaks_the_protocol_ends, async || {
    let (_server, client) = start("executable");
    let error = client.call::<()>("garbage", ()).await.unwrap_err();
    let Error::Fatal { cause: FatalError::WorkerDied(death), .. } = error else {
        panic!("{error}");
    };
    assert_eq!(death.end, End::Exited(76));
    let said = death.stderr.unwrap();
    assert!(said.contains("does not keep to the protocol"), "{said}");
});

// JSON has no numbers: an answer that has come before its call would be taken for that call's.
trial!(a_program_that_answers_twice_ends, async || {
    let (_server, client) = start_with("executable", |client| client.max_workers(1));
    let checkout = client.checkout();
    assert_eq!(checkout.call::<u64>("answer_twice", ()).await.unwrap(), 1);
    let error = checkout.call::<u64>("echo", (2,)).await.unwrap_err();
    let Error::Fatal { cause: FatalError::WorkerDied(death), .. } = error else {
        panic!("{error}");
    };
    assert_eq!(death.end, End::Exited(76));
    let said = death.stderr.unwrap();
    assert!(said.contains("it said something between two calls"), "{said}");
    drop(checkout);
    assert_eq!(client.call::<u64>("echo", (3,)).await.unwrap(), 3);
});

trial!(a_program_that_answers_another_call_ends, async || {
    let (_server, client) = start_with("executable_native", |client| client.max_workers(1));
    for (method, said) in [
        ("before", "the answer to call 1 came where that to call 2 was due"),
        ("none", "an answer without a number came where that to call 2 was due"),
    ] {
        let checkout = client.checkout();
        assert_eq!(checkout.call::<u8>("right", ()).await.unwrap(), 5);
        let error = checkout.call::<u8>(method, ()).await.unwrap_err();
        let Error::Fatal { cause: FatalError::WorkerDied(death), .. } = error else {
            panic!("{error}");
        };
        assert_eq!(death.end, End::Exited(76));
        let stderr = death.stderr.unwrap();
        assert!(stderr.contains(said), "{stderr}");
    }
});

trial!(a_programs_death_is_reported_while_its_child_holds_the_connection, async || {
    let (_server, client) = start_with("executable", |client| client.max_workers(1));
    let checkout = client.checkout().timeout(None);
    let error = checkout.call::<()>("abort_with_holder", ()).await.unwrap_err();
    let Error::Fatal { cause: FatalError::WorkerDied(death), .. } = error else {
        panic!("{error}");
    };
    assert_eq!(death.end, End::Signaled(libc::SIGABRT));
    assert_eq!(client.call::<u64>("echo", (3,)).await.unwrap(), 3);
});

trial!(a_program_receives_the_end_of_a_checkout, async || {
    let (_server, client) = start_with("executable", |client| client.max_workers(1));
    for done in 0..3 {
        assert_eq!(client.call::<u64>("done", ()).await.unwrap(), done);
    }
});

trial!(a_worker_can_be_dismissed, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let program = programs::start(&["serve_executable", &address]);
    let client = Client::builder().address(&address).min_workers(0).max_workers(2);
    let client = client.build().unwrap();
    let (held, idle) = (client.checkout(), client.checkout());
    held.ready().await.unwrap();
    let in_use: u32 = held.call("pid", ()).await.unwrap();
    let unused: u32 = idle.call("pid", ()).await.unwrap();
    drop(idle);
    let status = folder.path().join("s.status");
    let read = || ServerStatus::read(&status).unwrap();
    until("one idle worker", || read().workers.iter().any(|worker| worker.state == "idle")).await;
    for worker in read().workers {
        ServerStatus::dismiss(&status, worker.number, None).unwrap();
    }
    until("the idle one's end", || is_gone(unused)).await;
    assert_eq!(held.call::<u32>("pid", ()).await.unwrap(), in_use);
    drop(held);
    until("the other one's end", || is_gone(in_use)).await;
    until("both in the count", || read().deaths.get("dismissed") == Some(&2)).await;
    until("nothing left", || children(program.pid()).is_empty()).await;
});

trial!(a_program_that_takes_no_files_gets_the_bytes_of_blobs, async || {
    let (_server, client) = start_with("executable", |client| client.max_workers(1));
    let mut blob = BlobMut::new(100_000).unwrap();
    blob.fill(b'x');
    let blob = blob.freeze().unwrap();
    let checkout = client.checkout();
    let back: (String, u32) = checkout.call("echo", ((&blob, 7),)).await.unwrap();
    assert_eq!(back, ("x".repeat(100_000), 7));

    let file = OpenFile::from(std::fs::File::open("/dev/null").unwrap());
    let error = checkout.call::<Value>("echo", (file,)).await.unwrap_err();
    assert!(error.to_string().contains("the program takes no open files"), "{error}");
    assert_eq!(checkout.call::<u32>("echo", (7,)).await.unwrap(), 7);
});
