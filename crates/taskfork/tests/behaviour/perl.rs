//! The protocol of AnyEvent::Task: sessions recorded between its own client and server, replayed
//! against our server, and what was not recorded.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use log_defer::Log;
use serde_json::{Value, json};
use taskfork::client::Protocol;
use taskfork::error::FatalError;
use taskfork::worker::{Arguments, Function, logger};
use taskfork::{BoxError, Client, Error, Methods, ServerBuilder, ServerError};

use crate::support::processes::{children, is_alive};
use crate::support::{address_in, programs, start, start_with, trial, until};

/// One read of a recorded session.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) connection: u64,
    pub(crate) from_client: bool,
    /// Nothing for the end.
    pub(crate) bytes: Option<Vec<u8>>,
}

pub(crate) fn recorded(scenario: &str) -> Vec<Recorded> {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recorded/{scenario}.jsonl"));
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| Recorded {
            connection: line["conn"].as_u64().unwrap(),
            from_client: line["from"] == "client",
            // Octets are recorded as characters.
            bytes: line["bytes"].as_str().map(|text| text.chars().map(|c| c as u8).collect()),
        })
        .collect()
}

/// A server with the interface of the recorded one.
pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::<u32>::new()
        .function("echo", |value: taskfork::client::Value| Ok(value))
        .variadic("args", |_, args| Ok(args.parse::<Vec<taskfork::client::Value>>()?))
        .variadic("count", |_, args| Ok(args.len()))
        .function("add", |a: i64, b: i64| Ok(a + b))
        .function("nothing", || Ok(()))
        .function("unicode", |text: String| Ok(format!("café 😀 {}", text.chars().count())))
        .function("boom", || Err::<(), _>("ouch\n".into()))
        .function("logboom", || {
            logger().error("before dying");
            Err::<(), _>("dead\n".into())
        })
        .function("log", || {
            logger().info("about to compute some operation");
            let timer = logger().timer("computing some operation");
            std::thread::sleep(Duration::from_millis(50));
            timer.stop();
            logger().warn(("odd", json!({"n": 1})));
            logger().data("k", "v");
            Ok("logged")
        })
        .function("hang", || -> Result<(), BoxError> {
            loop {
                std::thread::park();
            }
        })
        .function("pid", || Ok(std::process::id()))
        .function("not_a_number", || Ok(f64::NAN))
        .function("bytes", || Ok(taskfork::Blob::from(vec![b'a', 0xe9])))
        .function("number", |number: f64| Ok(number))
        .function("exit_now", || -> Result<(), BoxError> { std::process::exit(1) });
    let setups = std::cell::Cell::new(0);
    let fails = std::env::var_os("TASKFORK_TEST_FAILING_SETUP").is_some();
    server
        .hung_worker_timeout(Duration::from_secs(2))
        .setup(move || {
            setups.set(setups.get() + 1);
            match fails && setups.get() == 1 {
                true => Err(BoxError::from("no database\n")),
                false => Ok(setups.get()),
            }
        })
        .interface(methods)
        .run()
}

pub(crate) fn coderef(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .interface(Function::new(|_: &mut (), method: Option<&str>, args: Arguments<'_>| {
            assert_eq!(method, None);
            let argv: Vec<taskfork::client::Value> = args.parse()?;
            Ok(json!({"n": argv.len(), "argv": argv}))
        }))
        .run()
}

/// The next message on a socket; nothing at its end.
pub(crate) fn message(socket: &mut UnixStream) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        let mut byte = [0];
        if socket.read(&mut byte).unwrap() == 0 {
            assert!(text.is_empty(), "it ended in a message: {text:?}");
            return None;
        }
        text.push(byte[0]);
        // No other byte ends a message.
        if byte[0] == b']' && serde_json::from_slice::<Value>(&text).is_ok() {
            return Some(text);
        }
    }
}

