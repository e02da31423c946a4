//! `taskfork serve --tls`: clients of other machines, with the real command and certificates made on the spot.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::until;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_taskfork");
const NOBODY: &str = "65534";

/// An authority with the certificates that it has issued, in files of a folder.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Writes its certificate to `ca.pem`.
    fn new(folder: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(folder.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key) }
    }

    /// Writes a certificate for `name` to `FILE.pem` and its key to `FILE.key`.
    fn issue(&self, folder: &Path, file: &str, name: &str) {
        self.issue_until(folder, file, name, 4000);
    }

    /// The same for a certificate that is valid until the beginning of this year.
    fn issue_until(&self, folder: &Path, file: &str, name: &str, year: i32) {
        let key = KeyPair::generate().unwrap();
        let mut certificate = CertificateParams::new([name.to_owned()]).unwrap();
        certificate.not_after = date_time_ymd(year, 1, 1);
        let certificate = certificate.signed_by(&key, &self.issuer).unwrap();
        for (kind, text) in [("pem", certificate.pem()), ("key", key.serialize_pem())] {
            // Renamed into place, so that nobody reads a half of it.
            let path = folder.join(format!("{file}.{kind}"));
            fs::write(folder.join("new"), text).unwrap();
            fs::rename(folder.join("new"), path).unwrap();
        }
    }
}

/// A command that serves TLS at a port of its own, and ends with the test.
struct Served {
    folder: tempfile::TempDir,
    authority: Authority,
    port: u16,
    program: Child,
}

/// A folder that every user may search, with an authority, `gateway.pem` and `client.pem` with their keys.
fn certificates() -> (tempfile::TempDir, Authority) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "gateway", "first.example");
    authority.issue(folder.path(), "client", "web.example");
    (folder, authority)
}

/// A port that the kernel does not give to another socket soon.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The options of TLS with the files in this folder.
fn tls_options(folder: &Path, port: u16) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let listen = format!("127.0.0.1:{port}");
    let options = ["--tls", &listen, "--cert", &file("gateway.pem"), "--key", &file("gateway.key")];
    options.map(str::to_owned).to_vec()
}

