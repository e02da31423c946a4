//! `taskfork serve --config`: the pools of a file, each with a server of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_taskfork");

/// The worker of these tests, an example that is built with them.
fn worker() -> PathBuf {
    Path::new(PROGRAM).parent().unwrap().join("examples/plain_worker")
}

/// Runs the command by the link `app` in the folder. A test can replace the link by another program.
fn by_link(folder: &Path, command: Command) -> Command {
    symlink(PROGRAM, folder.join("app")).unwrap();
    let mut changed = Command::new(folder.join("app"));
    changed.args(command.get_args());
    changed
}

/// A command that serves a file of pools, and ends with the test.
struct Pools {
    folder: tempfile::TempDir,
    program: Child,
}

impl Pools {
    fn start(pools: &[(&str, &str)]) -> Self {
        Self::start_by(pools, |_, command| command)
    }

    fn start_by(pools: &[(&str, &str)], change: impl FnOnce(&Path, Command) -> Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), pools);
        let mut command = Command::new(PROGRAM);
        // The tests may run in a terminal, where SIGHUP would end the server.
        command.args(["serve", "--restart-on-hangup", "--config"]).arg(file(folder.path()));
        let mut command = change(folder.path(), command);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        common::reset_sighup();
        let program = command.stderr(log).stdin(Stdio::null()).spawn().unwrap();
        Self { folder, program }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn logs(&self, text: &str) {
        until(&format!("`{text}`"), || self.log().contains(text));
    }

    /// The status of the server at this socket. It waits for a server.
    fn status(&self, socket: &str) -> Value {
        let mut status = None;
        until(&format!("a server at {socket}"), || {
            status = self.try_status(socket);
            status.is_some()
        });
        status.unwrap()
    }

    fn try_status(&self, socket: &str) -> Option<Value> {
        let path = self.folder.path().join(format!("{socket}.status"));
        let status = Command::new(PROGRAM).arg("status").arg(path).arg("--json").output();
        serde_json::from_slice(&status.unwrap().stdout).ok()
    }

    fn pid(&self, socket: &str) -> u64 {
        self.status(socket)["pid"].as_u64().unwrap()
    }

    fn works(&self, socket: &str) {
        let address = format!("unix:{}", self.folder.path().join(socket).display());
        let out = Command::new(PROGRAM).args(["call", &address, "echo", "7"]).output().unwrap();
        assert_eq!(out.stdout, b"7\n", "{}", String::from_utf8_lossy(&out.stderr));
    }

    fn signal(&self, signal: Signal) {
        send(u64::from(self.program.id()), signal);
    }

    fn rewrite(&self, pools: &[(&str, &str)]) {
        write(self.folder.path(), pools);
        self.signal(Signal::HUP);
    }
}

