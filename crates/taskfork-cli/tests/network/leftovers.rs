//! What may be left on hosts.

use serde_json::Value;

use crate::fleet::{children, comes, command_line, monitor};
use crate::network::Network;

/// The NATS clients that are connected with a server: for each its name, and how many inboxes it listens at.
pub(crate) fn nats_clients(network: &Network, server: &str) -> Option<Vec<(String, usize)>> {
    let answer = monitor(network.host(server), "/connz?subs=1&limit=10000")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let connections = answer["connections"].as_array()?;
    let mut clients: Vec<(String, usize)> = connections
        .iter()
        .map(|client| {
            let subjects = client["subscriptions_list"].as_array().map_or(&[][..], Vec::as_slice);
            let inboxes = subjects.iter().filter(|subject| text(subject).starts_with("_INBOX."));
            (text(&client["name"]), inboxes.count())
        })
        .collect();
    clients.sort();
    Some(clients)
}

/// The clients of all servers.
pub(crate) fn all_nats_clients(network: &Network, servers: &[String]) -> Vec<(String, usize)> {
    let clients = servers.iter().filter_map(|server| nats_clients(network, server));
    let mut clients: Vec<_> = clients.flatten().collect();
    clients.sort();
    clients
}

/// Waits until no process is left but this one, those that hold the hosts, and NATS servers.
pub(crate) fn assert_no_processes(network: &Network, nats: &[u32]) {
    let mut left = Vec::new();
    let none = comes(|| {
        left = all_processes()
            .into_iter()
            .filter(|pid| {
                let is_host = network.hosts().iter().any(|host| host.holder() == *pid);
                *pid != std::process::id() && !is_host && !nats.contains(pid) && !is_dead(*pid)
            })
            .collect();
        left.is_empty()
    });
    let lines: Vec<String> = left
        .iter()
        .map(|pid| format!("{pid} {} with {:?}", command_line(*pid), children(*pid)))
        .collect();
    assert!(none, "processes are left: {lines:#?}");
}

fn all_processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether only a parent is to ask how a process has ended.
fn is_dead(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")),
        Err(_) => true,
    }
}

/// Waits until a host has no unix socket, and no TCP socket but those of connections that have ended.
pub(crate) fn assert_no_sockets(network: &Network, host: &str) {
    let host = network.host(host);
    let mut left = String::new();
    let none = comes(|| {
        let unix = host.run("cat /proc/net/unix");
        let tcp = host.run("cat /proc/net/tcp /proc/net/tcp6");
        // 06 is TIME_WAIT.
        let is_open = |line: &&str| {
            let state = line.split_whitespace().nth(3);
            state.is_some_and(|state| state != "06" && state != "st")
        };
        let open = tcp.lines().filter(is_open);
        left = unix.lines().skip(1).chain(open).collect::<Vec<_>>().join("\n");
        left.is_empty()
    });
    assert!(none, "sockets are left on {}:\n{left}", host.name);
}