fn command(folder: &Path, options: &[String]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--protocol", "json", "--restart-on-hangup", "--listen"]);
    command.arg(common::address(folder)).args(options).arg("--").arg(common::worker());
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    common::reset_sighup();
    command
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

impl Served {
    fn start(more: &[&str]) -> Self {
        let (folder, authority) = certificates();
        let port = free_port();
        let command =
            command(folder.path(), &[tls_options(folder.path(), port), words(more)].concat());
        Self::run(folder, authority, port, command)
    }

    fn run(
        folder: tempfile::TempDir,
        authority: Authority,
        port: u16,
        mut command: Command,
    ) -> Self {
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let program = command.stderr(log).spawn().unwrap();
        let served = Self { folder, authority, port, program };
        until("the server and the gateway", || {
            let log = served.log();
            log.contains("listening at") && log.contains("the gateway listens at")
        });
        served
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap()
    }

    fn call_at(&self, port: u16, name: &str, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["call", &format!("tls:127.0.0.1:{port}"), "--tls-name", name]);
        command.arg("--ca").arg(self.path().join("ca.pem")).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A call without a certificate of the client.
    fn call(&self, words: &[&str]) -> Command {
        self.call_at(self.port, "first.example", words)
    }

    fn call_with_certificate(&self, words: &[&str]) -> Command {
        let mut command = self.call(words);
        command.arg("--cert").arg(self.path().join("client.pem"));
        command.arg("--key").arg(self.path().join("client.key"));
        command
    }

    fn status(&self) -> Option<Value> {
        let address = common::address(self.path());
        let out = Command::new(PROGRAM).args(["status", &address, "--json"]).output().unwrap();
        serde_json::from_slice(&out.stdout).ok()
    }

    /// Waits until the only worker runs a call.
    fn wait_for_call(&self) {
        until("a call that runs", || {
            let status = self.status().unwrap_or_default();
            status["workers"]
                .as_array()
                .is_some_and(|workers| workers.iter().any(|worker| worker["state"] == "busy"))
        });
    }

    fn signal(&self, signal: Signal) {
        send(self.program.id(), signal);
    }

    /// The process of the gateway, if there is one.
    fn find_gateway(&self) -> Option<u32> {
        children(self.program.id()).into_iter().find(|&pid| is_gateway(pid))
    }

    fn gateway(&self) -> u32 {
        self.find_gateway().unwrap()
    }

    /// The process that keeps its id while servers come and go.
    fn server(&self) -> u32 {
        children(self.program.id()).into_iter().find(|&pid| !is_gateway(pid)).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.program.try_wait().unwrap().is_none() {
            self.signal(Signal::TERM);
            self.signal(Signal::TERM);
            self.program.wait().unwrap();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn descendants(pid: u32) -> Vec<u32> {
    let mut all = children(pid);
    let mut next = 0;
    while next < all.len() {
        all.extend(children(all[next]));
        next += 1;
    }
    all
}

fn is_gateway(pid: u32) -> bool {
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split('\0').any(|argument| argument == "--part=gateway")
}

/// A line of what the kernel says of a process.
fn proc_status(pid: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
}

/// Whether a process has ended. One that nobody has reaped yet counts.
fn is_gone(pid: u32) -> bool {
    matches!(proc_status(pid, "State").as_str(), "" | "Z")
}

fn assert_prints(output: &Output, expected: &str) {
    let (said, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.trim_end(), expected, "{error}");
}

fn assert_fails(output: &Output, status: i32, expected: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(expected), "{error}");
    assert_eq!(output.status.code(), Some(status), "{error}");
}

/// Somebody has answered, and the reason says what to do.
fn assert_is_refusal(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    for wrong in ["no server answered", "start the server", "`tls_"] {
        assert!(!error.contains(wrong), "{error}");
    }
}

#[test]
fn errors_of_tls_name_the_options_of_the_command() {
    let served = Served::start(&[]);
    let fails = |mut call: Command, expected: &str| {
        let output = call.args(["--timeout", "2s"]).output().unwrap();
        assert_fails(&output, 3, expected);
        assert_is_refusal(&output);
    };
    let other = served.call_at(served.port, "other.example", &["echo"]);
    fails(
        other,
        "but for first.example: connect to one of these names, or set the name with --tls-name",
    );
    let mut nats = Command::new(PROGRAM);
    nats.args(["call", &format!("nats://127.0.0.1:{}/adder", served.port), "echo"]);
    fails(nats, "no NATS server has greeted at nats://127.0.0.1");
    let mut unknown = Command::new(PROGRAM);
    unknown.args(["call", &format!("tls:127.0.0.1:{}", served.port), "echo"]);
    unknown.arg("--ca").arg(served.path().join("client.pem"));
    fails(unknown, "with the certificate of the authority that signs now with --ca");
}

#[test]
fn a_call_through_tls_shows_its_certificate_in_the_status() {
    let served = Served::start(&[]);
    assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");
    drop(served);

    let (folder, authority) = certificates();
    let (port, ca) = (free_port(), folder.path().join("ca.pem").display().to_string());
    let more = words(&["--client-ca", &ca, "--allow-name", "web.example"]);
    let command = command(folder.path(), &[tls_options(folder.path(), port), more].concat());
    let served = Served::run(folder, authority, port, command);
    let mut held = served.call_with_certificate(&["sleep", "60000"]).spawn().unwrap();
    served.wait_for_call();
    let status = served.status().unwrap();
    let peer = &status["workers"][0]["peer"];
    assert_eq!((&peer["kind"], &peer["names"][0]), (&"tls".into(), &"web.example".into()));
    // A client that is gone ends its worker.
    held.kill().unwrap();
    held.wait().unwrap();
    until("no worker", || {
        served.status().is_some_and(|status| status["workers"].as_array().unwrap().is_empty())
    });
}

#[test]
fn a_client_needs_a_certificate_with_an_allowed_name_if_the_options_say_so() {
    let (folder, authority) = certificates();
    let (port, ca) = (free_port(), folder.path().join("ca.pem").display().to_string());
    let more = words(&["--client-ca", &ca, "--allow-name", "other.example"]);
    let command = command(folder.path(), &[tls_options(folder.path(), port), more].concat());
    let served = Served::run(folder, authority, port, command);
    let mut without = served.call(&["echo", "7"]);
    let without = without.args(["--timeout", "2s"]).output().unwrap();
    assert_fails(&without, 3, "set it and its key with --cert and --key");
    assert_is_refusal(&without);
    let mut wrong = served.call_with_certificate(&["echo", "7"]);
    let wrong = wrong.args(["--timeout", "2s"]).output().unwrap();
    assert_fails(&wrong, 3, "no name of your certificate is allowed");
    assert_is_refusal(&wrong);
    served.authority.issue(served.path(), "client", "other.example");
    assert_prints(&served.call_with_certificate(&["echo", "7"]).output().unwrap(), "7");
}

#[test]
fn sighup_reloads_certificates_and_calls_go_on() {
    let served = Served::start(&[]);
    let running = served.call(&["sleep", "2000"]).spawn().unwrap();
    served.wait_for_call();
    let (before, gateway) = (served.status().unwrap()["pid"].clone(), served.gateway());
    served.authority.issue(served.path(), "gateway", "second.example");
    served.signal(Signal::HUP);
    until("new certificates", || {
        served.log().contains("the gateway has read its certificates again")
    });
    let call = served.call_at(served.port, "second.example", &["echo", "7"]).output().unwrap();
    assert_prints(&call, "7");
    until("a new server", || served.status().is_some_and(|status| status["pid"] != before));
    assert_eq!(served.gateway(), gateway);
    assert_prints(&running.wait_with_output().unwrap(), "null");

    // Wrong files change nothing.
    fs::write(served.path().join("gateway.pem"), "none").unwrap();
    served.signal(Signal::HUP);
    until("the reason", || served.log().contains("the previous certificates stay in use"));
    let call = served.call_at(served.port, "second.example", &["echo", "8"]).output().unwrap();
    assert_prints(&call, "8");
}

#[test]
fn a_certificate_that_is_not_valid_now_is_told() {
    let (folder, authority) = certificates();
    authority.issue_until(folder.path(), "gateway", "first.example", 2020);
    let port = free_port();
    let command = command(folder.path(), &tls_options(folder.path(), port));
    let served = Served::run(folder, authority, port, command);
    let told = "has expired at 2020-01-01 00:00 UTC";
    assert!(served.log().contains(told), "{}", served.log());
    served.authority.issue(served.path(), "gateway", "first.example");
    until("the good one", || {
        served.call(&["echo", "7", "--timeout", "1s"]).output().unwrap().status.success()
    });
    let before = served.log().matches(told).count();
    served.authority.issue_until(served.path(), "gateway", "first.example", 2020);
    until("the warning", || served.log().matches(told).count() > before);
}

#[test]
fn a_killed_gateway_is_started_again_and_the_server_stays() {
    let served = Served::start(&[]);
    assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");
    let (server, gateway) = (served.status().unwrap()["pid"].clone(), served.gateway());
    send(gateway, Signal::KILL);
    until("another gateway", || served.find_gateway().is_some_and(|pid| pid != gateway));
    assert!(served.log().contains("the gateway was killed by signal 9; it is started again"));
    assert_prints(&served.call(&["echo", "8"]).output().unwrap(), "8");
    assert_eq!(served.status().unwrap()["pid"], server);
}

#[test]
fn sigterm_lets_calls_end_and_leaves_nothing() {
    let mut served = Served::start(&[]);
    let running = served.call(&["sleep", "500"]).spawn().unwrap();
    served.wait_for_call();
    let all = descendants(served.program.id());
    assert!(all.len() >= 4, "{all:?}");
    served.signal(Signal::TERM);
    assert_prints(&running.wait_with_output().unwrap(), "null");
    assert!(served.program.wait().unwrap().success(), "{}", served.log());
    assert!(all.iter().all(|&pid| is_gone(pid)), "{all:?}");
    assert!(!served.path().join("s").exists());
    let log = served.log();
    let place = |text: &str| log.find(text).unwrap_or_else(|| panic!("no `{text}` in {log}"));
    assert!(place("the gateway has ended") < place("shutting down"));
}

#[test]
fn a_killed_parent_takes_all_with_it() {
    let mut served = Served::start(&[]);
    let mut running = served.call(&["sleep", "60000"]).spawn().unwrap();
    served.wait_for_call();
    let all = descendants(served.program.id());
    served.signal(Signal::KILL);
    served.program.wait().unwrap();
    // The call does not keep them: the second signal of a service manager would kill it too.
    running.kill().unwrap();
    running.wait().unwrap();
    until("the end of all", || all.iter().all(|&pid| is_gone(pid)));
}

#[test]
fn a_server_that_ends_takes_its_gateway_with_it() {
    let mut served = Served::start(&[]);
    let all = descendants(served.program.id());
    send(served.server(), Signal::KILL);
    let status = served.program.wait().unwrap();
    assert_eq!(status.code(), Some(3), "{}", served.log());
    assert!(served.log().contains("the server was killed by signal 9"), "{}", served.log());
    until("the end of all", || all.iter().all(|&pid| is_gone(pid)));
}

#[test]
fn the_gateway_is_confined() {
    let served = Served::start(&[]);
    let gateway = served.gateway();
    let confined = ["NoNewPrivs", "Seccomp"].map(|key| proc_status(gateway, key));
    assert_eq!(confined, ["1", "2"]);
    assert_eq!(proc_status(gateway, "CapEff").trim_start_matches('0'), "");
    assert_eq!(proc_status(gateway, "Threads"), "1");
    // It serves and reloads so: see the other tests.
    assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");
}

#[test]
fn the_gateway_has_a_user_of_its_own() {
    if !geteuid().is_root() {
        return;
    }
    let (folder, authority) = certificates();
    let port = free_port();
    let more = ["--gateway-user", NOBODY, "--socket-mode", "666", "--allow-users", "root"];
    let options = [tls_options(folder.path(), port), words(&more)].concat();
    // The key is for root only at first.
    fs::set_permissions(folder.path().join("gateway.key"), PermissionsExt::from_mode(0o600))
        .unwrap();
    let refused = command(folder.path(), &options).output().unwrap();
    assert_fails(&refused, 2, "must be a file in PEM that the user `nobody` may read");
    fs::set_permissions(folder.path().join("gateway.key"), PermissionsExt::from_mode(0o644))
        .unwrap();

    let command = command(folder.path(), &options);
    let served = Served::run(folder, authority, port, command);
    assert_eq!(proc_status(served.gateway(), "Uid"), NOBODY);
    assert_eq!(proc_status(served.gateway(), "Groups"), proc_status(served.gateway(), "Gid"));
    assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");
    let all = descendants(served.program.id());
    served.signal(Signal::KILL);
    until("the end of all", || all.iter().all(|&pid| is_gone(pid)));
}

#[test]
fn wrong_options_end_the_command_before_anything_serves() {
    let (folder, authority) = certificates();
    authority.issue(folder.path(), "other", "other.example");
    fs::write(folder.path().join("text"), "text").unwrap();
    let whole = fs::read_to_string(folder.path().join("gateway.pem")).unwrap();
    fs::write(folder.path().join("half"), &whole[..whole.len() / 2]).unwrap();
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let occupied = occupied.local_addr().unwrap().to_string();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key, ca) = (file("gateway.pem"), file("gateway.key"), file("ca.pem"));
    let (text, half, other_key) = (file("text"), file("half"), file("other.key"));
    let (listen, good) = ("127.0.0.1:0", ["--cert", &cert, "--key", &key]);
    let tls = ["--tls", listen, "--cert", &cert, "--key", &key];
    for (options, expected) in [
        (vec!["--tls", listen], "--tls needs --cert"),
        (vec!["--tls", listen, "--cert", &cert], "--tls needs --key"),
        (good.to_vec(), "--cert has no effect without --tls"),
        ([&["--tls", "nowhere"], &good[..]].concat(), "write HOST:PORT"),
        ([&["--tls", &occupied], &good[..]].concat(), "a free port for --tls"),
        (vec!["--tls", listen, "--cert", "/does/not/exist", "--key", &key], "/does/not/exist"),
        (
            vec!["--tls", listen, "--cert", &file("text"), "--key", &key],
            "--cert must be a file in PEM",
        ),
        (vec!["--tls", listen, "--cert", &cert, "--key", &other_key], "--key must be"),
        ([&tls[..], &["--allow-name", "a"]].concat(), "--allow-name needs --client-ca"),
        ([&tls[..], &["--client-ca", &text]].concat(), "--client-ca must be a file in PEM"),
        (
            [&tls[..], &["--client-ca", &ca, "--allow-name", "web example"]].concat(),
            "--allow-name cannot be so",
        ),
        (
            vec!["--tls", listen, "--cert", &half, "--key", &key],
            "the end of a section in PEM is missing",
        ),
        (
            [&tls[..], &["--client-ca", &ca, "--gateway-user", "no-such-user"]].concat(),
            "no user `no-such-user`",
        ),
    ] {
        let output = command(folder.path(), &words(&options)).output().unwrap();
        assert_fails(&output, 2, expected);
        assert!(!folder.path().join("s").exists(), "{options:?}");
    }
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "tcp:127.0.0.1:0"]).args(tls).args(["--", "cat"]);
    assert_fails(&command.output().unwrap(), 2, "--tls needs a server at a unix socket");

    let call = |options: &[&str]| {
        Command::new(PROGRAM).arg("call").args(options).arg("echo").output().unwrap()
    };
    assert_fails(&call(&["tls:127.0.0.1:1", "--ca", &text]), 2, "--ca: ");
    assert_fails(&call(&["unix:/tmp/never", "--ca", &ca]), 2, "nothing would be encrypted");
    assert_fails(&call(&["tls:127.0.0.1:1", "--cert", &cert]), 2, "--key");
    let status = Command::new(PROGRAM).args(["status", "tls:127.0.0.1:1"]).output().unwrap();
    assert_fails(&status, 2, "only at a status socket");
}

