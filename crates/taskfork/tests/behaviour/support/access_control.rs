//! A server whose access a test restricts, in a process of its own, and peers of other users.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use taskfork::client::Protocol;
use taskfork::server::ServerStatus;
use taskfork::worker::{Peer, context};
use taskfork::{BoxError, Methods, Server, ServerBuilder, ServerError};

use super::processes::Program;
use super::{address_in, programs, servers, until};

/// The test program that is the server. `KEY=VALUE` sets one option.
pub(crate) fn serve(address: &str, options: &[&str]) -> Result<(), ServerError> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let mut server = Server::builder().listen(address);
    let (mut set_up, mut fails) = (None, false);
    for option in options {
        let (key, value) = option.split_once('=').unwrap();
        let time = || Duration::from_millis(value.parse().unwrap());
        server = match key {
            "handshake_timeout" => server.handshake_timeout(time()),
            "max_handshakes" => server.max_handshakes(value.parse().unwrap()),
            "max_workers" => server.max_workers(value.parse().unwrap()),
            "spare_workers" => server.spare_workers(value.parse().unwrap()),
            "allow_users" => server.allow_users(value.split(',')),
            "allow_groups" => server.allow_groups(value.split(',')),
            "mode" => server.socket_mode(u32::from_str_radix(value, 8).unwrap()),
            "status" => server.status_socket(PathBuf::from(value)),
            "gateway_user" => server.gateway_user(value),
            "network" => server.allow_unauthenticated_network(value == "true"),
            "share_details" => server.share_details(value == "true"),
            "protocols" => server.protocols(value.split(',').map(|name| match name {
                "json" => Protocol::Perl,
                _ => Protocol::Native,
            })),
            "set_up" => {
                set_up = Some(value.to_owned());
                server
            }
            "setup_fails" => {
                fails = true;
                server
            }
            other => panic!("no such option: {other}"),
        };
    }
    let done = move || {
        use std::io::Write;
        if let Some(file) = &set_up {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file)?;
            writeln!(file, "{}", std::process::id())?;
        }
        match fails {
            true => Err("cannot open /secret/file".into()),
            false => Ok::<_, BoxError>(servers::Worker::default()),
        }
    };
    let methods: Methods<servers::Worker> = servers::methods();
    server.setup(done).interface(methods.function("peer", peer)).run()
}

/// A server that a test has started itself, with the same method.
pub(crate) fn spawned(server: ServerBuilder) -> Result<(), ServerError> {
    server.interface(Methods::new().function("peer", peer)).run()
}

/// A worker's peer, and its address.
pub(crate) type Seen = (Option<Peer>, Option<String>);

fn peer() -> Result<Seen, BoxError> {
    let address = context().peer_address();
    Ok((context().peer(), address.map(|address| address.ip().to_string())))
}

/// In a worker: the process that has connected to it.
pub(crate) fn peer_pid() -> Option<u32> {
    match context().peer() {
        Some(Peer::Process { pid, .. }) => Some(pid),
        _ => None,
    }
}

/// Such a server, with what it logs, and how often `setup` has run.
pub(crate) struct Guarded {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) program: Program,
}

impl Guarded {
    /// At a unix socket.
    pub(crate) async fn start(options: &[&str]) -> Self {
        Self::start_with(options, |command| command).await
    }

    /// At a unix socket, started by the command that `wrap` makes of the usual one.
    pub(crate) async fn start_with(options: &[&str], wrap: impl Fn(Command) -> Command) -> Self {
        let folder = Self::folder();
        let address = address_in(&folder);
        Self::start_at(folder, &address, options, wrap).await
    }

    /// At a port of the loopback interface; gives it as well.
    pub(crate) async fn start_tcp(options: &[&str]) -> (Self, u16) {
        // The kernel does not give this port to another socket soon.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let address = format!("tcp:127.0.0.1:{port}");
        (Self::start_at(Self::folder(), &address, options, |command| command).await, port)
    }

    fn folder() -> tempfile::TempDir {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        folder
    }

    async fn start_at(
        folder: tempfile::TempDir,
        address: &str,
        options: &[&str],
        wrap: impl Fn(Command) -> Command,
    ) -> Self {
        let status = format!("status={}", folder.path().join("s.status").display());
        let set_up = format!("set_up={}", folder.path().join("set_up").display());
        let arguments = [&["serve_guarded", address, &status, &set_up], options].concat();
        let mut command = wrap(programs::command(&arguments));
        command.stderr(std::fs::File::create(folder.path().join("log")).unwrap());
        let program = Program::new(command.spawn().unwrap());
        let server = Self { folder, program };
        until("the server", || ServerStatus::read(server.status_path()).is_ok()).await;
        server
    }

    fn status_path(&self) -> PathBuf {
        self.folder.path().join("s.status")
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn address(&self) -> String {
        address_in(&self.folder)
    }

    pub(crate) fn status(&self) -> ServerStatus {
        ServerStatus::read(self.status_path()).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn set_ups(&self) -> usize {
        count_lines(&self.folder.path().join("set_up"))
    }

    /// Waits until this many connections are in their handshakes.
    pub(crate) async fn until_waiting(&self, connections: usize) {
        until("connections that wait", || self.status().handshakes == connections).await;
    }

    /// No worker has been forked, so that nothing was set up either.
    pub(crate) fn assert_untouched(&self) {
        assert_eq!((self.status().forked, self.set_ups()), (0, 0), "{}", self.log());
    }
}

fn count_lines(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

/// What `run` gives in a thread with this user, group, and these further groups. For tests of root.
pub(crate) async fn as_user<T: Send + 'static>(
    user: u32,
    group: u32,
    groups: &'static [u32],
    run: impl FnOnce() -> T + Send + 'static,
) -> T {
    let thread = move || {
        // SAFETY: the system calls themselves are about the calling thread alone, which ends with this.
        #[allow(unsafe_code)]
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, group, group, group), 0);
            // Of the user only what counts, so that the thread can still be signalled.
            assert_eq!(libc::syscall(libc::SYS_setresuid, -1, user, -1), 0);
        }
        run()
    };
    tokio::task::spawn_blocking(move || std::thread::spawn(thread).join().unwrap()).await.unwrap()
}

/// What an `async` block gives, in a runtime of this thread alone.
pub(crate) fn block_on<T>(run: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run)
}
