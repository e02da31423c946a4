//! The socket that clients connect to: opening it without taking it from a living server, and
//! leaving no file of it behind.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, chmod, flock, lstat, open, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with, sockopt,
};
use rustix::process::umask;

use super::error::ServerError;
use crate::address::{Address, Place};
use crate::sys;

/// Connections that may wait to be accepted; the kernel lowers it to its own limit.
const BACKLOG: i32 = 4096;

/// How long to wait for another server that is just starting or stopping in the same folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A listening socket. Dropped by the process that made it, it removes its file.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    address: Address,
    file: Option<SocketFile>,
}

impl Listener {
    pub(crate) fn open(address: &Address, mode: u32) -> Result<Self, ServerError> {
        let listener = match &address.0 {
            Place::Unix(path) => open_unix(path, mode)?,
            Place::Tcp { host, port } => open_tcp(address, host, *port)?,
            Place::Inherited(number) => open_inherited(*number)?,
            Place::Handle(_) => {
                let source = io::Error::from(io::ErrorKind::InvalidInput);
                return Err(ServerError::Listen { address: address.to_string(), source });
            }
        };
        if !matches!(address.0, Place::Unix(_)) {
            // What is accepted over TCP, and inherits this, must not wait to fill packets, nor
            // outlive a peer that vanished. Other sockets refuse it.
            let _ = sockopt::set_tcp_nodelay(&listener.socket, true);
            let _ = sockopt::set_socket_keepalive(&listener.socket, true);
        }
        rustix::io::ioctl_fionbio(&listener.socket, true)
            .map_err(ServerError::system("cannot make the listener non-blocking"))?;
        Ok(listener)
    }

    /// Takes over what another server has opened at this address, and its file.
    pub(crate) fn adopt(socket: OwnedFd, address: &Address) -> Self {
        let file = match &address.0 {
            Place::Unix(path) => SocketFile::at(path).ok(),
            _ => None,
        };
        Self { socket, address: address.clone(), file }
    }

    /// Has it leave its file, which is another's now.
    pub(crate) fn leave_file(&mut self) {
        if let Some(file) = &mut self.file {
            file.owner = 0;
        }
    }

    /// Where it listens, with the port that the kernel chose.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The next waiting connection.
    pub(crate) fn accept(&self) -> rustix::io::Result<OwnedFd> {
        accept_with(&self.socket, SocketFlags::CLOEXEC)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The file of a unix socket, known by what cannot be taken over by another.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    owner: u32,
}

impl SocketFile {
    fn at(path: &Path) -> rustix::io::Result<Self> {
        let file = lstat(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: file.st_dev,
            inode: file.st_ino,
            owner: std::process::id(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A worker that was forked from the server drops this too.
        if self.owner != std::process::id() {
            return;
        }
        // The lock keeps a new server from putting its own socket there in between.
        let _lock = lock_folder(&self.path);
        if lstat(&self.path)
            .is_ok_and(|file| (file.st_dev, file.st_ino) == (self.device, self.inode))
        {
            let _ = unlink(&self.path);
        }
    }
}

fn open_unix(path: &Path, mode: u32) -> Result<Listener, ServerError> {
    let address = Address(Place::Unix(path.to_owned()));
    let refused =
        |errno: Errno| ServerError::Listen { address: address.to_string(), source: errno.into() };
    let name = SocketAddrUnix::new(path).map_err(refused)?;
    let _lock = lock_folder(path)?;
    match lstat(path) {
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(refused(errno)),
        Ok(file) if FileType::from_raw_mode(file.st_mode) != FileType::Socket => {
            return Err(ServerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) if is_live(&name).map_err(refused)? => {
            return Err(ServerError::InUse { address: address.to_string() });
        }
        Ok(_) => unlink(path).map_err(refused)?,
    }
    let socket = unix_socket().map_err(refused)?;
    let mode = Mode::from_raw_mode(mode & 0o777);
    // From its first moment on the file has no more permissions than it will end with.
    let before = umask(Mode::from_raw_mode(0o777) - mode);
    let bound = bind(&socket, &name);
    umask(before);
    bound.map_err(refused)?;
    let file = SocketFile::at(path).map_err(refused)?;
    chmod(path, mode).map_err(refused)?;
    listen(&socket, BACKLOG).map_err(refused)?;
    Ok(Listener { socket, address, file: Some(file) })
}

/// Whether a server answers there; only a refused connection says that none does.
fn is_live(name: &SocketAddrUnix) -> rustix::io::Result<bool> {
    match connect(unix_socket()?, name) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        // A full queue has an owner.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

fn unix_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Locks the folder that `path` is in, so that two servers do not both find the path free.
fn lock_folder(path: &Path) -> Result<OwnedFd, ServerError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed =
        |errno: Errno| ServerError::Folder { folder: folder.to_owned(), source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let file = open(folder, flags, Mode::empty()).map_err(failed)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
}

fn open_tcp(address: &Address, host: &str, port: u16) -> Result<Listener, ServerError> {
    let listener =
        std::net::TcpListener::bind((host, port)).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ServerError::InUse { address: address.to_string() },
            _ => ServerError::Listen { address: address.to_string(), source },
        })?;
    let port = match listener.local_addr() {
        Ok(local) => local.port(),
        Err(source) => return Err(ServerError::Listen { address: address.to_string(), source }),
    };
    Ok(Listener { socket: listener.into(), address: Address::tcp(host, port), file: None })
}

#[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
fn open_inherited(number: i32) -> Result<Listener, ServerError> {
    let unfit = |reason: String| ServerError::Inherited { descriptor: number, reason };
    // SAFETY: the user who wrote the number into an address gave the descriptor away.
    let socket = unsafe { sys::take_inherited(number) };
    let socket = socket.map_err(|error| unfit(error.to_string()))?;
    match sockopt::socket_acceptconn(&socket) {
        Ok(true) => {}
        Ok(false) => return Err(unfit("it does not listen".to_owned())),
        Err(errno) => return Err(unfit(io::Error::from(errno).to_string())),
    }
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
        .map_err(ServerError::system("cannot mark the listener close-on-exec"))?;
    Ok(Listener { socket, address: Address::inherited(number), file: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_at(path: &Path) -> Result<Listener, ServerError> {
        Listener::open(&Address::unix(path).unwrap(), 0o600)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

        let live = open_at(&path).unwrap();
        assert!(matches!(open_at(&path), Err(ServerError::InUse { .. })));
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_successors_socketfile_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = open_at(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = open_at(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        let error = open_at(&path).unwrap_err();
        assert!(error.to_string().contains("exists and is no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

        let error = open_at(&folder.path().join("missing/s")).unwrap_err();
        assert!(matches!(&error, ServerError::Folder { .. }), "{error}");
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn thefile_has_the_mode_asked_for_whatever_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o666, 0o660] {
            let path = folder.path().join(format!("{mode:o}"));
            let _listener = Listener::open(&Address::unix(&path).unwrap(), mode).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn a_descriptor_that_does_not_listen_is_refused() {
        let error = Listener::open(&Address::inherited(99_999), 0o600).unwrap_err();
        assert!(matches!(error, ServerError::Inherited { .. }), "{error}");
    }
}