fn pool(folder: &Path, port: u16) {
    let file = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "[pool.tls]\nlisten = \"{}\"\nprotocol = \"json\"\ncommand = [\"{}\"]\n\
         tls = \"127.0.0.1:{port}\"\ncert = \"{}\"\nkey = \"{}\"\n\
         [pool.local]\nlisten = \"unix:{}\"\nprotocol = \"json\"\ncommand = [\"{}\"]\n",
        common::address(folder),
        common::worker().display(),
        file("gateway.pem"),
        file("gateway.key"),
        file("local"),
        common::worker().display(),
    );
    fs::write(folder.join("pools.toml"), text).unwrap();
}

fn serve_pools(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--restart-on-hangup", "--config"]).arg(folder.join("pools.toml"));
    command.args(more).env_remove("RUST_LOG").stdin(Stdio::null());
    common::reset_sighup();
    command
}

#[test]
fn a_pool_of_a_file_has_a_gateway_which_follows_the_file() {
    let (folder, authority) = certificates();
    let (port, other) = (free_port(), free_port());
    pool(folder.path(), port);
    let mut command = serve_pools(folder.path(), &[]);
    let checked = Command::new(PROGRAM)
        .args(["config", "check"])
        .arg(folder.path().join("pools.toml"))
        .output();
    assert!(checked.unwrap().status.success());
    command.stderr(Stdio::null());
    let served = Served::run(folder, authority, port, command);
    assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");

    pool(served.path(), other);
    served.signal(Signal::HUP);
    let call = served.call_at(other, "first.example", &["echo", "8"]).output().unwrap();
    assert_prints(&call, "8");
    let local: PathBuf = served.path().join("local");
    let call = Command::new(PROGRAM).arg("call").arg(local).args(["echo", "9"]).output().unwrap();
    assert_prints(&call, "9");
}

