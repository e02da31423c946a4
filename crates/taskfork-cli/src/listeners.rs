//! Which process has a TCP port: what the kernel says of sockets that listen.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state of a socket that listens, in the kernel's tables.
const LISTEN: &str = "0A";

/// Whether nothing but sockets of this process keeps others from listening at this address. False also if that
/// cannot be found out.
pub(crate) fn is_taken_by(process: u32, address: SocketAddr) -> bool {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(fs::read_to_string);
    let in_the_way: HashSet<String> = tables
        .iter()
        .flatten()
        .flat_map(|table| listeners(table))
        .filter(|(other, _)| exclude_each_other(*other, address))
        .map(|(_, inode)| format!("socket:[{inode}]"))
        .collect();
    !in_the_way.is_empty() && in_the_way.is_subset(&descriptors(process))
}

/// Whether the kernel lets only one socket listen at both.
fn exclude_each_other(one: SocketAddr, other: SocketAddr) -> bool {
    let is_wildcard = |address: SocketAddr| address.ip().is_unspecified();
    let addresses = match (one.ip(), other.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
            one.ip() == other.ip() || is_wildcard(one) || is_wildcard(other)
        }
        // All addresses of IPv6 have those of IPv4 among them.
        (IpAddr::V6(_), IpAddr::V4(_)) => is_wildcard(one),
        (IpAddr::V4(_), IpAddr::V6(_)) => is_wildcard(other),
    };
    one.port() == other.port() && addresses
}

/// The sockets that listen in a table of the kernel, with their inodes.
fn listeners(table: &str) -> impl Iterator<Item = (SocketAddr, &str)> {
    table.lines().skip(1).filter_map(|line| {
        let columns: Vec<_> = line.split_ascii_whitespace().collect();
        let (local, inode) = (*columns.get(1)?, *columns.get(9)?);
        (columns[3] == LISTEN).then_some((socket_address(local)?, inode))
    })
}

/// An address as the kernel writes it: words of 4 bytes in the machine's order, and the port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        _ => Ipv6Addr::from(*bytes.first_chunk::<16>()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

/// What the descriptors of a process are. Nothing if the process is gone, or of no business of this user.
fn descriptors(process: u32) -> HashSet<String> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.map(|target| target.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_socket_that_listens_is_found_with_its_process() {
        let own = std::process::id();
        for host in ["127.0.0.1", "0.0.0.0"] {
            let listener = TcpListener::bind((host, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            for at in ["127.0.0.1", "0.0.0.0", "::"] {
                let address = SocketAddr::new(at.parse().unwrap(), port);
                assert!(is_taken_by(own, address), "{host} {at}");
                assert!(!is_taken_by(std::os::unix::process::parent_id(), address));
            }
            drop(listener);
            assert!(!is_taken_by(own, SocketAddr::new([127, 0, 0, 1].into(), port)));
        }
    }

    #[test]
    fn the_table_of_the_kernel_is_read() {
        let [one, two] = [0x7f00_0001_u32, 1].map(|word| u32::from_ne_bytes(word.to_be_bytes()));
        let table = format!(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: {one:08X}:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0\n   \
             1: {one:08X}:1F91 {one:08X}:0001 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0\n   \
             2: {zero}{two:08X}:1F92 {zero}00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 79 1 0\n   \
             3: nonsense\n",
            zero = "0".repeat(24),
        );
        let found: Vec<_> = listeners(&table).map(|(at, inode)| (at.to_string(), inode)).collect();
        let expected = [("127.0.0.1:8080".to_owned(), "77"), ("[::1]:8082".to_owned(), "79")];
        assert_eq!(found, expected);
    }

    #[test]
    fn sockets_exclude_each_other_as_the_kernel_has_it() {
        let excludes = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse().unwrap());
            assert_eq!(exclude_each_other(one, other), exclude_each_other(other, one));
            exclude_each_other(one, other)
        };
        for (one, other) in [
            ("10.0.0.1:7", "10.0.0.1:7"),
            ("10.0.0.1:7", "0.0.0.0:7"),
            ("10.0.0.1:7", "[::]:7"),
            ("[::1]:7", "[::]:7"),
        ] {
            assert!(excludes(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("10.0.0.1:7", "10.0.0.1:8"),
            ("10.0.0.1:7", "10.0.0.2:7"),
            ("[::1]:7", "0.0.0.0:7"),
            ("[::1]:7", "127.0.0.1:7"),
        ] {
            assert!(!excludes(one, other), "{one} {other}");
        }
    }
}