/// What the worker says that does not depend on Perl or on the time.
fn comparable(message: &[u8]) -> Value {
    let mut message: Value = serde_json::from_slice(message).unwrap();
    if message[2].as_str().is_some_and(|text| text.contains("perl") || text.contains(".pm line")) {
        message[2] = "in Perl's words".into();
    }
    if let Some(log) = message[1].get_mut("ld") {
        let lines = log["logs"].as_array().unwrap();
        let lines = lines.iter().map(|line| line.as_array().unwrap()[1..].to_vec());
        let timers = log["timers"].as_array().into_iter().flatten().map(|timer| timer[0].clone());
        let timers = timers.collect::<Vec<_>>();
        let start = log["start"].as_f64().unwrap() > 1e9;
        let log = json!({"logs": lines.collect::<Vec<_>>(), "timers": timers, "data": log["data"],
            "start": start});
        message[1]["ld"] = log;
    }
    message
}

/// Plays what a client of the original has sent; gives how many messages came back that are not
/// byte by byte those of the original.
async fn play_client(scenario: &str, path: &Path) {
    let mut connections = BTreeMap::<u64, UnixStream>::new();
    for read in recorded(scenario) {
        let connection = connections.entry(read.connection).or_insert_with(|| {
            let socket = UnixStream::connect(path).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket
        });
        match (read.from_client, read.bytes) {
            (true, Some(bytes)) => connection.write_all(&bytes).unwrap(),
            // Ours may have seen its worker's death already.
            (true, None) => drop(connection.shutdown(std::net::Shutdown::Write)),
            (false, None) => assert_eq!(message(connection), None, "{scenario}"),
            (false, Some(bytes)) => {
                let ours = message(connection).unwrap();
                let texts = [&ours, &bytes].map(|bytes| String::from_utf8_lossy(bytes));
                let [ours, theirs] = [&ours, &bytes].map(|message| comparable(message));
                match scenario {
                    // The number is a text in one of three answers of the original, as Perl has it.
                    "coderef" => assert_eq!(ours[2]["argv"], theirs[2]["argv"]),
                    // An object and a function do not exist in Rust, and Perl says so in its words.
                    "errors" => assert_eq!((&ours[0], &ours[1]), (&theirs[0], &theirs[1])),
                    "log" => assert_eq!(ours, theirs),
                    _ => assert_eq!(texts[0], texts[1], "{scenario}"),
                }
            }
        }
    }
}

trial!(the_server_answers_recorded_clients_as_the_original_did, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let program = programs::start(&["serve_perl", &address_in(&folder)]);
    until("the server", || UnixStream::connect(&path).is_ok()).await;
    for scenario in [
        "calls",
        "errors",
        "queue_cleared",
        "log",
        "died",
        "timeout",
        "hung",
        "max_checkouts",
        "standby",
        "abort",
    ] {
        play_client(scenario, &path).await;
        until("the workers' end", || children(program.pid()).is_empty()).await;
    }
    drop(program);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let mut command = programs::command(&["serve_perl", &address_in(&folder)]);
    command.env("TASKFORK_TEST_FAILING_SETUP", "yes");
    let _program = crate::support::processes::Program::new(command.spawn().unwrap());
    until("the server", || UnixStream::connect(&path).is_ok()).await;
    play_client("setup", &path).await;
});

trial!(the_server_answers_an_interface_that_is_one_function_as_the_original_did, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let _program = programs::start(&["serve_coderef", &address_in(&folder)]);
    until("the server", || UnixStream::connect(&path).is_ok()).await;
    play_client("coderef", &path).await;
});

/// A server of these tests and a connection to it.
async fn connect() -> (tempfile::TempDir, crate::support::processes::Program, UnixStream) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let program = programs::start(&["serve_perl", &address_in(&folder)]);
    let mut socket = None;
    // Its file is there before it listens.
    until("the server", || {
        socket = UnixStream::connect(&path).ok();
        socket.is_some()
    })
    .await;
    let socket = socket.unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (folder, program, socket)
}