#[test]
fn a_gateway_goes_on_if_one_with_new_options_cannot_start() {
    let (folder, authority) = certificates();
    let (port, other) = (free_port(), free_port());
    pool(folder.path(), port);
    let command = serve_pools(folder.path(), &["--pool", "tls"]);
    let served = Served::run(folder, authority, port, command);
    let gateway = served.gateway();
    let file = served.path().join("pools.toml");
    let works = fs::read_to_string(&file).unwrap();
    let key = served.path().join("gateway.key").display().to_string();
    // Another file, which has no key.
    let wrong = served.path().join("ca.pem").display().to_string();
    for refused in 1..=2 {
        fs::write(&file, works.replace(&key, &wrong)).unwrap();
        served.signal(Signal::HUP);
        let (reason, told) =
            ("must be a file in PEM", "the gateway of pool `tls` goes on as it is");
        until("the reason", || served.log().matches(told).count() == refused);
        assert!(served.log().contains(reason), "{}", served.log());
        assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");
        assert_eq!(served.gateway(), gateway);
    }

    // Options that work take its place, at the same port and at another one.
    fs::write(&file, works.replace("cert =", "handshake_timeout = \"7s\"\ncert =")).unwrap();
    served.signal(Signal::HUP);
    until("another gateway", || served.find_gateway().is_some_and(|pid| pid != gateway));
    assert_prints(&served.call(&["echo", "8"]).output().unwrap(), "8");
    pool(served.path(), other);
    served.signal(Signal::HUP);
    assert_prints(&served.call_at(other, "first.example", &["echo", "9"]).output().unwrap(), "9");
}

