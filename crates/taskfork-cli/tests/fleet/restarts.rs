//! Nodes that end and start again while they are used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use taskfork::Client;
use taskfork::client::Value;

use crate::common::{Server, until};
use crate::nats_server::NatsServer;
use crate::node::{address, start, status, terminate, wait};

/// Calls that are made all the time by several tasks, until this ends.
struct Load {
    runtime: tokio::runtime::Runtime,
    calls: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(nats: &NatsServer, tasks: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (calls, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let client = runtime.block_on(async {
            let builder = Client::builder().address(address(nats)).min_workers(0);
            builder.max_workers(tasks).timeout(Duration::from_secs(60)).build().unwrap()
        });
        let tasks = (0..tasks as u64).map(|task| {
            let (client, calls, stop) = (client.clone(), Arc::clone(&calls), Arc::clone(&stop));
            runtime.spawn(async move {
                for number in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let checkout = client.checkout();
                    // The first call of a checkout, and one behind it.
                    for method in ["echo", "echo"] {
                        let argument = (task << 32) + number;
                        let answer = checkout.call::<Value>(method, (argument,)).await;
                        assert_eq!(answer.unwrap(), Value::from(argument));
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        });
        let tasks = tasks.collect();
        Self { runtime, calls, stop, tasks }
    }

    /// Waits until so many calls more have been made.
    fn wait_for_more(&self, count: usize) {
        let before = self.calls.load(Ordering::Relaxed);
        until("more calls", || {
            assert!(!self.tasks.iter().any(tokio::task::JoinHandle::is_finished), "a call failed");
            self.calls.load(Ordering::Relaxed) >= before + count
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            self.runtime.block_on(task).unwrap();
        }
    }
}

/// Restarts three nodes with these options one after the other, under load. Calls `check` before and behind that.
fn restart_three_nodes(options: &[&str], check: impl Fn(&[Server; 3])) {
    let nats = NatsServer::start();
    let names = ["one", "two", "three"];
    let options = [&["--max-workers", "4"], options].concat();
    let mut nodes = names.map(|name| start(&nats, name, &options));
    let load = Load::start(&nats, 6);
    load.wait_for_more(100);
    check(&nodes);
    for (node, name) in nodes.iter_mut().zip(names) {
        terminate(node);
        let ended = wait(node);
        assert!(ended.success(), "{ended}: {}", node.log());
        load.wait_for_more(100);
        *node = start(&nats, name, &options);
        load.wait_for_more(100);
    }
    check(&nodes);
    load.end();
}

/// The port where the gateway of a node listens.
fn port(node: &Server) -> u16 {
    let log = node.log();
    let address = log.split("the gateway listens at tls:127.0.0.1:").nth(1).unwrap();
    address.split_whitespace().next().unwrap().parse().unwrap()
}

/// Whether this process has a connection to this port.
fn is_connected_to(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let (remote, established) = (format!(":{port:04X}"), "01");
    let mut connections = table.lines().skip(1).map(|line| line.split_whitespace());
    connections.any(|mut columns| {
        columns.nth(2).is_some_and(|to| to.ends_with(&remote))
            && columns.next() == Some(established)
    })
}

#[test]
fn a_rolling_restart_of_three_nodes_loses_no_call() {
    restart_three_nodes(&[], |_| {});
}

#[test]
fn a_rolling_restart_of_nodes_with_direct_connections_loses_no_call() {
    let folder = tempfile::tempdir().unwrap();
    let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let certificate = file("cert.pem", identity.cert.pem());
    let key = file("key.pem", identity.signing_key.serialize_pem());
    let options = ["--tls", "127.0.0.1:0", "--cert", &certificate, "--key", &key];
    restart_three_nodes(&options, |nodes| {
        let ports = nodes.each_ref().map(port);
        until("a direct connection", || ports.into_iter().any(is_connected_to));
    });
}

#[test]
fn a_checkout_may_end_before_its_node() {
    let nats = NatsServer::start();
    let mut node = start(&nats, "one", &["--shutdown-grace", "60s"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let client = Client::builder().address(address(&nats)).min_workers(0).build().unwrap();
    let checkout = client.checkout();
    let pid: u32 = runtime.block_on(checkout.call("pid", ())).unwrap();
    terminate(&node);
    until("the drain", || node.log().contains("waits for its clients' checkouts"));
    // The node answers, but takes nobody.
    until("the node's word", || {
        let nodes = status(&nats, &[]);
        nodes[0]["draining"] == true && nodes[0]["free"] == 0
    });
    assert_eq!(runtime.block_on(checkout.call::<u32>("pid", ())).unwrap(), pid);
    drop(checkout);
    let ended = wait(&mut node);
    assert!(ended.success(), "{ended}: {}", node.log());
}

#[test]
fn the_grace_ends_what_goes_on() {
    let nats = NatsServer::start();
    let mut node = start(&nats, "one", &["--shutdown-grace", "300ms"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let client = Client::builder().address(address(&nats)).min_workers(0).build().unwrap();
    let checkout = client.checkout();
    runtime.block_on(checkout.call::<u32>("pid", ())).unwrap();
    let began = Instant::now();
    terminate(&node);
    wait(&mut node);
    assert!(began.elapsed() >= Duration::from_millis(300));
    let error = runtime.block_on(checkout.call::<u32>("pid", ())).unwrap_err();
    assert!(error.is_fatal() && !error.may_have_run(), "{error:?}");
}
