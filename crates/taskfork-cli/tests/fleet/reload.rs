//! Checks of gateways: before anything serves, and before one with new options replaces another.

use std::io::{ErrorKind, Read};
use std::net::TcpListener;
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

fn serve(folder: TempDir) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--restart-on-hangup", "--config"]).arg(folder.path().join("pools"));
    Server::run(folder, command)
}

/// Writes new options, and has the server read them.
fn reload(server: &Server, options: Options<'_>) {
    let text = pool(&server.folder, "one", options);
    std::fs::write(server.folder.path().join("pools"), text).unwrap();
    let pid = Pid::from_raw(server.program.id().cast_signed()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
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
