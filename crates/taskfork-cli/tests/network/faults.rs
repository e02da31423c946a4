//! What happens to the fleet, as a seed draws it.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::fleet::{self, Program, children, command_line, signal};
use crate::network::{Network, pause};
use crate::random::Random;

/// The fleet, as far as faults change it.
pub(crate) struct Fleet<'a> {
    pub(crate) network: &'a Network,
    pub(crate) folder: &'a Path,
    pub(crate) urls: &'a str,
    pub(crate) nats_names: &'a [String],
    pub(crate) nats: Vec<Program>,
    pub(crate) nodes: Vec<Program>,
    /// The host of the client with direct connections.
    pub(crate) direct_client: &'a str,
    /// Hosts with an end of a cable that can be unplugged.
    pub(crate) hosts: Vec<String>,
}

/// A fault. Some last for a while, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// All processes of a node, as if the machine had lost its power.
    KillNode,
    /// The command only. What it has started ends by itself.
    KillCommand,
    KillGateway,
    KillServer,
    KillWorker,
    KillNats,
    StopGateway(u64),
    StopServer(u64),
    StopWorker(u64),
    StopNats(u64),
    Unplug(u64),
    Slow(u64),
    /// The client with direct connections reaches no node, but NATS.
    CloseDirect(u64),
}

impl Fault {
    fn draw(random: &mut Random) -> Self {
        let time = 300 + random.next() % 2200;
        match random.below(13) {
            0 => Self::KillNode,
            1 => Self::KillGateway,
            2 => Self::KillServer,
            3 => Self::KillWorker,
            4 => Self::KillNats,
            5 => Self::StopGateway(time),
            6 => Self::StopServer(time),
            7 => Self::StopWorker(time),
            8 => Self::StopNats(time),
            9 => Self::Unplug(time),
            10 => Self::KillCommand,
            11 => Self::CloseDirect(2 * time),
            _ => Self::Slow(time),
        }
    }
}

/// Draws faults and brings them about. Afterwards all runs again.
pub(crate) fn happen(fleet: &mut Fleet<'_>, random: &mut Random, count: usize) {
    for _ in 0..count {
        pause(100 + random.next() % 400);
        let fault = Fault::draw(random);
        let node = random.below(fleet.nodes.len());
        let nats = random.below(fleet.nats.len());
        let host = fleet.hosts[random.below(fleet.hosts.len())].clone();
        println!("  {fault:?}: {}, {} or {host}", fleet.nodes[node].host, fleet.nats[nats].host);
        fleet.happens(fault, node, nats, &host, random);
        fleet.start_ended();
    }
}

impl Fleet<'_> {
    fn happens(&mut self, fault: Fault, node: usize, nats: usize, host: &str, random: &mut Random) {
        match fault {
            Fault::KillNode | Fault::KillCommand => {
                if matches!(fault, Fault::KillNode) {
                    kill_all(descendants(self.nodes[node].pid()));
                }
                self.nodes[node].kill();
                pause(random.next() % 500);
                let host = self.network.host(&self.nodes[node].host);
                self.nodes[node] = fleet::start_node(host, self.folder, self.urls);
            }
            Fault::KillNats => {
                self.nats[nats].kill();
                pause(random.next() % 1000);
                let name = self.nats[nats].host.clone();
                let names = self.nats_names;
                self.nats[nats] = fleet::start_nats(self.network, self.folder, &name, names);
            }
            Fault::KillGateway => kill_all(self.gateway(node)),
            Fault::KillServer => kill_all(self.server(node)),
            Fault::KillWorker => kill_all(self.worker(node, random)),
            Fault::StopGateway(time) => stop(self.gateway(node), time),
            Fault::StopServer(time) => stop(self.server(node), time),
            Fault::StopWorker(time) => stop(self.worker(node, random), time),
            Fault::StopNats(time) => stop(Some(self.nats[nats].pid()), time),
            Fault::Unplug(time) => {
                let host = self.network.host(host);
                host.plug(false);
                pause(time);
                host.plug(true);
            }
            Fault::CloseDirect(time) => {
                let client = self.network.host(self.direct_client);
                let nodes = || self.nodes.iter().map(|node| self.network.host(&node.host));
                client.close_way(nodes(), true);
                pause(time);
                client.close_way(nodes(), false);
            }
            Fault::Slow(time) => {
                let host = self.network.host(host);
                host.slow(true);
                pause(time);
                host.slow(false);
            }
        }
    }

    /// Starts commands again that have ended, as a service manager does: a command whose server is killed ends.
    pub(crate) fn start_ended(&mut self) {
        for node in &mut self.nodes {
            if node.wait(Duration::ZERO).is_some() {
                let host = self.network.host(&node.host);
                *node = fleet::start_node(host, self.folder, self.urls);
            }
        }
    }

    fn gateway(&self, node: usize) -> Option<u32> {
        let parts = children(self.nodes[node].pid());
        parts.into_iter().find(|pid| command_line(*pid).contains("--part=gateway"))
    }

    /// The server is a child of the process that watches over it.
    fn server(&self, node: usize) -> Option<u32> {
        let parts = children(self.nodes[node].pid());
        let guardian = parts.into_iter().find(|pid| command_line(*pid).starts_with("taskfork-"))?;
        children(guardian).first().copied()
    }

    /// The worker's process, or the program that it has started.
    fn worker(&self, node: usize, random: &mut Random) -> Option<u32> {
        // Drawn in any case, so that what follows does not depend on the moment.
        let (drawn, is_program) = (random.below(1 << 20), random.below(2) == 0);
        let workers: Vec<u32> = children(self.server(node)?)
            .into_iter()
            .filter(|pid| command_line(*pid).starts_with("taskfork-worker"))
            .collect();
        let worker = *workers.get(drawn.checked_rem(workers.len())?)?;
        if is_program { children(worker).first().copied() } else { Some(worker) }
    }
}

/// All that a process has started, with what that has started. The first ones cannot start more: they are stopped.
fn descendants(pid: u32) -> Vec<u32> {
    signal(pid, Signal::STOP);
    let children = children(pid);
    let further: Vec<u32> = children.iter().flat_map(|child| descendants(*child)).collect();
    [children, further].concat()
}

fn kill_all(pids: impl IntoIterator<Item = u32>) {
    for pid in pids {
        signal(pid, Signal::KILL);
    }
}

fn stop(pid: Option<u32>, time: u64) {
    let Some(pid) = pid else { return };
    signal(pid, Signal::STOP);
    pause(time);
    signal(pid, Signal::CONT);
}
