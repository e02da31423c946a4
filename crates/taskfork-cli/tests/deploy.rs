//! The files of `examples/deploy`, and servers under the signals of service managers and terminals.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const TASKFORK: &str = env!("CARGO_BIN_EXE_taskfork");

/// A worker that speaks JSON, which is built with the tests.
fn worker() -> PathBuf {
    Path::new(TASKFORK).parent().unwrap().join("examples/plain_worker")
}

fn example(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/deploy");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// Whether a program is installed. Prints a note if it is not.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("not tried: there is no {program}, which the package systemd has");
    }
    found
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program that ends with the test.
struct Program(Child);

impl Program {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The test may have ended it.
        let _ = kill_process(self.pid(), Signal::TERM);
        self.0.wait().unwrap();
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let path = format!("/proc/{0}/task/{0}/children", pid.as_raw_nonzero());
    let list = std::fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

fn descendants(pid: Pid) -> Vec<Pid> {
    let children = children(pid).into_iter();
    children.flat_map(|pid| [vec![pid], descendants(pid)].concat()).collect()
}

/// Starts a long call, and waits until it runs.
fn running_call(address: &str, status: &Path) -> Child {
    let mut call = Command::new(TASKFORK);
    call.args(["call", address, "sleep", "2000"]);
    let call = call.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the call has begun", || {
        let mut command = Command::new(TASKFORK);
        let shown = command.arg("status").arg(status).arg("--json").output().unwrap();
        let status: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        let mut workers = status["workers"].as_array().into_iter().flatten();
        workers.any(|worker| worker["state"] == "busy")
    });
    call
}

fn assert_answered(Output { status, stdout, stderr }: &Output) {
    let stderr = String::from_utf8_lossy(stderr);
    assert!(status.success() && stdout == b"null\n", "{status}: {stderr}");
}

#[test]
fn systemd_takes_the_units() {
    if !has("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["taskfork.socket", "taskfork.service"] {
        let unit = example(name).replace("/usr/local/bin/taskfork", TASKFORK);
        std::fs::write(folder.path().join(name), unit).unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]);
    verify.args(["taskfork.socket", "taskfork.service"].map(|name| folder.path().join(name)));
    let Output { status, stderr, .. } = verify.output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    // It also reads other units of this machine, which may have mistakes.
    assert!(status.success() && !said.contains("taskfork."), "{status}: {said}");
}

#[test]
fn a_call_of_an_activated_server_survives_the_signals_of_a_stop() {
    if !has("systemd-socket-activate") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (socket, status) = (folder.path().join("s"), folder.path().join("status"));
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(&socket).arg(TASKFORK).args(["serve", "--protocol", "json"]);
    command.arg("--status-socket").arg(&status).arg("--").arg(worker());
    let command = command.stdin(Stdio::null()).stderr(Stdio::null());
    let mut server = Program(command.spawn().unwrap());
    until("the socket", || socket.exists());
    let address = format!("unix:{}", socket.display());
    // The first client starts the server.
    let call = running_call(&address, &status);
    // `KillMode=control-group` signals all processes of the service.
    let below = descendants(server.pid());
    assert!(below.len() >= 3, "the guardian, a worker and its program: {below:?}");
    for pid in below.into_iter().chain([server.pid()]) {
        kill_process(pid, Signal::TERM).unwrap();
    }
    assert_answered(&call.wait_with_output().unwrap());
    assert!(server.0.wait().unwrap().success());
}

#[test]
fn a_call_survives_one_interrupt_at_the_terminal_of_several_pools() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let pool = |name: &str| {
        let (socket, worker) = (at(name), worker());
        let address = format!("unix:{}", socket.display());
        format!(
            "[pool.{name}]\nlisten = {address:?}\nprotocol = \"json\"\ncommand = [{worker:?}]\n"
        )
    };
    std::fs::write(at("pools.toml"), pool("one") + &pool("two")).unwrap();
    let mut command = Command::new(TASKFORK);
    command.args(["serve", "--config"]).arg(at("pools.toml")).stderr(Stdio::null());
    let mut server = Program(command.spawn().unwrap());
    until("both servers", || at("one.status").exists() && at("two.status").exists());
    let call = running_call(&format!("unix:{}", at("one").display()), &at("one.status"));
    // A terminal signals all processes in the foreground, and the command forwards its own signal as well.
    let servers = children(server.pid());
    assert_eq!(servers.len(), 2);
    servers.into_iter().for_each(|pid| kill_process(pid, Signal::INT).unwrap());
    until("the server ends", || !at("one").exists());
    kill_process(server.pid(), Signal::INT).unwrap();
    assert_answered(&call.wait_with_output().unwrap());
    assert!(server.0.wait().unwrap().success());
}

/// The words of a command in the syntax of a shell or of JSON.
fn words(command: &str) -> Vec<String> {
    if command.starts_with('[') {
        return serde_json::from_str(command).unwrap();
    }
    command.split_whitespace().map(str::to_owned).collect()
}

/// The text after `start`.
fn after<'a>(text: &'a str, start: &str) -> &'a str {
    let rest = text.split_once(start).unwrap_or_else(|| panic!("there is no {start}")).1;
    rest.lines().next().unwrap().trim()
}

fn seconds(time: &str) -> u64 {
    time.trim_end_matches('s').parse().unwrap()
}

#[test]
fn the_examples_have_valid_options_and_give_a_server_time_to_end() {
    let (service, image, pod) =
        (example("taskfork.service"), example("Dockerfile"), example("kubernetes.yaml"));
    for (command, stop) in [
        (
            after(&service, "\nExecStart=/usr/local/bin/taskfork"),
            after(&service, "TimeoutStopSec="),
        ),
        (after(&image, "\nCMD "), after(&image, "--stop-timeout").split_once(' ').unwrap().0),
        (after(&pod, "\n          args: "), after(&pod, "terminationGracePeriodSeconds:")),
    ] {
        let mut words = words(command);
        words.retain(|word| word != "taskfork");
        let at = words.iter().position(|word| word == "--").unwrap();
        let grace = words.iter().position(|word| word == "--shutdown-grace").unwrap();
        assert!(seconds(stop) >= seconds(&words[grace + 1]) + 10, "{command}");
        // The command parses all options before it searches for the program.
        let mut options = words[..=at].to_vec();
        options.push("no-such-program".to_owned());
        let tried = Command::new(TASKFORK).args(&options).output().unwrap();
        let said = String::from_utf8_lossy(&tried.stderr);
        assert!(said.contains("there is no program `no-such-program`"), "{command}: {said}");
    }
    let socket = after(&service, "--status-socket ").split_once(' ').unwrap().0;
    assert!(socket.starts_with(&format!("/run/{}/", after(&service, "\nRuntimeDirectory="))));
}
