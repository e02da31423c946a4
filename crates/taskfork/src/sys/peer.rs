//! The process at the other end of a socket, as the kernel reports it.

use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::net::sockopt::socket_error;

/// The process that connected a unix socket, as the kernel recorded it at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Its effective user id.
    pub(crate) uid: u32,
    /// Its effective group id.
    pub(crate) gid: u32,
    /// Its process id, or 0 if the process is not visible in the PID namespace of this one.
    pub(crate) pid: u32,
}

/// The socket option for the groups of a peer. It has this number on all architectures except PA-RISC and
/// SPARC.
const SO_PEERGROUPS: libc::c_int = 59;

/// Returns the process that connected a unix socket or made a socket pair. `None` for other sockets.
pub(crate) fn peer_credentials(socket: &impl AsFd) -> Option<Credentials> {
    // If the socket has no peer, the kernel does not change the fields.
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes, the size of `peer`, whose fields are integers.
    let done = unsafe {
        let place = (&raw mut peer).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut size)
    };
    // For other kinds of sockets the kernel returns the user id -1, which no user has.
    (done == 0 && peer.uid != u32::MAX).then(|| Credentials {
        uid: peer.uid,
        gid: peer.gid,
        pid: peer.pid.unsigned_abs(),
    })
}

/// Whether the other end of a unix socket has left bytes unread. It must have ended, or be shut down.
pub(crate) fn has_unread(socket: &impl AsFd) -> bool {
    // In this order: closing the socket sets the error before it discards the unread bytes.
    has_unread_data(socket) || matches!(socket_error(socket), Ok(Err(Errno::CONNRESET)))
}

/// Whether some sent bytes have not been read at the other end of a unix socket.
fn has_unread_data(socket: &impl AsFd) -> bool {
    output_queue(socket) > 0
}

/// How much of what was sent has not been read at the other end of a unix socket, or has not arrived at the machine at the
/// other end of a TCP connection. More than the bytes themselves may count.
pub(crate) fn output_queue(socket: &impl AsFd) -> usize {
    let mut bytes: libc::c_int = 0;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes one `int`, to a local variable.
    let done = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes) };
    if done == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Returns the supplementary groups that the peer of a unix socket had when it connected.
pub(crate) fn peer_groups(socket: &impl AsFd) -> Vec<u32> {
    /// The most groups that a process can have.
    const MOST: usize = 65_536;
    let fd = socket.as_fd().as_raw_fd();
    let mut room = 64;
    while room <= MOST {
        let mut groups = vec![0_u32; room];
        let mut size = (room * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes, the size of the elements of `groups`, which are
        // integers.
        let done = unsafe {
            let place = groups.as_mut_ptr().cast();
            libc::getsockopt(fd, libc::SOL_SOCKET, SO_PEERGROUPS, place, &raw mut size)
        };
        if done == 0 {
            groups.truncate(size as usize / size_of::<u32>());
            return groups;
        }
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::ERANGE) {
            return Vec::new();
        }
        room *= 16;
    }
    Vec::new()
}

/// Returns the address of the other end of a TCP connection.
pub(crate) fn peer_address(socket: &impl AsFd) -> Option<SocketAddr> {
    SocketAddr::try_from(rustix::net::getpeername(socket).ok()??).ok()
}
