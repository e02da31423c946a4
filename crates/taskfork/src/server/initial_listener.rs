//! The first listener of a server: one that it inherits from another process, or one that it opens.

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::net::SocketAddrUnix;

use super::error::ServerError;
use super::listener::Listener;
use super::log;
use super::options::Options;
use super::service_manager::ServiceManager;
use super::socket_file::Identity;
use crate::address::{Address, AddressKind};

#[derive(Debug)]
pub(super) struct InitialListener {
    /// `None` for a server that clients reach only through its handle.
    pub(super) listener: Option<Listener>,
    /// It comes from the server before this one.
    pub(super) is_inherited: bool,
}

impl InitialListener {
    /// Uses the inherited listener if it has the right address. Otherwise uses the service manager's
    /// socket if no address is set, or opens the address.
    pub(super) fn acquire(
        options: &Options,
        inherited: Option<(OwnedFd, Option<Identity>)>,
    ) -> Result<Self, ServerError> {
        let address = options.address.clone().transpose()?;
        let address = address.map(|address| options.spawn_data.resolve_port(address));
        let is_inherited = inherited.is_some();
        let (listener, is_inherited) = match (address, inherited) {
            (Some(address), Some((socket, file))) if listens_at(&socket, &address) => {
                (Listener::adopt(socket, &address, file), true)
            }
            // The server before this one got it from the service manager.
            (None, Some((socket, file))) => {
                let address = Address::inherited(socket.as_raw_fd());
                (Listener::adopt(socket, &address, file), true)
            }
            (Some(address), _) => {
                if is_inherited {
                    log::info!("the address has changed: this server listens at {address} now");
                }
                (Listener::open(&address, options.socket_mode, &options.access)?, false)
            }
            (None, None) => match ServiceManager::listener() {
                Some(address) => {
                    (Listener::open(&address, options.socket_mode, &options.access)?, false)
                }
                None if options.control.is_some() => {
                    return Ok(Self { listener: None, is_inherited: false });
                }
                None => return Err(ServerError::NoAddress),
            },
        };
        options.access.check_listener(&listener, listener.address())?;
        Ok(Self { listener: Some(listener), is_inherited })
    }
}

/// Whether a socket listens at this address.
fn listens_at(socket: &OwnedFd, address: &Address) -> bool {
    let Ok(name) = rustix::net::getsockname(socket) else { return false };
    match &address.0 {
        AddressKind::Unix(path) => SocketAddrUnix::try_from(name)
            .is_ok_and(|name| name.path_bytes().is_some_and(|name| is_same_path(name, path))),
        AddressKind::Tcp { host, port } => SocketAddr::try_from(name).is_ok_and(|name| {
            let resolved = (host.as_str(), *port).to_socket_addrs();
            // With port 0, the kernel has chosen the port.
            let is_it = |one: SocketAddr| {
                one.ip() == name.ip() && (*port == 0 || one.port() == name.port())
            };
            resolved.is_ok_and(|mut all| all.any(is_it))
        }),
        // The number belongs to the process before this one.
        AddressKind::Inherited(_) => true,
        _ => false,
    }
}

/// Whether a socket that was bound at `bound` is the one at `path`, even by another path to the
/// same file.
fn is_same_path(bound: &[u8], path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let there = PathBuf::from(std::ffi::OsStr::from_bytes(bound));
    there == path || identity(&there).is_some_and(|file| Some(file) == identity(path))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_is_known_by_where_it_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = OwnedFd::from(UnixListener::bind(&path).unwrap());
        let address = |path: &Path| Address::unix(path).unwrap();
        assert!(listens_at(&socket, &address(&path)));
        assert!(!listens_at(&socket, &address(&folder.path().join("t"))));
        assert!(!listens_at(&socket, &Address::tcp("127.0.0.1", 1)));
        let other_way = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &other_way).unwrap();
        assert!(listens_at(&socket, &address(&other_way.join("s"))));
        // A program that cleans the folder may have removed the file.
        std::fs::remove_file(&path).unwrap();
        assert!(listens_at(&socket, &address(&path)));

        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let socket = OwnedFd::from(socket);
        for (host, port, is_it) in [
            ("127.0.0.1", port, true),
            ("127.0.0.1", 0, true),
            ("127.0.0.1", port - 1, false),
            ("127.0.0.2", port, false),
        ] {
            assert_eq!(listens_at(&socket, &Address::tcp(host, port)), is_it, "{host}:{port}");
        }
    }
}
