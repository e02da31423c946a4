//! The full-screen view on a pseudo-terminal, and the state in which it leaves the terminal.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};

use common::terminal::Terminal;
use common::{Server, until};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, tcgetattr};

/// `taskfork top` on a terminal.
struct Top {
    server: Server,
    program: Child,
    terminal: Terminal,
}

impl Top {
    fn start() -> Self {
        let server = Server::start(&["--name", "plain", "--spare-workers", "1"]);
        // With this interval, only events redraw the screen.
        until("the spare worker", || {
            server.status()["workers"].as_array().is_some_and(|workers| workers.len() == 1)
        });
        let terminal = Terminal::open(120);
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        command.args(["top", &server.address(), "--interval", "1h"]);
        let program = terminal.spawn(&mut command);
        let top = Self { server, program, terminal };
        until("the first screen", || top.shows("(process"));
        assert!(top.is_raw());
        top
    }

    /// Whether the output contains a word. Spaces are not in the output, as the cursor moves instead.
    fn shows(&self, word: &str) -> bool {
        self.terminal.has_received(word)
    }

    /// Whether the terminal neither buffers lines nor echoes input.
    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal.terminal).unwrap().local_modes;
        let lines = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        assert!(modes.contains(lines) || !modes.intersects(lines), "{modes:?}");
        !modes.contains(lines)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.program.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the end, and checks that the terminal is restored.
    fn end(&mut self) -> ExitStatus {
        let status = self.program.wait().unwrap();
        assert!(!self.is_raw(), "the terminal is raw");
        until("the screen of before", || self.shows("\x1b[?1049l"));
        assert!(self.shows("\x1b[?25h"), "the cursor is hidden");
        status
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        // If the test has failed, it is still running.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn every_signal_that_ends_it_restores_the_terminal() {
    for signal in [
        Signal::TERM,
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::VTALARM,
        Signal::PROF,
        Signal::XCPU,
    ] {
        let mut top = Top::start();
        top.signal(signal);
        assert_eq!(top.end().signal(), Some(signal.as_raw()));
    }
}

#[test]
fn signals_and_keys_work_while_the_server_does_not_answer() {
    let mut top = Top::start();
    let server = Pid::from_raw(top.server.program.id().cast_signed()).unwrap();
    kill_process(server, Signal::STOP).unwrap();
    // The stopped server does not answer, and the request would time out after ten seconds.
    top.terminal.write(b"d");
    until("the question", || top.shows("told"));
    top.terminal.write(b"q");
    let ended = top.end();
    kill_process(server, Signal::CONT).unwrap();
    assert!(ended.success() && !top.shows("answer:"), "{ended:?}");
}

#[test]
fn the_terminal_is_restored_while_it_is_stopped() {
    let mut top = Top::start();
    let stat = format!("/proc/{}/stat", top.program.id());
    let is_stopped = || std::fs::read_to_string(&stat).unwrap().contains(") T ");
    for stop in [Some(Signal::TSTP), None] {
        match stop {
            Some(signal) => top.signal(signal),
            None => top.terminal.write(b"\x1a"),
        }
        until("the stop", is_stopped);
        assert!(!top.is_raw());
        top.terminal.clear();
        top.signal(Signal::CONT);
        until("the screen again", || top.shows("(process"));
        until("the keys", || top.is_raw());
    }
    top.terminal.write(b"q");
    assert!(top.end().success());
}

#[test]
fn without_a_terminal_top_is_an_error() {
    let server = Server::start(&[]);
    let tried = common::taskfork().args(["top", &server.address()]).assert().code(2);
    tried.stderr(predicates::str::contains("standard output is no terminal"));
}