#[test]
fn a_gateway_whose_parent_has_ended_does_not_serve() {
    let (folder, _) = certificates();
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    for part in ["gateway", "server"] {
        let options = [tls_options(folder.path(), free_port()), words(&["--part", part])].concat();
        let mut command = command(folder.path(), &options);
        let output = command.env("TASKFORK_PARENT", gone.id().to_string()).output().unwrap();
        assert_fails(&output, 3, "the command that has started this process has ended");
    }
}

#[test]
fn one_pool_of_a_file_has_its_gateway_too() {
    let (folder, authority) = certificates();
    let port = free_port();
    pool(folder.path(), port);
    let command = serve_pools(folder.path(), &["--pool", "tls"]);
    let served = Served::run(folder, authority, port, command);
    assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");
    assert!(!served.path().join("local").exists());
}

#[test]
fn a_gateway_is_replaced_by_one_at_another_host_and_the_same_port() {
    let (folder, authority) = certificates();
    let port = free_port();
    pool(folder.path(), port);
    let command = serve_pools(folder.path(), &["--pool", "tls"]);
    let served = Served::run(folder, authority, port, command);
    let file = served.path().join("pools.toml");
    let one_host = fs::read_to_string(&file).unwrap();
    let all_hosts = one_host.replace("127.0.0.1", "0.0.0.0");

    // Another program is in the way.
    let other = TcpListener::bind(("127.0.0.2", port)).unwrap();
    fs::write(&file, &all_hosts).unwrap();
    served.signal(Signal::HUP);
    until("the refusal", || served.log().contains("goes on as it is"));
    assert!(served.log().contains("Address already in use"), "{}", served.log());
    drop(other);

    for (number, (text, host)) in
        [(&all_hosts, "0.0.0.0"), (&one_host, "127.0.0.1")].into_iter().enumerate()
    {
        fs::write(&file, text).unwrap();
        served.signal(Signal::HUP);
        let told = format!("the gateway listens at tls:{host}:{port}");
        until("the new gateway", || served.log().matches(&told).count() == number + 1);
        assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");
    }
    assert_eq!(served.log().matches("goes on as it is").count(), 1, "{}", served.log());
}