trial!(the_server_takes_messages_cut_at_every_byte, async || {
    let (_folder, _program, mut socket) = connect().await;
    for read in recorded("calls") {
        match (read.from_client, read.bytes) {
            (true, Some(bytes)) => {
                for byte in bytes {
                    socket.write_all(&[b' ', byte][usize::from(byte != b'[')..]).unwrap();
                }
            }
            (false, Some(bytes)) => assert_eq!(message(&mut socket).unwrap(), bytes),
            _ => {}
        }
    }
});

trial!(the_server_takes_many_messages_at_once, async || {
    let (_folder, _program, mut socket) = connect().await;
    let all = recorded("calls");
    let of = |from_client| {
        let reads = all.iter().filter(move |read| read.from_client == from_client);
        reads.filter_map(|read| read.bytes.clone()).collect::<Vec<_>>().concat()
    };
    socket.write_all(&of(true)).unwrap();
    let mut answers = vec![0; of(false).len()];
    socket.read_exact(&mut answers).unwrap();
    assert_eq!(answers, of(false));
});

fn both(entry: &str) -> (taskfork::server::ServerHandle, Client) {
    start_with(entry, |client| client.protocol(Protocol::Perl))
}

trial!(a_client_and_a_server_of_ours_speak_it_with_each_other, async || {
    let (_server, client) = both("perl");
    let checkout = client.checkout();
    assert_eq!(checkout.call::<i64>("add", (2, 3)).await.unwrap(), 5);
    for number in [0.1 + 0.2, -1e-300, 1e300, 5e-324] {
        assert_eq!(checkout.call::<f64>("number", (number,)).await.unwrap(), number);
    }
    for number in [json!(u64::MAX), json!(i64::MIN), json!(true), json!(null)] {
        assert_eq!(checkout.call::<Value>("echo", (&number,)).await.unwrap(), number);
    }
    let long = "é".repeat(300_000);
    assert_eq!(checkout.call::<String>("echo", (&long,)).await.unwrap(), long);
    let error = checkout.call::<()>("add", (1,)).await.unwrap_err();
    assert_eq!(error.to_string(), "bad arguments: expected 2 arguments, got 1");
    let error = checkout.call::<()>("ad", ()).await.unwrap_err();
    assert!(error.to_string().starts_with("unknown method `ad`: there is add, args"), "{error}");

    let log = Log::new(drop);
    assert_eq!(client.checkout().log(&log).call::<String>("log", ()).await.unwrap(), "logged");
    let message = log.message();
    assert_eq!(message.logs.len(), 2);
    assert!(message.logs[0].time > 0.0 && message.logs[1].time >= message.logs[0].time + 0.05);

    let error = client.call::<()>("exit_now", ()).await.unwrap_err();
    assert!(matches!(error, Error::Fatal { cause: FatalError::WorkerDied(_), .. }), "{error}");
    let (_server, client) = both("coderef");
    assert_eq!(client.call::<Value>("a", (1,)).await.unwrap(), json!({"n": 2, "argv": ["a", 1]}));
});

trial!(results_that_json_does_not_have_are_errors, async || {
    let (_server, client) = both("perl");
    let checkout = client.checkout();
    let error = checkout.call::<f64>("not_a_number", ()).await.unwrap_err();
    let expected = "error JSON encoding interface output: NaN is no number in JSON";
    assert_eq!(error.to_string(), expected);
    assert_eq!(checkout.call::<String>("bytes", ()).await.unwrap(), "aé");
    let error = checkout.call::<f64>("number", (f64::INFINITY,)).await.unwrap_err();
    assert!(error.to_string().contains("argument 1: inf is no number"), "{error}");
    let deep = (0..129).fold(json!(1), |inside, _| json!([inside]));
    let error = checkout.call::<Value>("echo", (deep,)).await.unwrap_err();
    assert!(error.to_string().contains("deeper than 128"), "{error}");
    assert!(!error.may_have_run());
});

/// What Perl prints for the largest number, which is larger.
const LARGEST: &str = "1.79769313486232e+308";

