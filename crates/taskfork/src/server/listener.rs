//! The listening socket: opening it without replacing that of a running server, and removing its
//! file in the end.

use std::io;
use std::net::ToSocketAddrs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with, sockopt,
};
use rustix::process::{geteuid, umask};

use super::access::{Access, Origin};
use super::error::ServerError;
use super::socket_file::{Identity, LOCK_TIMEOUT, SocketFile, SocketPath};
use crate::address::{Address, AddressKind};
use crate::sys;

/// How many connections may wait to be accepted. The kernel lowers it to its own limit.
pub(super) const BACKLOG: i32 = 4096;

/// For how long a socket must accept connections before its path counts as that of a running server. A child that a
/// killed server was forking has the listener until it closes it or ends.
const LIVE_AFTER: Duration = Duration::from_millis(500);

/// A listening socket. When the process that made it drops it, its file is removed.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    address: Address,
    origin: Origin,
    file: Option<SocketFile>,
}

impl Listener {
    pub(crate) fn open(address: &Address, mode: u32, access: &Access) -> Result<Self, ServerError> {
        let listener = match &address.0 {
            AddressKind::Unix(path) => open_unix(path, mode, LOCK_TIMEOUT)?,
            AddressKind::Tcp { host, port } => open_tcp(address, host, *port, access)?,
            AddressKind::Inherited(number) => open_inherited(*number)?,
            _ => {
                let source = io::Error::from(io::ErrorKind::InvalidInput);
                return Err(ServerError::Listen { address: address.to_string(), source });
            }
        };
        if !matches!(address.0, AddressKind::Unix(_)) {
            // Accepted TCP connections inherit these options. They must not wait to fill packets,
            // and must end when the peer has vanished. Other kinds of sockets refuse them.
            let _ = sockopt::set_tcp_nodelay(&listener.socket, true);
            let _ = sockopt::set_socket_keepalive(&listener.socket, true);
        }
        rustix::io::ioctl_fionbio(&listener.socket, true)
            .map_err(ServerError::system("cannot make the listener non-blocking"))?;
        Ok(listener)
    }

    /// Takes over the socket of another server, and its file, which may be gone.
    pub(crate) fn adopt(socket: OwnedFd, address: &Address, file: Option<Identity>) -> Self {
        let file = match &address.0 {
            AddressKind::Unix(path) => file.map(|file| SocketFile::owned(path, file)),
            _ => None,
        };
        let origin = Origin::of(&socket);
        Self { socket, address: address.clone(), origin, file }
    }

    /// Leaves the file to another server: it is not removed here any more.
    pub(crate) fn disown_file(&mut self) {
        if let Some(file) = &mut self.file {
            file.disown();
        }
    }

    /// Binds a new unix socket after the file is gone. Does not wait for another server that starts
    /// or stops there.
    pub(crate) fn bind_again(path: &Path, mode: u32) -> Result<Self, ServerError> {
        open_unix(path, mode, Duration::ZERO)
    }

