//! `taskfork serve --quiet` logs nothing but errors, and `--stderr hide` shows nothing of workers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Server, address, taskfork, until, worker};
use predicates::str::contains;
use rustix::process::{Pid, Signal, kill_process};

/// A command that serves the worker of these tests, which says something on standard error first.
fn noisy(folder: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--protocol", "json", "--listen", &address(folder)]).args(options);
    command.args(["--", "sh", "-c", "echo noise >&2; exec \"$0\""]).arg(worker());
    command
}

/// What a server prints from its start to its end, with an answered call and a dead worker in between.
fn said(options: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let command = noisy(folder.path(), options);
    let mut server = Server::start_only(folder, command);
    server.call(&["echo", "\"on\""]).assert().success();
    server.call(&["abort"]).assert().failure();
    kill_process(Pid::from_raw(server.program.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    assert!(server.program.wait().unwrap().success());
    server.log()
}

#[test]
fn a_quiet_server_logs_nothing_and_its_workers_say_what_they_say() {
    let usual = said(&[]);
    assert!(
        ["listening at", "noise", "SIGABRT"].iter().all(|text| usual.contains(text)),
        "{usual}"
    );
    let quiet = said(&["--quiet"]);
    assert!(
        quiet.lines().count() == 2 && quiet.lines().all(|line| line.ends_with("] noise")),
        "{quiet}"
    );
    assert_eq!(said(&["--quiet", "--stderr", "hide"]), "");
    assert_eq!(said(&["-q", "--log-format", "json", "--stderr", "hide"]), "");
    let hidden = said(&["--stderr", "hide"]);
    assert!(hidden.contains("listening at") && !hidden.contains("noise"), "{hidden}");
}

#[test]
fn the_error_of_a_call_has_what_is_hidden() {
    let folder = tempfile::tempdir().unwrap();
    let command = noisy(folder.path(), &["--stderr", "hide"]);
    let server = Server::start_only(folder, command);
    server.call(&["abort"]).assert().failure().stderr(contains("noise"));
}

#[test]
fn errors_of_a_quiet_server_are_printed() {
    let nowhere = ["serve", "--quiet", "--listen", "unix:/nonexistent/s", "--", "true"];
    taskfork().args(nowhere).assert().failure().stderr(contains("/nonexistent"));
    let both = ["serve", "--quiet", "--listen", "unix:/nonexistent/s", "--verbose", "--", "true"];
    taskfork().args(both).assert().code(2).stderr(contains("exclude each other"));
    // A program that is there at the start, and then not any more.
    let folder = tempfile::tempdir().unwrap();
    let (program, socket) = (folder.path().join("program"), folder.path().join("s"));
    std::fs::copy(worker(), &program).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--quiet", "--listen", &address(folder.path()), "--"]).arg(&program);
    let server = Server::start_only(folder, command);
    until("its socket", || socket.exists());
    std::fs::remove_file(&program).unwrap();
    server.call(&["echo"]).assert().failure().stderr(contains("cannot start the program"));
    until("the error", || server.log().contains("ERROR"));
}

#[test]
fn a_file_says_which_pools_are_quiet() {
    let run = |is_quiet: [bool; 2], options: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let pools = [("one", is_quiet[0]), ("two", is_quiet[1])].map(|(name, is_quiet)| {
            let (listen, worker) = (folder.path().join(name), worker());
            format!(
                "[pool.{name}]\nlisten = \"unix:{}\"\nprotocol = \"json\"\nquiet = {is_quiet}\ncommand = [{:?}]\n",
                listen.display(),
                worker.display().to_string()
            )
        });
        let file = folder.path().join("pools.toml");
        std::fs::write(&file, pools.concat()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        command.args(["serve", "--config"]).arg(&file).args(options);
        let mut server = Server::start_only(folder, command);
        for name in ["one", "two"] {
            let address = format!("unix:{}", server.folder.path().join(name).display());
            taskfork().args(["call", &address, "echo", "1"]).assert().success();
        }
        let pid = Pid::from_raw(server.program.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(server.program.wait().unwrap().success());
        server.log()
    };
    let half = run([true, false], &[]);
    assert!(half.contains("/two") && !half.contains("/one"), "{half}");
    assert_eq!(run([true, true], &[]), "");
    assert_eq!(run([false, true], &["--quiet"]), "");
    // An option of the command line counts more than the file.
    assert!(run([true, true], &["--log-level", "info"]).contains("/one"));
}