trial!(numbers_that_no_float_holds_are_infinity, async || {
    let (_folder, client) = answered_with([
        format!(r#"["ok",{{}},{LARGEST}]"#),
        r#"["ok",{},[-1e999,1.7976931348623157e308]]"#.to_owned(),
        format!(r#"["ok",{{"ld":{{"start":1,"logs":[[0.5,30,{LARGEST},nan]]}}}},5]"#),
    ]);
    let log = Log::new(drop);
    let checkout = client.checkout().log(&log);
    assert_eq!(checkout.call::<f64>("number", ()).await.unwrap(), f64::INFINITY);
    let numbers = checkout.call::<[f64; 2]>("number", ()).await.unwrap();
    assert_eq!(numbers, [f64::NEG_INFINITY, f64::MAX]);
    assert_eq!(checkout.call::<i64>("number", ()).await.unwrap(), 5);
    assert_eq!(log.message().logs[0].items, [LARGEST, "nan"]);

    let (_server, client) = start("executable");
    let text = format!(r#"["ok",{{}},[{LARGEST},-1e400]]"#);
    let numbers = client.call::<[f64; 2]>("raw", (text,)).await.unwrap();
    assert_eq!(numbers, [f64::INFINITY, f64::NEG_INFINITY]);
});

/// A client of a server that gives these answers on one connection, and no others.
pub(crate) fn answered_with<const N: usize>(answers: [String; N]) -> (tempfile::TempDir, Client) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        for answer in answers {
            message(&mut socket).unwrap();
            socket.write_all(answer.as_bytes()).unwrap();
        }
        // It is closed by the other side.
        let _ = socket.read(&mut [0; 8]);
    });
    let client = Client::builder().address(address_in(&folder)).protocol(Protocol::Perl);
    (folder, client.min_workers(0).max_workers(1).build().unwrap())
}

