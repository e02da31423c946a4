//! Sockets of all families.

use std::io;
use std::mem::zeroed;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

use crate::attempt::Opening::{ConnectTcp, UnixSocket};
use crate::attempt::{Attempt, Surroundings, attempt};
use crate::system_call::{address, open_by, permitted, system_call};

const LACKING: &[i32] = &[libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::ESOCKTNOSUPPORT];
const MAY_LACK: &str = "the kernel may lack the protocol";

pub(super) fn attempts() -> Vec<Attempt> {
    vec![
        attempt("connects_by_tcp", |with| connect(with.tcp)).opened_by(&[ConnectTcp]),
        attempt("connects_to_another_port", |with| connect(with.other_tcp)),
        attempt("connects_by_tcp_over_ipv6", |with| {
            TcpStream::connect(("::1", with.tcp_v6)).map(drop)
        })
        .may_fail(&[libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL, libc::ECONNREFUSED], MAY_LACK),
        attempt("connects_with_the_first_byte", |with| {
            let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
            let peer = ipv4(with.other_tcp);
            send_to(&socket, libc::MSG_FASTOPEN, &peer)
        })
        .may_fail(&[libc::EOPNOTSUPP, libc::EINPROGRESS], "it may be switched off"),
        attempt("connects_by_multipath_tcp", |with| {
            let socket = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
            connect_socket(&socket, &ipv4(with.other_tcp))
        })
        .may_fail(&[libc::EPROTONOSUPPORT, libc::ENOPROTOOPT, libc::EACCES], MAY_LACK),
        attempt("connects_by_sctp", |with| {
            let socket = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)?;
            permitted(connect_socket(&socket, &ipv4(with.tcp)), &[libc::ECONNREFUSED])
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("connects_its_own_connection_elsewhere", reconnects),
        attempt("listens_on_tcp", |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)),
        attempt("listens_without_binding", |_| {
            let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
            system_call(libc::SYS_listen, &[socket.as_raw_fd() as usize, 1]).map(drop)
        }),
        attempt("sends_a_datagram", |with| {
            let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            send_to(&socket, 0, &ipv4(with.udp))
        }),
        attempt("receives_datagrams", |_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)),
        attempt("sends_a_datagram_over_ipv6", |_| {
            UdpSocket::bind(("::1", 0))?.send_to(b"x", ("::1", 9)).map(drop)
        })
        .may_fail(&[libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL], MAY_LACK),
        attempt("connects_to_a_unix_socket", |with| {
            UnixStream::connect(with.outside.join("stream")).map(drop)
        })
        .opened_by(&[UnixSocket]),
        attempt("connects_to_another_unix_socket", |with| {
            UnixStream::connect(with.outside.join("other-stream")).map(drop)
        }),
        attempt("connects_to_an_abstract_socket", |with| {
            let peer = SocketAddr::from_abstract_name(&with.abstract_name)?;
            UnixStream::connect_addr(&peer).map(drop)
        }),
        attempt("connects_to_its_server", |with| {
            UnixStream::connect(&with.server_socket).map(drop)
        }),
        attempt("connects_to_the_status_of_its_server", |with| {
            UnixStream::connect(&with.status_socket).map(drop)
        }),
        attempt("sends_a_unix_datagram", |with| {
            let socket = UnixDatagram::unbound()?;
            socket.send_to(b"x", with.outside.join("datagrams")).map(drop)
        }),
        attempt("sends_a_datagram_from_a_pair", |with| {
            let (socket, _other) = UnixDatagram::pair()?;
            socket.send_to(b"x", with.outside.join("datagrams")).map(drop)
        }),
        attempt("connects_a_pair_elsewhere", |with| {
            let (socket, _other) = UnixDatagram::pair()?;
            socket.connect(with.outside.join("datagrams"))
        }),
        attempt("listens_on_a_unix_socket", |with| {
            UnixListener::bind(with.new_file("socket")).map(drop)
        }),
        attempt("listens_on_a_unix_socket_in_its_scratch_folder", |with| {
            UnixListener::bind(with.scratch.join("socket")).map(drop)
        }),
        attempt("listens_on_an_abstract_socket", |_| {
            let name = format!("taskfork-escape-{}", std::process::id());
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?).map(drop)
        }),
        attempt("asks_the_kernel_for_its_routes", |_| {
            socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).map(drop)
        }),
        attempt("asks_the_kernel_for_its_sockets", |_| {
            socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_INET_DIAG).map(drop)
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("listens_to_events_of_devices", |_| {
            socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT).map(drop)
        }),
        attempt("makes_a_raw_socket", |_| {
            socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).map(drop)
        })
        .for_root(),
        attempt("makes_a_socket_for_pings", |_| {
            socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP).map(drop)
        })
        .may_fail(&[libc::EACCES], "groups may not be allowed to"),
        attempt("reads_all_packets", |_| {
            let all = i32::from((libc::ETH_P_ALL as u16).to_be());
            socket(libc::AF_PACKET, libc::SOCK_RAW, all).map(drop)
        })
        .for_root(),
        attempt("makes_a_socket_of_virtual_machines", |_| {
            socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0).map(drop)
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("makes_a_socket_for_ciphers", |_| {
            socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0).map(drop)
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("makes_a_socket_for_bluetooth", |_| {
            const BLUETOOTH: i32 = 31;
            socket(BLUETOOTH, libc::SOCK_RAW, 1).map(drop)
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("makes_a_socket_of_clusters", |_| {
            const TIPC: i32 = 30;
            socket(TIPC, libc::SOCK_STREAM, 0).map(drop)
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("makes_a_socket_of_vehicles", |_| {
            socket(libc::AF_CAN, libc::SOCK_RAW, 1).map(drop)
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("makes_a_socket_of_express_data_paths", |_| {
            socket(libc::AF_XDP, libc::SOCK_RAW, 0).map(drop)
        })
        .may_fail(&[libc::EAFNOSUPPORT, libc::EPERM], MAY_LACK),
    ]
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC;
    open_by(libc::SYS_socket, &[family as usize, kind as usize, protocol as usize])
}

fn connect(port: u16) -> io::Result<()> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop)
}

fn ipv4(port: u16) -> libc::sockaddr_in {
    // SAFETY: all bit patterns are valid.
    #[allow(unsafe_code)]
    let mut peer: libc::sockaddr_in = unsafe { zeroed() };
    peer.sin_family = libc::AF_INET as libc::sa_family_t;
    peer.sin_port = port.to_be();
    peer.sin_addr.s_addr = u32::from(Ipv4Addr::LOCALHOST).to_be();
    peer
}

fn connect_socket<T>(socket: &OwnedFd, peer: &T) -> io::Result<()> {
    let arguments = [socket.as_raw_fd() as usize, address(peer), size_of::<T>()];
    system_call(libc::SYS_connect, &arguments).map(drop)
}

fn send_to<T>(socket: &OwnedFd, flags: i32, peer: &T) -> io::Result<()> {
    let byte = *b"x";
    let socket = socket.as_raw_fd() as usize;
    let arguments = [socket, address(&byte), 1, flags as usize, address(peer), size_of::<T>()];
    system_call(libc::SYS_sendto, &arguments).map(drop)
}

/// Dissolves an open connection by TCP, as a worker of a server on the network has one, and connects elsewhere.
fn reconnects(with: &Surroundings) -> io::Result<()> {
    let socket = with.connection as usize;
    // SAFETY: all bit patterns are valid.
    #[allow(unsafe_code)]
    let nobody: libc::sockaddr = unsafe { zeroed() };
    system_call(libc::SYS_connect, &[socket, address(&nobody), size_of_val(&nobody)])?;
    let peer = ipv4(with.other_tcp);
    system_call(libc::SYS_connect, &[socket, address(&peer), size_of_val(&peer)]).map(drop)
}
