//! What workers, clients and servers send reaches a terminal escaped: the bytes that the terminal receives are read.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command};

use common::terminal::Terminal;
use common::{address, reset_sighup, taskfork, until};

/// It sets the title, asks for the cursor's position, changes the colour by a control character of C1, and reverses
/// text.
const SEQUENCES: &str = "\u{1b}]0;peer\u{7}\u{1b}[6n\u{9b}31m\u{202e}";
const ESCAPED: &str = r"\x1b]0;peer\x07\x1b[6n\u{9b}31m\u{202e}";

/// A program on a terminal of its own.
struct OnTerminal {
    program: Child,
    terminal: Terminal,
}

impl OnTerminal {
    fn start(arguments: &[&str]) -> Self {
        // The rows of a table have room for the escaped sequences.
        let terminal = Terminal::open(200);
        reset_sighup();
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        command.args(arguments).env_remove("RUST_LOG").env_remove("NO_COLOR");
        Self { program: terminal.spawn(&mut command), terminal }
    }

    fn wait_for(&self, text: &str) {
        until(text, || self.terminal.has_received(text));
    }

    /// Panics unless the terminal has received `expected`, no control characters but line ends, and no escape
    /// sequences but those that end in one of the letters `finals`.
    fn assert_escaped(&self, expected: &str, finals: &str) {
        self.wait_for(expected);
        let text = String::from_utf8(self.terminal.received()).unwrap();
        let mut rest = text.chars();
        while let Some(letter) = rest.next() {
            assert!(!letter.is_control() || "\r\n\u{1b}".contains(letter), "{text:?}");
            if letter == '\u{1b}' {
                assert_eq!(rest.next(), Some('['), "{text:?}");
                let last = rest.find(char::is_ascii_alphabetic).unwrap();
                assert!(finals.contains(last), "{text:?}");
            }
        }
        assert!(!text.contains('\u{202e}'), "{text:?}");
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // A server ends its workers.
        let pid = rustix::process::Pid::from_raw(self.program.id().cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.program.wait();
    }
}

/// The escape sequences of colours end so.
const COLORS: &str = "m";
/// Those of a full screen: they move the cursor as well, erase, and set modes.
const SCREEN: &str = "mHJKhl";

#[test]
fn sequences_of_workers_and_clients_reach_no_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let address = address(folder.path());
    // It writes the sequences to standard error, and answers no call.
    let script = r"printf '\033]0;peer\007\033[6n\302\23331m\342\200\256\n' >&2; exec sleep 600";
    let serve = ["serve", "--protocol", "json", "--listen", &address, "--", "sh", "-c", script];
    let server = OnTerminal::start(&serve);
    server.wait_for("listening at");
    let mut call = OnTerminal::start(&["call", &address, SEQUENCES, "--timeout", "10m"]);
    server.assert_escaped(&format!("] {ESCAPED}\r\n"), COLORS);
    let status = || taskfork().args(["status", &address]).output().unwrap().stdout;
    until("the call", || String::from_utf8_lossy(&status()).contains(ESCAPED));

    OnTerminal::start(&["status", &address]).assert_escaped(ESCAPED, COLORS);
    let mut top = OnTerminal::start(&["top", &address]);
    // A column may be narrower than the method.
    top.wait_for(r"\x1b]0;peer\x07");
    top.terminal.write(b"q");
    assert!(top.program.wait().unwrap().success());
    top.assert_escaped("\u{1b}[?1049l", SCREEN);

    // The death of a worker names the method.
    call.program.kill().unwrap();
    call.program.wait().unwrap();
    let mut brief =
        OnTerminal::start(&["call", &address, SEQUENCES, "--timeout", "100ms", "--verbose"]);
    assert_eq!(brief.program.wait().unwrap().code(), Some(3));
    brief.assert_escaped(&format!("taskfork -> {ESCAPED}"), COLORS);
    server.assert_escaped(&format!("during a call of `{ESCAPED}`"), COLORS);
}

#[test]
fn sequences_of_a_server_reach_no_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // The client may have gone.
            let _ = stream.unwrap().write_all(SEQUENCES.as_bytes());
        }
    });
    let address = address(folder.path());
    let mut call = OnTerminal::start(&["call", &address, "x", "--timeout", "300ms"]);
    assert_eq!(call.program.wait().unwrap().code(), Some(3));
    call.assert_escaped(r#"it began with "\u{1b}]0;pee"#, COLORS);
}