/// Answers that are no JSON though their ends are known, and what the errors say.
const NO_JSON: [(&str, &str); 7] = [
    (r#"["ok",{},nan]"#, r#"`nan` is no number of JSON: ["ok",{},nan]"#),
    (r#"["ok",{},{"price":[-inf]}]"#, r#"`-inf` is no number of JSON: ["ok",{},{"price":[-inf]}]"#),
    (r#"["ok",{},[Inf,NaN]]"#, "`Inf` is no number"),
    (r#"["ok",{},undef]"#, "`undef` is no value"),
    (r#"["ok",{},[1,]]"#, "a value was expected"),
    (r#"["ok",{"x":},1]"#, "at byte 11, where a value was expected"),
    (r#"["er",{},"a" "b"]"#, "`]` was expected"),
];

trial!(an_answer_that_is_no_json_is_the_error_of_its_call, async || {
    let mut answers = NO_JSON.map(|(answer, _)| answer.to_owned()).to_vec();
    answers.push(r#"["ok",{},"next"]"#.to_owned());
    let (_folder, client) = answered_with::<8>(answers.try_into().unwrap());
    let checkout = client.checkout();
    for (_, said) in NO_JSON {
        let error = checkout.call::<Value>("any", ()).await.unwrap_err();
        assert!(!error.is_fatal() && error.may_have_run(), "{error}");
        assert!(error.to_string().contains(said), "{error} lacks {said}");
    }
    assert_eq!(checkout.call::<String>("any", ()).await.unwrap(), "next");
});

trial!(a_program_that_answers_no_json_lives_on, async || {
    let (_server, client) = start("executable");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    for (answer, said) in NO_JSON {
        let error = checkout.call::<Value>("raw", (answer,)).await.unwrap_err();
        assert!(!error.is_fatal(), "{error}");
        assert!(error.to_string().contains(said), "{error} lacks {said}");
    }
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
    // A message that need not be an answer is treated as none: the checkout is over.
    let error = checkout.call::<Value>("raw", (r#"["debug",{},nan]"#,)).await.unwrap_err();
    assert!(error.is_fatal(), "{error}");
});

trial!(a_call_that_is_no_json_is_answered, async || {
    let (_folder, _program, mut socket) = connect().await;
    for (call, said) in [
        (&br#"["do",{},"number",nan]"#[..], "`nan` is no number of JSON"),
        (br#"["do",{},"number",-inf]"#, "`-inf` is no number of JSON"),
        (b"[\"do\",{},01]", "`01` is no value of JSON"),
        (b"[\"do\",{},\"\xff\"]", "at byte 10, where a string is not UTF-8"),
        (br#"["do",{},"number",1e999]"#, "error JSON encoding interface output: inf is no number"),
    ] {
        socket.write_all(call).unwrap();
        let answer = serde_json::from_slice::<Value>(&message(&mut socket).unwrap()).unwrap();
        assert_eq!(answer[0], "er");
        let text = answer[2].as_str().unwrap();
        assert!(text.contains(said), "{text} lacks {said}");
    }
    socket.write_all(b"[\"do\",{},\"nothing\"]").unwrap();
    assert_eq!(message(&mut socket).unwrap(), b"[\"ok\",{},null]");
});

trial!(two_keys_that_json_cannot_tell_apart_are_an_error, async || {
    let (_server, client) = both("perl");
    let keys = |other: &str| {
        taskfork::client::Value::Map(vec![(1.into(), "a".into()), (other.into(), "b".into())])
    };
    let error = client.call::<Value>("echo", (keys("1"),)).await.unwrap_err();
    let said = "argument 1: two keys of a map are both \"1\" in JSON";
    assert!(error.to_string().contains(said) && !error.may_have_run(), "{error}");
    let map = client.call::<Value>("echo", (keys("2"),)).await.unwrap();
    assert_eq!(map, json!({"1": "a", "2": "b"}));
});

trial!(broken_messages_close_that_connection_with_a_clear_line, async || {
    let server = crate::bad_peers::Logged::start();
    for (sent, logged) in [
        (&b"[\"dn\",{\"x\":nan},nan]"[..], "`nan` is no number of JSON"),
        (b"[\"what\",{},nan]", "a client sends no such message as"),
        (b"[\"what\",{}]", "a client sends no such message as"),
        (b"[\"do\"]", "does not begin with a kind and a map"),
        (b"[1] x", "does not begin with"),
        (b"   \n {\"do\":1}", "does not speak this protocol"),
    ] {
        server.reject(false, sent, false, logged).await;
    }
    let mut socket = UnixStream::connect(server.path()).unwrap();
    socket.write_all(b"[\"do\",{},\"nothing\"]").unwrap();
    assert_eq!(message(&mut socket).unwrap(), b"[\"ok\",{},null]");
    socket.write_all(b"[\"do\",{}").unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(message(&mut socket), None);
    until("the log line", || server.log().contains("in the middle of a frame")).await;
});

trial!(a_worker_dies_with_the_client_that_it_works_for, async || {
    let (_folder, _program, mut socket) = connect().await;
    socket.write_all(b"[\"do\",{},\"pid\"][\"do\",{},\"hang\"]").unwrap();
    let pid = serde_json::from_slice::<Value>(&message(&mut socket).unwrap()).unwrap();
    let pid = u32::try_from(pid[2].as_u64().unwrap()).unwrap();
    assert!(is_alive(pid));
    drop(socket);
    until("the worker's end", || !is_alive(pid)).await;
});

trial!(an_answer_that_is_none_breaks_the_checkout, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let thread = std::thread::spawn(move || {
        for answer in [&b"[\"no\",{},1]"[..], b"{}", b"[\"ok\",{},1,2]"] {
            let (mut socket, _) = listener.accept().unwrap();
            message(&mut socket).unwrap();
            socket.write_all(answer).unwrap();
            // It is closed by the other side.
            let _ = socket.read(&mut [0; 8]);
        }
    });
    let client = Client::builder().address(address_in(&folder)).protocol(Protocol::Perl);
    let client = client.min_workers(0).max_workers(1).build().unwrap();
    for _ in 0..3 {
        let error = client.call::<i64>("add", (1, 2)).await.unwrap_err();
        let is_broken = matches!(error, Error::Fatal { cause: FatalError::Protocol { .. }, .. });
        assert!(is_broken, "{error}");
    }
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
});
