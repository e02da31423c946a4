//! The log file of the command's servers, and output that cannot be written.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{until, worker};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A server that ends with the test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.0.id().cast_signed()).unwrap(), signal).unwrap();
    }

    fn end(mut self) {
        self.signal(Signal::TERM);
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            self.signal(Signal::TERM);
            self.0.wait().unwrap();
        }
    }
}

fn taskfork(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(words);
    command
}

fn count(file: &Path, what: &str) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().matches(what).count()
}

#[test]
fn all_pools_write_to_the_log_file_and_open_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("pools.toml"), folder.path().join("log"));
    let pool = |name: &str| {
        let listen = folder.path().join(name);
        let (listen, worker) = (listen.display(), worker());
        let worker = worker.display();
        format!(
            "[pool.{name}]\nlisten = \"unix:{listen}\"\nprotocol = \"json\"\ncommand = [\"{worker}\"]\n"
        )
    };
    std::fs::write(&config, pool("one") + &pool("two")).unwrap();
    let stderr = folder.path().join("stderr");
    let words =
        ["serve", "--config", config.to_str().unwrap(), "--log-file", log.to_str().unwrap()];
    let server = Server::start(taskfork(&words).stderr(File::create(&stderr).unwrap()));
    until("both servers", || count(&log, "listening at") == 2);
    let old = folder.path().join("log.1");
    std::fs::rename(&log, &old).unwrap();
    server.signal(Signal::USR1);
    until("the new file", || count(&log, "opened again") == 2);
    server.signal(Signal::USR2);
    until("what the workers do", || count(&log, "the workers follow") == 2);
    assert_eq!(std::fs::read_to_string(&stderr).unwrap(), "");
    // The command itself, which logs the end of a pool, has opened the new file too.
    let status = folder.path().join("one.status");
    let status = taskfork(&["status", status.to_str().unwrap(), "--json"]).output().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let one = Pid::from_raw(status["pid"].as_i64().unwrap().try_into().unwrap()).unwrap();
    kill_process(one, Signal::KILL).unwrap();
    until("the end of the pool", || count(&log, "pool `one` exited with status 3") == 1);
    until("the pool's new server", || count(&log, "listening at") == 1);
    assert_eq!((count(&old, "listening at"), count(&old, "opened again")), (2, 0));
    server.end();
    assert_eq!(count(&log, "shutting down"), 2);
}

#[test]
fn a_log_file_that_cannot_be_opened_is_an_error() {
    let words =
        ["serve", "--log-file", "/nonexistent/log", "--listen", "unix:/nonexistent/s", "--"];
    let out = taskfork(&words).arg(worker()).output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("cannot open the log file /nonexistent/log"), "{stderr}");
}

#[test]
fn output_that_cannot_be_written_neither_ends_a_server_nor_panics() {
    for stderr in ["a full disk", "no reader"] {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix:{}", folder.path().join("s").display());
        let stderr: Stdio = match stderr {
            "a full disk" => File::options().write(true).open("/dev/full").unwrap().into(),
            _ => std::io::pipe().unwrap().1.into(),
        };
        let words = ["serve", "--protocol", "json", "--listen", &address, "--"];
        let server = Server::start(taskfork(&words).arg(worker()).stderr(stderr));
        for _ in 0..2 {
            let death = taskfork(&["call", &address, "abort"]).output().unwrap();
            assert_eq!(death.status.code(), Some(3));
        }
        let status = taskfork(&["status", &address, "--json"]);
        let unread = |mut command: Command| {
            let (_, stdout) = std::io::pipe().unwrap();
            command.stdout(stdout).stderr(std::io::pipe().unwrap().1).status().unwrap().code()
        };
        assert_eq!(unread(status), Some(0));
        assert_eq!(unread(taskfork(&["top", &address, "--once"])), Some(0));
        let bench = ["bench", &address, "echo", "1", "--calls", "1", "--json"];
        assert_eq!(unread(taskfork(&bench)), Some(0));
        assert_eq!(unread(taskfork(&["call", &address, "no-such-method"])), Some(1));
        server.end();
    }
}
