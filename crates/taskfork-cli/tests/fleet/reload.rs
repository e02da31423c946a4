//! Checks of gateways: before anything serves, and before one with new options replaces another.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::common::{self, Server, until};
use crate::nats_server::NatsServer;
use crate::node::{SERVICE, start};

/// What the file says about the node of its pool.
#[derive(Clone, Copy)]
struct Options<'a> {
    url: &'a str,
    service: &'a str,
    node: &'a str,
    label: &'a str,
}

fn pool(folder: &TempDir, name: &str, options: Options<'_>) -> String {
    let Options { url, service, node, label } = options;
    format!(
        "[pool.{name}]\nlisten = \"unix:{}\"\nprotocol = \"json\"\ncommand = [\"{}\"]\n\
         nats = \"{url}\"\nservice = \"{service}\"\nnode = \"{node}\"\nlabel = [\"{label}\"]\n",
        folder.path().join(name).display(),
        common::worker().display(),
    )
}

fn command(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--restart-on-hangup", "--config"]).arg(folder.path().join("pools"));
    command
}

fn serve(folder: TempDir) -> Server {
    let command = command(&folder);
    Server::run(folder, command)
}

/// Writes new options, and has the server read them.
fn reload(server: &Server, options: Options<'_>) {
    let text = pool(&server.folder, "one", options);
    std::fs::write(server.folder.path().join("pools"), text).unwrap();
    signal(server, &[Signal::HUP]);
}

/// A NATS server that says nothing.
struct Silent {
    listener: TcpListener,
    url: String,
}

impl Silent {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        Self { listener, url }
    }

    /// The next client.
    fn accept(&self) -> TcpStream {
        let mut stream = None;
        until("a client", || {
            stream = self.listener.accept().ok();
            stream.is_some()
        });
        stream.unwrap().0
    }
}

/// Sends signals to the command itself.
fn signal(server: &Server, signals: &[Signal]) {
    signals.iter().for_each(|signal| send(server.program.id(), *signal));
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// The process that checks a gateway, if there is one.
fn check(server: &Server) -> Option<u32> {
    let pid = server.program.id();
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let mut children = list.split_whitespace().map(|pid| pid.parse::<u32>().unwrap());
    children.find(|pid| {
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
        arguments.is_ok_and(|it| it.split('\0').any(|it| it == "--part=gateway-check"))
    })
}

fn count(server: &Server, text: &str) -> usize {
    server.log().matches(text).count()
}

/// Starts a command whose pool is the node `one`.
fn serving(options: Options<'_>) -> Server {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pools"), pool(&folder, "one", options)).unwrap();
    let server = serve(folder);
    until("the node", || server.log().contains("the node one serves work"));
    server
}

const REFUSED: &str = "the gateway of pool `one` goes on as it is";

#[test]
fn a_node_is_not_replaced_by_one_that_cannot_serve() {
    let nats = NatsServer::start();
    let _other = start(&nats, "two", &[]);
    let url = nats.url();
    let present = Options { url: &url, service: SERVICE, node: "one", label: "a=1" };
    let server = serving(present);

    // Nobody listens there.
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nowhere = format!("nats://{nowhere}");
    for (number, (options, reason)) in [
        (Options { url: &nowhere, ..present }, "no NATS server answers at"),
        (Options { node: "two", ..present }, "another node of the service work has the name two"),
    ]
    .into_iter()
    .enumerate()
    {
        reload(&server, options);
        until("the refusal", || count(&server, REFUSED) == number + 1);
        assert!(server.log().contains(reason), "{}", server.log());
    }

    // The name is the present node's own.
    reload(&server, Options { label: "a=2", ..present });
    until("the new node", || count(&server, "the node one serves work") == 2);
    // Beside the server that it has, another one is named.
    let both = format!("{url},{nowhere}");
    reload(&server, Options { url: &both, ..present });
    until("the newer node", || count(&server, "the node one serves work") == 3);
    assert_eq!(count(&server, REFUSED), 2, "{}", server.log());
}

#[test]
fn a_node_whose_nats_is_away_is_replaced_by_one_that_waits_for_the_same() {
    let mut nats = NatsServer::start();
    let url = nats.url();
    let present = Options { url: &url, service: SERVICE, node: "one", label: "a=1" };
    let server = serving(present);
    nats.kill();
    reload(&server, Options { label: "a=2", ..present });
    until("the new node", || server.log().contains("the node serves nobody yet"));
    nats.start_again();
    until("its service", || count(&server, "the node one serves work") == 2);
    assert_eq!(count(&server, REFUSED), 0, "{}", server.log());
}

#[test]
fn gateways_are_checked_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    // It accepts, and says nothing before both have come.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let text: String = ["one", "two"]
        .map(|node| {
            pool(&folder, node, Options { url: &url, service: SERVICE, node, label: "a=1" })
        })
        .concat();
    std::fs::write(folder.path().join("pools"), text).unwrap();
    let accepting = std::thread::spawn(move || {
        let [mut first, _second] = [(); 2].map(|()| listener.accept().unwrap().0);
        first.set_nonblocking(true).unwrap();
        first.read(&mut [0]).map_err(|error| error.kind())
    });

    let server = serve(folder);

    let first = accepting.join().unwrap();
    assert_eq!(first, Err(ErrorKind::WouldBlock), "the first check had ended");
    until("both servers", || count(&server, "listening at") == 2);
}

