//! Hundreds of workers of one server.

use std::collections::HashSet;
use std::io::Read;

use taskfork::client::{Checkout, Value};
use taskfork::error::{End, FatalError};
use taskfork::server::ServerHandle;
use taskfork::{Client, Error, Server};

use crate::support::processes::{children, signal};
use crate::support::raw::{Raw, map, text};
use crate::support::{address_in, programs, start_with, trial, until};

/// With two descriptors each, these are more than a server looks at one by one.
const MANY: usize = 520;

trial!(a_worker_with_hundreds_of_siblings_has_only_its_own_descriptors, async || {
    // In a process of its own, as other tests need descriptors meanwhile.
    programs::run("hundreds_of_siblings").await;
});

trial!(hundreds_of_deaths_at_once_are_all_reported_and_replaced, async || {
    programs::run("hundreds_of_deaths").await;
});

trial!(what_a_sibling_closes_may_become_the_connection_of_a_later_worker, async || {
    programs::run("closed_stderr").await;
});

/// Kills the server at the end, also if the test fails: a server that has missed the death of a worker waits for it.
struct Killed(Option<ServerHandle>);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(ServerHandle::kill);
    }
}

fn many(client: &Client) -> Vec<Checkout> {
    (0..MANY).map(|_| client.checkout()).collect()
}

/// The process ids of the workers.
async fn pids(checkouts: &[Checkout]) -> HashSet<u32> {
    let mut pids = HashSet::new();
    for checkout in checkouts {
        assert!(pids.insert(checkout.call("pid", ()).await.unwrap()), "one worker for two");
    }
    pids
}

/// How many descriptors of this kind a process has.
fn open(pid: u32, kind: &str) -> usize {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with(kind)).count()
}

fn highest_descriptor(pid: u32) -> u32 {
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().to_str().unwrap().parse().unwrap()
    };
    numbers.map(number).max().unwrap()
}

/// The test program of that test.
pub(crate) async fn hold_siblings() {
    let (server, client) = start_with("many_workers", |client| client.max_workers(MANY + 2));
    let pid = server.pid();
    let _server = Killed(Some(server));
    let open = async || {
        let checkout = client.checkout();
        let open: Vec<String> = checkout.call("descriptors", ()).await.unwrap();
        let socket = open.iter().find(|target| target.starts_with("socket:")).unwrap().clone();
        (checkout, socket, open.len())
    };
    let (_first, first, alone) = open().await;
    let checkouts = many(&client);
    assert_eq!(pids(&checkouts).await.len(), MANY);
    let (_last, last, among_many) = open().await;
    assert_ne!(first, last);
    assert_eq!(among_many, alone);
    if cfg!(target_arch = "x86_64") {
        let highest = highest_descriptor(pid);
        assert!(highest >= 1024, "forks copy the server's descriptors of all workers");
    }
}

/// The test program of that test. The first workers' descriptors have low numbers, and the server gives such a number
/// to a later connection.
pub(crate) async fn close_stderr() {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let server = Server::spawn_with("many_listening", &address).unwrap();
    let pid = server.pid();
    let _server = Killed(Some(server));
    let client = Client::builder().address(address).min_workers(0).max_workers(MANY);
    let client = client.build().unwrap();
    let first = client.checkout();
    first.call::<u32>("pid", ()).await.unwrap();
    let siblings: Vec<_> = (0..80).map(|_| client.checkout()).collect();
    pids(&siblings).await;
    let before = open(pid, "pipe:");
    assert_eq!(first.call::<i32>("close_stderr", ()).await.unwrap(), 0);
    until("the server's end to be closed", || open(pid, "pipe:") < before).await;

    // Those that say nothing yet get the lowest free numbers, one after the other.
    let before = open(pid, "socket:");
    let mut waiting = Vec::new();
    for _ in 0..8 {
        waiting.push(Raw::connect(&folder.path().join("s")).await);
    }
    until("the connections", || open(pid, "socket:") >= before + waiting.len()).await;
    for raw in &mut waiting {
        raw.send(b"taskfork");
        let known = [("versions", Value::Array(vec![1.into()])), ("name", text("raw"))];
        raw.send_message(vec![0.into(), map(&known)]);
        let mut preamble = [0; 8];
        raw.0.read_exact(&mut preamble).unwrap();
        assert_eq!(&preamble, b"taskfork");
        raw.receive().unwrap();
    }
}

/// The test program of that test.
pub(crate) async fn die_at_once() {
    let (server, client) = start_with("many_workers", |client| client.max_workers(MANY));
    let pid = server.pid();
    let _server = Killed(Some(server));
    let checkouts = many(&client);
    let killed = pids(&checkouts).await;
    killed.iter().for_each(|&pid| signal(pid, libc::SIGKILL));
    let mut reported = HashSet::new();
    for checkout in &checkouts {
        match checkout.call::<()>("nothing", ()).await.unwrap_err() {
            Error::Fatal { cause: FatalError::WorkerDied(death), .. } => {
                assert_eq!(death.end, End::Signaled(libc::SIGKILL));
                reported.insert(death.pid);
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(reported, killed);
    drop(checkouts);
    let checkouts = many(&client);
    let replaced = pids(&checkouts).await;
    assert!(replaced.is_disjoint(&killed), "a dead worker's process id");
    // The guardian is one more child.
    until("all dead workers are reaped", || children(pid).len() <= MANY + 1).await;
}
