//! Calls of methods that stream, by the command.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{address, taskfork, until};
use predicates::str::contains;
use taskfork::server::ServerHandle;
use taskfork::worker::{context, logger};
use taskfork::{BoxError, Emitter, Server, ServerBuilder, ServerError};

#[taskfork::interface]
trait Pages {
    /// Emits so many pages. Behind the first it waits for a file, if one is given.
    fn render(
        &mut self,
        pages: u32,
        file: Option<PathBuf>,
        out: &mut Emitter<(String, u32)>,
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
