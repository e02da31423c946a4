//! One seed, in namespaces of its own: it starts a fleet and clients, draws faults, and looks at what came out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::faults::{self, Fleet};
use crate::fleet::{self, ClientProgram, SERVICE, comes, signal, until};
use crate::leftovers::{all_nats_clients, assert_no_processes, assert_no_sockets};
use crate::network::{Network, has_netem};
use crate::random::Random;

/// How many faults a seed has.
const FAULTS: usize = 6;

const NODES: [&str; 3] = ["one", "two", "three"];
/// The first one is connected directly, the second one through NATS.
const CLIENTS: [&str; 2] = ["red", "blue"];

pub(crate) fn run(seed: u64) {
    let mut random = Random::new(seed);
    let nats_count = if seed.is_multiple_of(2) { 1 } else { 3 };
    let long = seed.is_multiple_of(3);
    let (long_client, direct) =
        if seed.is_multiple_of(2) { ("red", "auto") } else { ("blue", "direct") };
    let nats_names: Vec<String> = (0..nats_count).map(|number| format!("nats-{number}")).collect();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let hosts = [names(&NODES), names(&CLIENTS)].concat();
    let netem = if has_netem() {
        "netem"
    } else {
        "no netem: a slow link, and a filter that drops packets"
    };
    println!(
        "network: seed {seed}, {nats_count} NATS servers, long arguments: {long}, {direct}, {netem}"
    );

    let folder = tempfile::tempdir().unwrap();
    let network = Network::new(&[nats_names.clone(), hosts.clone()].concat());
    let start_nats = |name: &String| fleet::start_nats(&network, folder.path(), name, &nats_names);
    let nats: Vec<_> = nats_names.iter().map(start_nats).collect();
    let urls: Vec<String> = nats_names
        .iter()
        .map(|name| format!("nats://{}:4222", network.host(name).address()))
        .collect();
    let urls = urls.join(",");
    until("NATS", || {
        nats_names.iter().all(|name| {
            let answer = fleet::monitor(network.host(name), "/varz");
            answer.is_some_and(|varz| {
                varz["routes"].as_u64() >= Some(if nats_count == 1 { 0 } else { 2 })
            })
        })
    });
    fleet::make_certificate(folder.path());
    let start_node = |name| fleet::start_node(network.host(name), folder.path(), &urls);
    let nodes: Vec<_> = NODES.into_iter().map(start_node).collect();
    wait_for_nodes(&network, folder.path(), &nats_names, || {});

    let record = folder.path().join("record");
    fs::write(&record, "").unwrap();
    let client_urls = urls.replace(",nats://", ",");
    let mut clients: Vec<ClientProgram> = CLIENTS
        .into_iter()
        .map(|name| {
            let host = network.host(name);
            let long = long && name == long_client;
            let route = if name == CLIENTS[0] { direct } else { "relayed" };
            ClientProgram::start(host, folder.path(), &client_urls, &record, long, route)
        })
        .collect();
    until("the first calls", || {
        let record = fs::read_to_string(&record).unwrap();
        CLIENTS.iter().all(|name| record.contains(name))
    });
    let directs = CLIENTS.map(|name| network.host(name).connections_to(fleet::DIRECT_PORT));
    assert!(directs[0] > 0 && directs[1] == 0, "direct connections: {directs:?}");
    let mut fleet = Fleet {
        network: &network,
        folder: folder.path(),
        urls: &urls,
        nats_names: &nats_names,
        nats,
        nodes,
        direct_client: CLIENTS[0],
        hosts,
    };
    faults::happen(&mut fleet, &mut random, FAULTS);
    wait_for_nodes(&network, folder.path(), &nats_names, || fleet.start_ended());
    for client in &mut clients {
        client.stop();
    }
    let lines: Vec<String> = clients.into_iter().flat_map(ClientProgram::lines).collect();
    check_calls(&lines, &fs::read_to_string(&record).unwrap(), folder.path());

    // Without clients no node listens at an inbox.
    let mut idle = NODES.map(|node| (node.to_owned(), 0));
    idle.sort();
    let mut left = Vec::new();
    let same = comes(|| {
        left = all_nats_clients(&network, &nats_names);
        left == idle
    });
    assert!(same, "clients of NATS are left, or they listen at inboxes: {left:?}");
    for node in &mut fleet.nodes {
        signal(node.pid(), Signal::TERM);
        let status = node.wait(Duration::from_secs(60));
        assert!(status.is_some_and(|status| status.success()), "{}: {status:?}", node.host);
    }
    let nats: Vec<u32> = fleet.nats.iter().map(fleet::Program::pid).collect();
    assert_no_processes(&network, &nats);
    for host in &fleet.hosts {
        assert_no_sockets(&network, host);
    }
    until("the end of all connections", || all_nats_clients(&network, &nats_names).is_empty());
}

/// Waits until all nodes have a connection to NATS, and does something meanwhile.
fn wait_for_nodes(network: &Network, folder: &Path, nats: &[String], mut meanwhile: impl FnMut()) {
    let there = comes(|| {
        meanwhile();
        let clients = all_nats_clients(network, nats);
        NODES.iter().all(|node| clients.iter().any(|(name, _)| name == node))
    });
    if !there {
        for node in NODES {
            let log = fs::read_to_string(folder.join(format!("{node}.log"))).unwrap_or_default();
            println!("log of {node}:\n{log}");
        }
        panic!("not all nodes of {SERVICE} are there: {:?}", all_nats_clients(network, nats));
    }
}

/// Each call has ended once, with its answer or an error that fits, and none has run twice.
fn check_calls(lines: &[String], record: &str, folder: &Path) {
    let mut runs: HashMap<&str, usize> = HashMap::new();
    for id in record.lines() {
        *runs.entry(id).or_default() += 1;
    }
    let mut open: HashSet<&str> = HashSet::new();
    let (mut right, mut errors, mut wrong) = (0, Vec::new(), Vec::new());
    for line in lines {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        match words[..] {
            ["begin", id] => {
                open.insert(id);
            }
            ["end", id, ref how @ ..] => {
                let runs = runs.get(id).copied().unwrap_or(0);
                let fits = match how {
                    ["ok"] => runs == 1,
                    ["error", "maybe", _] => runs <= 1,
                    ["error", "unrun", _] => runs == 0,
                    _ => false,
                };
                match how {
                    ["ok"] => right += 1,
                    _ => errors.push(how.join(" ")),
                }
                if !open.remove(id) || !fits {
                    wrong.push(format!("{line} (it ran {runs} times)"));
                }
            }
            ["end"] => {}
            // A call behind the last fault that has failed.
            _ => wrong.push(line.clone()),
        }
    }
    errors.sort();
    println!("  {right} calls with their answers, {} with errors: {errors:#?}", errors.len());
    wrong.extend(open.iter().map(|id| format!("{id} has no end")));
    if !wrong.is_empty() {
        for name in NODES.into_iter().chain(CLIENTS) {
            let log = fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
            println!("log of {name}:\n{log}");
        }
        panic!("calls are wrong: {wrong:#?}");
    }
}