#[cfg(feature = "dashboard")]
#[test]
fn a_gateway_with_a_page_is_replaced_while_a_call_of_the_present_one_runs() {
    let (folder, authority) = certificates();
    let (port, page) = (free_port(), free_port());
    pool(folder.path(), port);
    let file = folder.path().join("pools.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("cert =", &format!("http = \"127.0.0.1:{page}\"\ncert ="));
    fs::write(&file, &text).unwrap();
    let command = serve_pools(folder.path(), &["--pool", "tls"]);
    let served = Served::run(folder, authority, port, command);
    let present = served.gateway();
    let mut long = served.call(&["sleep", "60000"]).spawn().unwrap();
    served.wait_for_call();

    fs::write(&file, text.replace("cert =", "handshake_timeout = \"7s\"\ncert =")).unwrap();
    served.signal(Signal::HUP);
    let told = format!("the page of the gateway is at http://127.0.0.1:{page}/");
    until("the new gateway", || served.log().matches(&told).count() == 2);
    assert!(!served.log().contains("cannot listen"), "{}", served.log());
    assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");
    assert!(std::net::TcpStream::connect(("127.0.0.1", page)).is_ok());
    assert!(!is_gone(present), "the present gateway waits for its call");
    assert!(long.try_wait().unwrap().is_none());
    long.kill().unwrap();
    long.wait().unwrap();
}

/// Whether a process has blocked these signals.
fn blocks(pid: u32, signals: &[Signal]) -> Vec<bool> {
    let mask = u64::from_str_radix(&proc_status(pid, "SigBlk"), 16).unwrap();
    signals.iter().map(|signal| mask & (1 << (signal.as_raw() - 1)) != 0).collect()
}

#[test]
fn a_gateway_keeps_signals_until_it_handles_them() {
    let served = Served::start(&[]);
    let gateway = served.gateway();
    // It does not handle the last one. So it is blocked for good, and shows that the others were at the start.
    let signals = [Signal::HUP, Signal::USR1, Signal::USR2];
    until("the handlers", || blocks(gateway, &signals) == [false, false, true]);
    signals.into_iter().for_each(|signal| send(gateway, signal));
    until("an answer", || served.log().contains("has read its certificates again"));
    assert_prints(&served.call(&["echo", "7"]).output().unwrap(), "7");
    assert_eq!(served.gateway(), gateway);
}
