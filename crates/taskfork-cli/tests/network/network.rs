//! Hosts: network namespaces that a bridge connects.

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::fleet::until;

/// The network of this process, which has the bridge, and the hosts.
pub(crate) struct Network {
    hosts: Vec<Host>,
}

/// A namespace, held by a process that sleeps.
pub(crate) struct Host {
    pub(crate) name: String,
    holder: Child,
    number: u8,
}

impl Network {
    pub(crate) fn new(names: &[String]) -> Self {
        ip("link set lo up");
        ip("link add br0 type bridge");
        ip("addr add 10.7.0.254/24 dev br0");
        ip("link set br0 up");
        let hosts = (1..).zip(names).map(|(number, name)| Host::new(name, number)).collect();
        Self { hosts }
    }

    pub(crate) fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap()
    }

    pub(crate) fn hosts(&self) -> &[Host] {
        &self.hosts
    }
}

impl Host {
    fn new(name: &str, number: u8) -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().unwrap();
        let pid = holder.id();
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        until("a namespace", || namespace(&pid.to_string()) != namespace("self"));
        let host = Self { name: name.into(), holder, number };
        let cable = host.cable();
        ip(&format!("link add {cable} type veth peer name eth0 netns {pid}"));
        ip(&format!("link set {cable} master br0 up"));
        host.run(&format!("ip addr add {}/24 dev eth0", host.address()));
        host.run("ip link set eth0 up");
        host.run("ip link set lo up");
        host
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 7, 0, self.number)
    }

    pub(crate) fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs on this host. Its process is the program itself.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.holder.id().to_string(), "--", program]);
        // A process group of its own, as if a terminal or a service manager had started it.
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    pub(crate) fn run(&self, words: &str) -> String {
        let mut words = words.split(' ');
        let output = self.command(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The end of the host's cable at the bridge.
    fn cable(&self) -> String {
        format!("v{}", self.number)
    }

    pub(crate) fn plug(&self, plugged: bool) {
        // The host's own end keeps its address and sees no error: packets are dropped.
        let state = if plugged { 3 } else { 0 };
        run(&format!("bridge link set dev {} state {state}", self.cable()));
    }

    /// Closes the way to other hosts, or opens it: packets there get an address that no host has. All others pass.
    pub(crate) fn close_way<'a>(&self, others: impl Iterator<Item = &'a Self>, closed: bool) {
        for other in others {
            let other = other.address();
            match closed {
                true => self.run(&format!(
                    "ip neigh replace {other} lladdr 02:00:00:00:00:01 nud permanent dev eth0"
                )),
                false => self.run(&format!("ip neigh del {other} dev eth0")),
            };
        }
    }

    /// How many TCP connections lead to this port.
    pub(crate) fn connections_to(&self, port: u16) -> usize {
        let (remote, table) = (format!(":{port:04X}"), self.run("cat /proc/net/tcp"));
        let columns = table.lines().filter_map(|line| line.split_whitespace().nth(2));
        columns.filter(|address| address.ends_with(&remote)).count()
    }

    fn nft(&self, command: &str) {
        let output = self.command("nft").arg(command).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }

    /// Delays and loses packets to the host and from it, or ends that.
    pub(crate) fn slow(&self, slow: bool) {
        let cable = self.cable();
        let eth0 = |words: &str| host_tc(self, words);
        if !slow {
            run(&format!("tc qdisc del dev {cable} root"));
            eth0("qdisc del dev eth0 root");
            if !has_netem() {
                self.nft("delete table ip loss");
            }
            return;
        }
        let netem = "root netem delay 20ms 10ms loss 2%";
        // Kernels without netem have a slow link with a short queue, which delays packets, and a packet filter that
        // drops some of them at random.
        let queue = "root tbf rate 4mbit burst 3000 latency 30ms";
        if try_run(&format!("tc qdisc add dev {cable} {netem}")) {
            eth0(&format!("qdisc add dev eth0 {netem}"));
        } else {
            run(&format!("tc qdisc add dev {cable} {queue}"));
            eth0(&format!("qdisc add dev eth0 {queue}"));
            self.nft("add table ip loss");
            for hook in ["input", "output"] {
                self.nft(&format!(
                    "add chain ip loss {hook} {{ type filter hook {hook} priority 0; }}"
                ));
                self.nft(&format!("add rule ip loss {hook} numgen random mod 100 < 2 drop"));
            }
        }
    }
}

/// Whether this kernel has netem.
pub(crate) fn has_netem() -> bool {
    let has = try_run("tc qdisc add dev lo root netem delay 1ms");
    if has {
        run("tc qdisc del dev lo root");
    }
    has
}

fn host_tc(host: &Host, words: &str) {
    host.run(&format!("tc {words}"));
}

fn ip(words: &str) {
    run(&format!("ip {words}"));
}

fn run(words: &str) {
    let mut parts = words.split(' ');
    let output = Command::new(parts.next().unwrap()).args(parts).output().unwrap();
    assert!(output.status.success(), "{words}: {output:?}");
}

fn try_run(words: &str) -> bool {
    let mut parts = words.split(' ');
    let output = Command::new(parts.next().unwrap()).args(parts).output().unwrap();
    output.status.success()
}

/// Waits for a while in which only faults happen.
pub(crate) fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
