//! Servers whose sockets a service manager has opened.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use taskfork::Client;

use crate::restart::activated_as;
use crate::support::logged::Logged;
use crate::support::processes::signal;
use crate::support::{address_in, programs, trial, until};

/// A server that a service manager has started, with its runtime directory.
struct Activated {
    server: Logged,
    /// The service manager's own.
    _socket: UnixListener,
}

impl Activated {
    async fn start(
        folder: &tempfile::TempDir,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let socket = UnixListener::bind(folder.path().join("s")).unwrap();
        let mut command = activated_as(arguments, &socket, variables);
        command.env("RUNTIME_DIRECTORY", folder.path());
        // The status socket has the name of the server, and is known to the test by another.
        symlink("taskfork.status", folder.path().join("s.status")).unwrap();
        let server = Logged::start(folder.path(), programs::detached(command)).await;
        Self { server, _socket: socket }
    }
}

fn client(folder: &tempfile::TempDir) -> Client {
    Client::builder().address(address_in(folder)).min_workers(0).max_workers(1).build().unwrap()
}

trial!(a_restart_keeps_the_service_managers_socket, async || {
    let folder = tempfile::tempdir().unwrap();
    let service = Activated::start(&folder, &["serve_logged", "-"], &[]).await;
    let server = &service.server;
    for _ in 0..3 {
        server.restart().await;
        assert_eq!(client(&folder).call::<i64>("add", (2, 3)).await.unwrap(), 5);
    }
    assert!(!server.log().contains("no address"), "{}", server.log());
    // The socket's file is the service manager's.
    let pid = server.server().unwrap();
    signal(pid, libc::SIGTERM);
    until("the server's end", || server.server().is_none()).await;
    assert!(folder.path().join("s").exists());
});

trial!(a_restart_that_keeps_the_pid_keeps_the_socket_too, async || {
    let folder = tempfile::tempdir().unwrap();
    let service = Activated::start(&folder, &["serve_logged", "-", "keep_pid"], &[]).await;
    let server = service.server;
    for _ in 0..2 {
        assert_ne!(server.restart().await, server.pid());
        assert_eq!(client(&folder).call::<i64>("add", (2, 3)).await.unwrap(), 5);
    }
    signal(server.pid(), libc::SIGTERM);
    assert!(server.end().await.success());
});

trial!(a_status_socket_is_in_the_runtime_directory, async || {
    let folder = tempfile::tempdir().unwrap();
    let service = Activated::start(&folder, &["serve_logged", "-"], &[]).await;
    let server = &service.server;
    let path = folder.path().join("taskfork.status");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    server.logs(&format!("the status socket is {}", path.display())).await;
    // It goes with the server.
    signal(server.server().unwrap(), libc::SIGTERM);
    until("the end of the status socket", || !path.exists()).await;
});

trial!(a_removed_status_socket_in_the_runtime_directory_is_bound_again, async || {
    let folder = tempfile::tempdir().unwrap();
    let service = Activated::start(&folder, &["serve_logged", "-"], &[]).await;
    let server = &service.server;
    let path = folder.path().join("taskfork.status");
    let pid = server.server().unwrap();
    for _ in 0..2 {
        std::fs::remove_file(&path).unwrap();
        until("the status", || server.server() == Some(pid)).await;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
});

const VARIABLES: [&str; 6] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// A service manager that hears of its service.
fn manager(folder: &Path) -> (UnixDatagram, String) {
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (socket, path.display().to_string())
}

fn hear(manager: &UnixDatagram, wanted: &str) -> String {
    loop {
        let mut message = [0; 500];
        let length = manager.recv(&mut message).unwrap();
        let message = String::from_utf8_lossy(&message[..length]).into_owned();
        if message.contains(wanted) {
            return message;
        }
    }
}

trial!(workers_have_none_of_the_variables, async || {
    let folder = tempfile::tempdir().unwrap();
    let (manager, path) = manager(folder.path());
    let variables =
        [("NOTIFY_SOCKET", &*path), ("WATCHDOG_USEC", "60000000"), ("LISTEN_FDNAMES", "app")];
    let service = Activated::start(&folder, &["serve_logged", "-"], &variables).await;
    let server = &service.server;
    for _ in 0..2 {
        let has: Vec<String> = client(&folder).call("variables", ()).await.unwrap();
        assert!(has.iter().any(|name| name == "RUNTIME_DIRECTORY"), "{has:?}");
        let left: Vec<_> = has.iter().filter(|name| VARIABLES.contains(&&***name)).collect();
        assert!(left.is_empty(), "{left:?}");
        // The server has them, and so does the next one.
        let pid = server.server().unwrap();
        let ready = hear(&manager, "READY=1");
        assert!(ready.contains(&format!("MAINPID={pid}")), "{ready}");
        server.restart().await;
    }
});

trial!(programs_as_workers_have_none_of_the_variables, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_manager, path) = manager(folder.path());
    let address = address_in(&folder);
    let mut command = programs::command(&["serve_executable", &address]);
    command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "60000000").env("LISTEN_FDS", "1");
    let _server = Logged::start(folder.path(), programs::detached(command)).await;
    let has: Vec<String> = client(&folder).call("variables", ()).await.unwrap();
    let left: Vec<_> = has.iter().filter(|name| VARIABLES.contains(&&***name)).collect();
    assert!(left.is_empty(), "{left:?}");
});

trial!(a_new_server_has_the_watchdog_of_the_one_before, async || {
    let folder = tempfile::tempdir().unwrap();
    let (manager, path) = manager(folder.path());
    let address = address_in(&folder);
    let template = programs::command(&["serve_logged", &address]);
    // As systemd does, the variable names the process.
    let mut command = Command::new("sh");
    command.args(["-c", "export WATCHDOG_PID=$$; exec \"$0\""]).arg(template.get_program());
    for (name, value) in template.get_envs() {
        command.env(name, value.unwrap());
    }
    command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "100000");
    let server = Logged::start(folder.path(), programs::detached(command)).await;
    hear(&manager, "WATCHDOG=1");
    server.restart().await;
    // What the first one has sent comes before this.
    manager.set_nonblocking(true).unwrap();
    while manager.recv(&mut [0; 500]).is_ok() {}
    manager.set_nonblocking(false).unwrap();
    hear(&manager, "WATCHDOG=1");
});