#[test]
fn signals_do_not_end_a_check() {
    let (nats, silent) = (NatsServer::start(), Silent::start());
    let url = nats.url();
    let present = Options { url: &url, service: SERVICE, node: "one", label: "a=1" };
    let server = serving(present);
    reload(&server, Options { url: &silent.url, ..present });
    let client = silent.accept();

    signal(&server, &[Signal::USR1, Signal::USR2]);
    let pid = check(&server).unwrap();
    for kept in [Signal::HUP, Signal::USR1, Signal::USR2] {
        send(pid, kept);
    }
    drop((client, silent));
    until("the end of the check", || count(&server, REFUSED) == 1);
    let log = server.log();
    assert!(!log.contains("was killed by signal"), "{log}");
}

#[test]
fn options_that_were_refused_before_are_checked_again() {
    let (nats, silent) = (NatsServer::start(), Silent::start());
    let url = nats.url();
    let present = Options { url: &url, service: SERVICE, node: "one", label: "a=1" };
    let server = serving(present);
    let later = Options { url: &silent.url, ..present };
    reload(&server, later);
    let _first = silent.accept();

    // Another change comes while the first one is checked.
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    reload(&server, Options { url: &format!("nats://{nowhere}"), ..present });
    until("the refusal", || count(&server, REFUSED) == 1);

    reload(&server, later);
    let _second = silent.accept();
    assert_eq!(count(&server, "the node one serves work"), 1, "{}", server.log());
}

/// Starts a command whose first check waits for NATS.
fn starting(silent: &Silent) -> (Server, TcpStream) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { url: &silent.url, service: SERVICE, node: "one", label: "a=1" };
    std::fs::write(folder.path().join("pools"), pool(&folder, "one", options)).unwrap();
    let command = command(&folder);
    let server = Server::start_only(folder, command);
    let client = silent.accept();
    (server, client)
}

#[test]
fn signals_do_not_end_a_command_that_starts() {
    let silent = Silent::start();
    let (server, client) = starting(&silent);
    signal(&server, &[Signal::HUP, Signal::USR1, Signal::USR2]);
    drop(client);
    until("the server", || server.log().contains("listening at"));
}

#[test]
fn a_command_that_starts_can_be_ended() {
    let silent = Silent::start();
    let (mut server, _client) = starting(&silent);
    signal(&server, &[Signal::TERM]);
    let status = server.program.wait().unwrap();
    assert!(status.success(), "{status}: {}", server.log());
    assert!(!server.log().contains("listening at"), "{}", server.log());
}

#[test]
fn a_gateway_follows_a_new_file_with_name_servers() {
    // A file system in which another file can take its place needs root.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let nats = NatsServer::start();
    let url = nats.url().replace("127.0.0.1", "localhost");
    let folder = tempfile::tempdir().unwrap();
    let present = Options { url: &url, service: SERVICE, node: "one", label: "a=1" };
    std::fs::write(folder.path().join("pools"), pool(&folder, "one", present)).unwrap();
    let new = folder.path().join("resolv.conf");
    std::fs::write(&new, "nameserver 127.0.0.1\n").unwrap();
    let inner = command(&folder);
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "--propagation", "private"]).arg(inner.get_program());
    outer.args(inner.get_args());
    let server = Server::run(folder, outer);
    until("the node", || server.log().contains("the node one serves work"));

    let pid = server.program.id().to_string();
    let mut bind = Command::new("nsenter");
    bind.args(["--mount", "--target", &pid, "mount", "--bind"]).arg(&new).arg("/etc/resolv.conf");
    assert!(bind.status().unwrap().success());

    until("another node", || count(&server, "the node one serves work") == 2);
    assert!(server.log().contains("may not read the new /etc/resolv.conf"), "{}", server.log());
}