impl Drop for Pools {
    fn drop(&mut self) {
        if self.program.try_wait().unwrap().is_none() {
            self.signal(Signal::TERM);
            self.program.wait().unwrap();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn send(pid: u64, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

fn file(folder: &Path) -> PathBuf {
    folder.join("pools.toml")
}

/// Writes a file of pools, each with a name and some options, which listens at a socket of its name unless an
/// option says otherwise.
fn write(folder: &Path, pools: &[(&str, &str)]) {
    let pool = |(name, options): &(&str, &str)| {
        let listen = match options.contains("listen") {
            true => String::new(),
            false => format!("listen = \"unix:{}\"\n", folder.join(name).display()),
        };
        let options = options.replace("FOLDER", &folder.display().to_string());
        let worker = worker().display().to_string();
        format!("[pool.{name}]\n{listen}protocol = \"json\"\ncommand = [{worker:?}]\n{options}\n")
    };
    // The rename replaces the whole file at once.
    let text: String = pools.iter().map(pool).collect();
    std::fs::write(folder.join("new"), text).unwrap();
    std::fs::rename(folder.join("new"), file(folder)).unwrap();
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_pool_that_dies_is_named_and_started_again_while_the_others_go_on() {
    let mut pools = Pools::start(&[("one", ""), ("two", "")]);
    let (one, two) = (pools.pid("one"), pools.pid("two"));
    send(two, Signal::KILL);
    pools.logs(&format!("the server process {two} was killed by SIGKILL"));
    pools.logs("pool `two` exited with status 3; it is started again in 0.1 s");
    until("its new server", || pools.try_status("two").is_some_and(|it| it["pid"] != two));
    pools.works("two");
    assert_eq!(pools.pid("one"), one);
    pools.works("one");
    pools.signal(Signal::TERM);
    let status = pools.program.wait().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn a_pool_that_cannot_start_is_tried_again_later_and_later() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    std::fs::write(&taken, "").unwrap();
    let listen = format!("listen = \"unix:{}\"", taken.display());
    let pools = Pools::start(&[("bad", &listen), ("good", "")]);
    pools.works_once_up("good");
    for pause in ["0.1", "0.2", "0.4"] {
        pools.logs(&format!("pool `bad` exited with status 2; it is started again in {pause} s"));
    }
    assert!(pools.log().contains("taken exists and is no socket"), "{}", pools.log());
    std::fs::remove_file(&taken).unwrap();
    until("the pool", || taken.exists());
    pools.works("good");
}

impl Pools {
    fn works_once_up(&self, socket: &str) {
        self.status(socket);
        self.works(socket);
    }
}

#[test]
fn the_file_is_read_again_at_a_restart() {
    let pools = Pools::start(&[("same", ""), ("changed", "max_workers = 3"), ("gone", "")]);
    for name in ["same", "changed", "gone"] {
        pools.status(name);
    }
    let (same, gone) = (pools.pid("same"), pools.pid("gone"));
    let changed = "max_workers = 7\nlisten = \"unix:FOLDER/moved\"";
    pools.rewrite(&[("same", ""), ("changed", changed), ("added", "")]);
    // Expect the added pool, the changed pool at its new address, and a new server of the unchanged pool.
    pools.works_once_up("added");
    assert_eq!(pools.status("moved")["max_workers"], 7);
    pools.works("moved");
    until("a new server", || pools.try_status("same").is_some_and(|it| it["pid"] != same));
    pools.works("same");
    for name in ["gone", "changed"] {
        until("the end of the socket", || !pools.folder.path().join(name).exists());
    }
    until("the end of the server", || !Path::new(&format!("/proc/{gone}")).exists());
    pools.logs("pool `gone` is not in");
    assert!(!pools.log().contains("it is started again"), "{}", pools.log());
}

#[test]
fn a_file_with_a_mistake_changes_nothing() {
    let mut pools = Pools::start(&[("one", "")]);
    let one = pools.pid("one");
    pools.rewrite(&[("one", "max_worker = 3"), ("two", "")]);
    pools.logs("all pools go on as they are: ");
    pools.logs("did you mean `max_workers`?");
    pools.works("one");
    assert_eq!(pools.pid("one"), one);
    assert!(pools.program.try_wait().unwrap().is_none());
    // A valid file adds a pool.
    pools.rewrite(&[("one", ""), ("two", "")]);
    pools.works_once_up("two");
}

#[test]
fn a_new_version_of_the_command_takes_over() {
    let pools = Pools::start_by(&[("one", "")], by_link);
    let one = pools.pid("one");
    let folder = pools.folder.path();
    let script = folder.join("script");
    let mark = folder.join("mark").display().to_string();
    std::fs::write(&script, format!("#!/bin/sh\necho $* >> {mark}\nexec {PROGRAM} \"$@\"\n"))
        .unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&script, folder.join("app")).unwrap();
    pools.rewrite(&[("one", ""), ("two", "")]);
    until("a new server", || pools.try_status("one").is_some_and(|it| it["pid"] != one));
    pools.works_once_up("two");
    let started = std::fs::read_to_string(&mark).unwrap();
    for name in ["--pool=one", "--pool=two"] {
        assert!(started.contains(name), "{started}");
    }
}

#[test]
fn a_hangup_is_ignored_under_nohup() {
    let pools = Pools::start_by(&[("one", "")], |_, command| {
        let mut nohup = Command::new("nohup");
        nohup.arg(PROGRAM).args(command.get_args()).stdout(Stdio::null());
        nohup
    });
    let one = pools.pid("one");
    pools.rewrite(&[("one", ""), ("two", "")]);
    // A shell sends SIGHUP to all processes at logout.
    send(one, Signal::HUP);
    pools.works("one");
    assert_eq!(pools.pid("one"), one);
    assert!(!pools.folder.path().join("two").exists());
}

#[test]
fn the_service_manager_hears_of_the_command_and_not_of_its_pools() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut pools = Pools::start_by(&[("one", "")], |_, mut command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000");
        command
    });
    pools.status("one");
    pools.signal(Signal::TERM);
    assert!(pools.program.wait().unwrap().success());
    manager.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    let mut message = [0; 500];
    while let Ok(length) = manager.recv(&mut message) {
        heard.push(String::from_utf8_lossy(&message[..length]).into_owned());
    }
    let count = |text: &str| heard.iter().filter(|message| message.contains(text)).count();
    assert_eq!((count("READY=1"), count("STOPPING=1"), count("MAINPID")), (1, 1, 0), "{heard:?}");
    assert!(count("WATCHDOG=1") > 0, "{heard:?}");
}

#[test]
fn a_service_manager_that_reads_late_hears_what_it_has_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    let mut full = 0;
    while other.send_to(b"FULL=1", &path).is_ok() {
        full += 1;
    }
    let pools = Pools::start_by(&[("one", "")], |_, mut command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000");
        command
    });
    pools.status("one");
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut message = [0; 500];
    for _ in 0..full {
        assert_eq!(manager.recv(&mut message).unwrap(), "FULL=1".len());
    }
    let length = manager.recv(&mut message).unwrap();
    let heard = String::from_utf8_lossy(&message[..length]);
    assert!(heard.contains("READY=1") && heard.contains("WATCHDOG=1"), "{heard}");
}

