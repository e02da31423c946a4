//! Calls of methods that stream, by the command.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{address, taskfork, until};
use predicates::str::contains;
use taskfork::server::ServerHandle;
use taskfork::worker::{context, logger};
use taskfork::{BoxError, Emitter, Receiver, Server, ServerBuilder, ServerError};

#[taskfork::interface]
trait Pages {
    /// Emits so many pages. Behind the first it waits for a file, if one is given.
    fn render(
        &mut self,
        pages: u32,
        file: Option<PathBuf>,
        out: &mut Emitter<(String, u32)>,
    ) -> Result<u32, BoxError>;
    /// Adds numbers.
    fn sum(&mut self, from: u64, input: &mut Receiver<u64>) -> Result<u64, BoxError>;
    /// Emits the length of each text, and counts them.
    fn lengths(
        &mut self,
        input: &mut Receiver<String>,
        out: &mut Emitter<usize>,
    ) -> Result<u32, BoxError>;
}

struct Worker;

impl Pages for Worker {
    fn render(
        &mut self,
        pages: u32,
        file: Option<PathBuf>,
        out: &mut Emitter<(String, u32)>,
    ) -> Result<u32, BoxError> {
        logger().info("rendering");
        for page in 1..=pages {
            if page == 13 {
                return Err("there is no page 13".into());
            }
            context().progress(u64::from(page), u64::from(pages), "pages");
            out.send(&("page".to_owned(), page))?;
            if let Some(file) = &file {
                until("the file", || file.exists());
            }
        }
        Ok(pages)
    }

    fn sum(&mut self, from: u64, input: &mut Receiver<u64>) -> Result<u64, BoxError> {
        Ok(from + input.sum::<Result<u64, _>>()?)
    }

    fn lengths(
        &mut self,
        input: &mut Receiver<String>,
        out: &mut Emitter<usize>,
    ) -> Result<u32, BoxError> {
        let mut count = 0;
        for text in input {
            count += 1;
            context().progress(count.into(), None, "texts");
            out.send(&text?.len())?;
        }
        Ok(count)
    }
}

fn pages(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    server.listen(address).setup(|| Ok::<_, BoxError>(Worker)).interface(PagesInterface).run()
}

taskfork::test_support!(("pages", pages));

fn start(folder: &Path) -> ServerHandle {
    Server::spawn_with("pages", &address(folder)).unwrap()
}

#[test]
fn items_are_printed_when_they_come_and_then_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let file = folder.path().join("go");
    let mut call = Command::new(env!("CARGO_BIN_EXE_taskfork"))
        .args(["call", &address(folder.path()), "render", "2"])
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(call.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "[\"page\",1]");
    // The worker has not emitted the second item yet.
    std::fs::write(&file, "").unwrap();
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    assert_eq!(rest, ["[\"page\",2]", "2"]);
    assert!(call.wait().unwrap().success());
}

#[test]
fn an_error_comes_behind_the_items_and_the_log_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let call = taskfork().args(["call", &address(folder.path()), "render", "20", "--log"]).assert();
    let call = call.code(1).stdout(contains("[\"page\",12]\n"));
    call.stderr(contains("there is no page 13")).stderr(contains("rendering"));
}

#[test]
fn repeated_calls_stream_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let words = ["render", "1", "--repeat", "2", "--concurrency", "2"];
    let call = taskfork().arg("call").arg(address(folder.path())).args(words).assert();
    call.success().stdout("[\"page\",1]\n1\n[\"page\",1]\n1\n");
}

#[test]
fn lines_of_standard_input_are_the_input() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let numbers: String = (0..10_000).map(|number| format!("{number}\n")).collect();
    let call = taskfork()
        .args(["call", &address(folder.path()), "sum", "7"])
        .write_stdin(numbers)
        .assert();
    call.success().stdout("49995007\n");
    let call =
        taskfork().args(["call", &address(folder.path()), "sum", "7"]).write_stdin("").assert();
    call.success().stdout("7\n");
    // A method without an input takes nothing of it.
    let call =
        taskfork().args(["call", &address(folder.path()), "render", "1"]).write_stdin("?").assert();
    call.success().stdout("[\"page\",1]\n1\n");
}

#[test]
fn items_are_printed_while_lines_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let mut call = Command::new(env!("CARGO_BIN_EXE_taskfork"))
        .args(["call", &address(folder.path()), "lengths"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = call.stdin.take().unwrap();
    let mut lines = BufReader::new(call.stdout.take().unwrap()).lines();
    for (line, length) in [("\"one\"\n", "3"), ("\n\"three\"\n", "5"), ("\"\"\n", "0")] {
        stdin.write_all(line.as_bytes()).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), length);
    }
    // The last line need not have an end.
    stdin.write_all(b"\"four\"").unwrap();
    drop(stdin);
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    assert_eq!(rest, ["4", "4"]);
    assert!(call.wait().unwrap().success());
}

#[test]
fn a_line_that_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let words = ["call", &address(folder.path()), "lengths"];
    let call = taskfork().args(words).write_stdin("\"a\"\n\n{\"b\"\n\"c\"\n").assert();
    let call = call.code(2).stdout("1\n");
    let call = call.stderr(contains("line 3 of standard input is no JSON value: "));
    call.stderr(contains("is one JSON value"));
    // JSON of another type than the method takes is the method's own error.
    let words = ["call", &address(folder.path()), "sum", "1"];
    let call = taskfork().args(words).write_stdin("1\n\"two\"\n").assert();
    call.code(1).stderr(contains("not of the type that the method takes"));
}

#[test]
fn a_line_that_cannot_be_read_is_not_explained_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let call = Command::new(env!("CARGO_BIN_EXE_taskfork"))
        .args(["call", &address(folder.path()), "sum", "1"])
        .stdin(std::fs::File::open(folder.path()).unwrap())
        .output()
        .unwrap();
    assert_eq!(call.status.code(), Some(2));
    let said = String::from_utf8(call.stderr).unwrap();
    assert!(said.contains("line 1 of standard input cannot be read: "), "{said}");
    assert!(!said.contains("JSON"), "{said}");
}

#[test]
fn the_time_limit_counts_the_reading_of_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let call = |timeout: &str| {
        let mut call = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        call.args(["call", &address(folder.path()), "lengths", "--timeout", timeout]);
        call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // Its standard input stays open until it has ended.
    let mut waits = call("50ms");
    let stdin = waits.stdin.take();
    let output = waits.wait_with_output().unwrap();
    drop(stdin);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("--timeout 0"), "{said}");
    let mut unlimited = call("0");
    unlimited.stdin.take().unwrap().write_all(b"\"one\"\n").unwrap();
    let output = unlimited.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "3\n1\n");
}

#[test]
fn standard_input_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let words = ["call", &address(folder.path()), "sum", "1", "--repeat", "2"];
    let call = taskfork().args(words).write_stdin("1\n").assert();
    call.code(2).stderr(contains("--repeat"));
    let words = ["call", &address(folder.path()), "sum", "-"];
    let call = taskfork().args(words).write_stdin("1\n").assert();
    call.code(2).stderr(contains("cannot be an argument as well"));
}