    /// The path of its file, if it is a unix socket that a server has bound.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.address.0 {
            AddressKind::Unix(path) => Some(path),
            _ => None,
        }
    }

    /// The identity of its file.
    pub(crate) fn file(&self) -> Option<Identity> {
        self.file.as_ref().map(SocketFile::identity)
    }

    /// Whether clients that connect to the path reach this socket.
    pub(crate) fn has_its_file(&self) -> bool {
        self.file.is_some() && self.path().and_then(Self::file_at) == self.file()
    }

    /// The identity of the file at this path.
    pub(crate) fn file_at(path: &Path) -> Option<Identity> {
        SocketPath::open(path).ok()?.stat().ok().map(|file| Identity::of(&file))
    }

    /// The address, with the port that the kernel has chosen.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Through which kind of socket clients connect.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Accepts the next connection.
    pub(crate) fn accept(&self) -> rustix::io::Result<OwnedFd> {
        accept_with(&self.socket, SocketFlags::CLOEXEC)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open_unix(path: &Path, mode: u32, lock_within: Duration) -> Result<Listener, ServerError> {
    let address = Address(AddressKind::Unix(path.to_owned()));
    let refused =
        |errno: Errno| ServerError::Listen { address: address.to_string(), source: errno.into() };
    let name = SocketAddrUnix::new(path).map_err(refused)?;
    let socket_path = SocketPath::open(path)?;
    let _lock = socket_path.lock(lock_within)?;
    match socket_path.stat() {
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(refused(errno)),
        Ok(file) if FileType::from_raw_mode(file.st_mode) != FileType::Socket => {
            return Err(ServerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) if stays_live(&name, lock_within.min(LIVE_AFTER)).map_err(refused)? => {
            return Err(ServerError::InUse { address: address.to_string() });
        }
        Ok(file) if file.st_uid != geteuid().as_raw() => {
            return Err(ServerError::Foreign { path: path.to_owned(), user: file.st_uid });
        }
        Ok(_) => socket_path.remove().map_err(refused)?,
    }
    let socket = unix_socket().map_err(refused)?;
    let mode = Mode::from_raw_mode(mode & 0o777);
    // The file gets the mode of the socket, less the umask. So it never has more permissions than
    // in the end, and no call uses its path, which may lead elsewhere by then.
    fchmod(&socket, mode).map_err(refused)?;
    let before = umask(Mode::from_raw_mode(0o777) - mode);
    let bound = bind(&socket, &name);
    umask(before);
    bound.map_err(refused)?;
    let file = socket_path.bound().map_err(refused)?;
    listen(&socket, BACKLOG).map_err(refused)?;
    Ok(Listener { socket, address, origin: Origin::Local, file: Some(file) })
}

/// Whether a socket listens at the path now and for `time`.
fn stays_live(name: &SocketAddrUnix, time: Duration) -> rustix::io::Result<bool> {
    let (end, mut pause) = (Instant::now() + time, Duration::from_millis(5));
    while is_live(name)? {
        let now = Instant::now();
        if now >= end {
            return Ok(true);
        }
        std::thread::sleep(pause.min(end - now));
        pause *= 2;
    }
    Ok(false)
}

/// Whether a socket listens at the path. Only a refused connection proves that none does.
fn is_live(name: &SocketAddrUnix) -> rustix::io::Result<bool> {
    match connect(unix_socket()?, name) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        // A socket with a full queue listens too.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

fn unix_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn open_tcp(
    address: &Address,
    host: &str,
    port: u16,
    access: &Access,
) -> Result<Listener, ServerError> {
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ServerError::InUse { address: address.to_string() },
        _ => ServerError::Listen { address: address.to_string(), source },
    };
    let resolved: Vec<_> = (host, port).to_socket_addrs().map_err(refused)?.collect();
    for &one in &resolved {
        access.check_address(one, address)?;
    }
    let listener = std::net::TcpListener::bind(&resolved[..]).map_err(refused)?;
    // The standard library sets a small backlog, and the kernel drops connections beyond it.
    listen(&listener, BACKLOG)
        .map_err(ServerError::system("cannot have more connections wait to be accepted"))?;
    let port = match listener.local_addr() {
        Ok(local) => local.port(),
        Err(source) => return Err(ServerError::Listen { address: address.to_string(), source }),
    };
    let (address, origin) = (Address::tcp(host, port), Origin::Network);
    Ok(Listener { socket: listener.into(), address, origin, file: None })
}

#[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
fn open_inherited(number: i32) -> Result<Listener, ServerError> {
    let unfit = |source: io::Error| ServerError::Inherited { descriptor: number, source };
    // SAFETY: the user has given the descriptor away by writing its number into an address.
    let socket = unsafe { sys::take_inherited(number) };
    let socket = socket.map_err(unfit)?;
    match sockopt::socket_acceptconn(&socket) {
        Ok(true) => {}
        Ok(false) => {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it does not listen");
            return Err(unfit(source));
        }
        Err(errno) => return Err(unfit(errno.into())),
    }
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
        .map_err(ServerError::system("cannot mark the listener close-on-exec"))?;
    let (address, origin) = (Address::inherited(number), Origin::of(&socket));
    Ok(Listener { socket, address, origin, file: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::socket_file::without_locks;

    /// The umask belongs to the process, and tests run in threads.
    static UMASK: std::sync::Mutex<()> = std::sync::Mutex::new(());

    fn open_with(path: &Path, mode: u32) -> Result<Listener, ServerError> {
        let _alone = UMASK.lock();
        Listener::open(&Address::unix(path).unwrap(), mode, &Access::default())
    }

    fn open_at(path: &Path) -> Result<Listener, ServerError> {
        open_with(path, 0o600)
    }

    #[test]
    fn a_server_starts_and_stops_on_a_file_system_without_locks() {
        let names = |folder: &tempfile::TempDir| std::fs::read_dir(folder.path()).unwrap().count();
        for errno in [Errno::OPNOTSUPP, Errno::NOLCK, Errno::NOSYS, Errno::INVAL] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s");
            // A server that was killed has left its socket.
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            without_locks::run(errno, || {
                let listener = open_at(&path).unwrap();
                assert_eq!(names(&folder), 1, "the lock file is left");
                std::os::unix::net::UnixStream::connect(&path).unwrap();
                assert!(matches!(open_at(&path), Err(ServerError::InUse { .. })));
                drop(listener);
                assert_eq!(names(&folder), 0);
            });
        }
        // Another error could mean that the lock is held.
        let folder = tempfile::tempdir().unwrap();
        let opened = without_locks::run(Errno::IO, || open_at(&folder.path().join("s")));
        assert!(matches!(opened, Err(ServerError::Lock { .. })));
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
    fn a_process_that_a_killed_server_leaves_for_a_moment_is_no_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let left = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let opened = std::thread::scope(|scope| {
            // It ends once its socket has been tried.
            scope.spawn(move || drop((left.accept(), left)));
            open_at(&path)
        });
        opened.unwrap();
    }

    #[test]
    fn the_file_of_a_successor_is_left_alone() {
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
    fn the_file_has_the_mode_asked_for_whatever_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o666, 0o660] {
            let path = folder.path().join(format!("{mode:o}"));
            let _listener = open_with(&path, mode).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn a_link_that_is_placed_in_a_race_is_not_followed() {
        use std::os::unix::fs::PermissionsExt;
        use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("s"), folder.path().join("precious"));
        std::fs::write(&target, "precious").unwrap();
        std::fs::set_permissions(&target, PermissionsExt::from_mode(0o600)).unwrap();
        let is_over = AtomicBool::new(false);
        let opened = std::thread::scope(|scope| {
            // A link replaces whatever is there, and is removed for the next socket.
            scope.spawn(|| {
                let link = folder.path().join("link");
                while !is_over.load(SeqCst) {
                    let _ = std::os::unix::fs::symlink(&target, &link);
                    let _ = std::fs::rename(&link, &path);
                    let _ = std::fs::remove_file(&path);
                }
            });
            // Most attempts find a link in the way, or in place of the bound socket.
            let opened = (0..5000).filter(|_| open_with(&path, 0o666).is_ok()).count();
            is_over.store(true, SeqCst);
            opened
        });
        assert!(opened > 0);
        let mode = std::fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn a_stale_socket_of_another_user_is_left_alone() {
        if !geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        std::os::unix::fs::lchown(&path, Some(65_534), None).unwrap();
        let error = open_at(&path).unwrap_err();
        assert!(matches!(error, ServerError::Foreign { user: 65_534, .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn a_descriptor_that_does_not_listen_is_refused() {
        let error =
            Listener::open(&Address::inherited(99_999), 0o600, &Access::default()).unwrap_err();
        assert!(matches!(error, ServerError::Inherited { .. }), "{error}");
    }
}