/// A pool `two` that is added to the pool `one`, and whose process starts only once it is allowed to.
struct SlowStart {
    pools: Pools,
    /// The first pool's server after the restart that has added the second pool.
    one: u64,
    /// The process of the second pool.
    starting: u64,
}

impl SlowStart {
    fn begin() -> Self {
        let pools = Pools::start_by(&[("one", "")], by_link);
        let before = pools.pid("one");
        let folder = pools.folder.path();
        // The link is replaced by a script. It is in Perl, because a shell may unblock signals.
        let begun = folder.join("begun");
        let script = format!(
            "#!/usr/bin/perl\n\
             if (grep {{ $_ eq '--pool=two' }} @ARGV) {{\n\
             open(my $file, '>', '{begun}.new'); print $file $$; close($file);\n\
             rename('{begun}.new', '{begun}');\n\
             select(undef, undef, undef, 0.01) until -e '{go}';\n\
             }}\n\
             exec '{PROGRAM}', @ARGV;\n",
            begun = begun.display(),
            go = folder.join("go").display(),
        );
        std::fs::write(folder.join("script"), script).unwrap();
        std::fs::set_permissions(folder.join("script"), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(folder.join("script"), folder.join("app")).unwrap();
        pools.rewrite(&[("one", ""), ("two", "name = \"second\"")]);
        until("the start of the pool", || begun.exists());
        until("a new server", || pools.try_status("one").is_some_and(|it| it["pid"] != before));
        let starting = std::fs::read_to_string(&begun).unwrap().parse().unwrap();
        Self { one: pools.pid("one"), starting, pools }
    }

    /// Waits until the signal has arrived at the process that starts, or has ended it.
    fn arrives(&self, signal: Signal) {
        let status = format!("/proc/{}/status", self.starting);
        until("the signal", || {
            let status = std::fs::read_to_string(&status).unwrap_or_default();
            let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
            let Some(pending) = pending else { return true };
            u64::from_str_radix(pending.trim(), 16).unwrap() & (1 << (signal.as_raw() - 1)) != 0
        });
    }

    fn go_on(&self) {
        std::fs::write(self.pools.folder.path().join("go"), "").unwrap();
    }
}

#[test]
fn signals_that_come_while_a_pool_starts_are_handled_once_it_has() {
    let start = SlowStart::begin();
    let pools = &start.pools;
    for signal in [Signal::USR1, Signal::USR2, Signal::HUP] {
        pools.signal(signal);
        start.arrives(signal);
    }
    until("another new server", || {
        pools.try_status("one").is_some_and(|status| status["pid"] != start.one)
    });
    start.go_on();
    pools.works_once_up("two");
    until("what the workers do", || {
        pools.log().lines().any(|line| line.contains("workers follow") && line.contains("second"))
    });
    assert!(!pools.log().contains("killed by signal"), "{}", pools.log());
}

#[test]
fn a_request_to_end_that_comes_while_a_pool_starts_shuts_it_down_gracefully() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut start = SlowStart::begin();
        start.pools.signal(signal);
        start.arrives(signal);
        start.go_on();
        let status = start.pools.program.wait().unwrap();
        let log = start.pools.log();
        assert!(status.success(), "{status}: {log}");
        let is_shutdown = |line: &str| line.contains("shutting down") && line.contains("second");
        assert!(log.lines().any(is_shutdown), "{log}");
    }
}

#[test]
fn one_server_keeps_its_process_if_an_option_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--keep-pid", "--restart-on-hangup", "--protocol", "json", "--listen"]);
    command.arg(format!("unix:{}", socket.display())).arg("--").arg(worker());
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    common::reset_sighup();
    let program = command.stderr(log).stdin(Stdio::null()).process_group(0).spawn().unwrap();
    let mut pools = Pools { folder, program };
    let first = pools.pid("s");
    pools.signal(Signal::HUP);
    until("a new server", || pools.try_status("s").is_some_and(|it| it["pid"] != first));
    pools.works("s");
    assert!(pools.program.try_wait().unwrap().is_none());
    pools.signal(Signal::TERM);
    assert!(pools.program.wait().unwrap().success());
    assert!(!pools.folder.path().join("s").exists());
}

#[test]
fn signals_that_come_before_the_options_are_read_end_nothing() {
    for only_one in [false, true] {
        // Opening the file waits for the command, and reading it for the test.
        let pools = Pools::start_by(&[("one", "")], |folder, mut command| {
            std::fs::rename(file(folder), folder.join("text")).unwrap();
            let mode = rustix::fs::Mode::from(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, file(folder), mode).unwrap();
            if only_one {
                command.args(["--pool", "one"]);
            }
            command
        });
        let folder = pools.folder.path();
        let mut options = std::fs::File::create(file(folder)).unwrap();
        for signal in [Signal::USR1, Signal::USR2] {
            pools.signal(signal);
        }
        let text = std::fs::read(folder.join("text")).unwrap();
        // The file of pools is read again for each server.
        std::fs::rename(folder.join("text"), file(folder)).unwrap();
        std::io::Write::write_all(&mut options, &text).unwrap();
        drop(options);
        pools.works_once_up("one");
    }
}
