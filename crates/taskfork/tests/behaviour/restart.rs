//! New servers that take over from old ones, and service managers.

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use taskfork::Client;
use taskfork::server::ServerStatus;

use crate::support::logged::Logged;
use crate::support::processes::{Program, children, is_gone, signal};
use crate::support::{address_in, programs, trial, until};

/// Ends a server that is no child of this process.
struct Server(u32);

impl Drop for Server {
    fn drop(&mut self) {
        signal_if_there(self.0);
    }
}

fn signal_if_there(pid: u32) {
    if !is_gone(pid) {
        signal(pid, libc::SIGKILL);
    }
}

/// Calls without a pause; gives how many calls were answered once it is told to stop.
fn load(client: &Client, stop: &Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<u64>> {
    let one = |number: i64| {
        let (client, stop) = (client.clone(), stop.clone());
        tokio::spawn(async move {
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) {
                let checkout = client.checkout();
                for _ in 0..3 {
                    assert_eq!(checkout.call::<i64>("add", (number, 1)).await.unwrap(), number + 1);
                    answered += 1;
                }
            }
            answered
        })
    };
    (0..6).map(one).collect()
}

fn server_at(folder: &Path) -> Option<u32> {
    ServerStatus::read(folder.join("s.status")).ok().map(|status| status.pid)
}

trial!(a_new_server_takes_over_without_a_failed_call, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let program = programs::start_detached(&["serve", &address]);
    let client = Client::builder().address(&address).max_workers(4).build().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let callers = load(&client, &stop);
    let mut server = Server(program.pid());
    until("the server", || server_at(folder.path()) == Some(server.0)).await;
    for _ in 0..3 {
        let before = server.0;
        signal(before, libc::SIGHUP);
        until("the next server", || {
            server_at(folder.path()).is_some_and(|pid| pid != before && is_gone(before))
        })
        .await;
        server = Server(server_at(folder.path()).unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    // The last one takes its files with it.
    drop(client);
    signal(server.0, libc::SIGTERM);
    until("the last server is gone", || is_gone(server.0)).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
});

trial!(a_new_server_that_does_not_come_up_leaves_the_old_one, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let flag = folder.path().join("flag");
    let program = programs::start_detached(&["serve_once", &flag.display().to_string(), &address]);
    let client = Client::builder().address(&address).max_workers(1).build().unwrap();
    let first: u32 = client.call("pid", ()).await.unwrap();
    signal(program.pid(), libc::SIGHUP);
    for _ in 0..20 {
        assert_eq!(client.call::<u32>("pid", ()).await.unwrap(), first);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let another = Client::builder().address(&address).build().unwrap();
    assert_ne!(another.call::<u32>("pid", ()).await.unwrap(), first);
    assert!(!is_gone(program.pid()));
    // It tells of itself again, and has buried the one that failed.
    until("the server's own status", || server_at(folder.path()) == Some(program.pid())).await;
    until("no corpse", || children(program.pid()).into_iter().all(|pid| !is_gone(pid))).await;
});

trial!(a_new_server_with_a_wrong_option_says_so_to_the_old_one, async || {
    let folder = tempfile::tempdir().unwrap();
    let most = folder.path().join("most");
    std::fs::write(&most, "2").unwrap();
    for keep_pid in [&[][..], &["keep_pid"]] {
        let option = format!("max_workers_in={}", most.display());
        let (address, options) = (address_in(&folder), [&option, "restart"]);
        let arguments = [&["serve_logged", &*address], &options[..], keep_pid].concat();
        let server =
            Logged::start(folder.path(), programs::detached(programs::command(&arguments))).await;
        let before = server.server().unwrap();
        std::fs::write(&most, "0").unwrap();
        signal(server.pid(), libc::SIGHUP);
        server.logs("did not come up, this one goes on: the option `max_workers`").await;
        until("the status", || server.server() == Some(before)).await;
        // With a right one it takes over.
        std::fs::write(&most, "2").unwrap();
        let next = server.restart().await;
        signal(if keep_pid.is_empty() { next } else { server.pid() }, libc::SIGTERM);
        until("its end", || is_gone(next) && !folder.path().join("s").exists()).await;
    }
});

/// A server that finds its socket as systemd passes it.
fn activated(listener: &UnixListener, variables: &[(&str, &str)]) -> Program {
    Program::new(activated_as(&["serve_activated"], listener, variables).spawn().unwrap())
}

/// The same for any test program.
pub(crate) fn activated_as(
    arguments: &[&str],
    listener: &UnixListener,
    variables: &[(&str, &str)],
) -> Command {
    let template = programs::command(arguments);
    // The process that the descriptor is meant for is named in the environment.
    let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(template.get_program());
    for (name, value) in template.get_envs() {
        command.env(name, value.unwrap());
    }
    command.envs(variables.iter().copied()).stdin(std::process::Stdio::null());
    let socket = listener.as_raw_fd();
    // SAFETY: it makes one system call, on a descriptor that is open.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || match libc::dup2(socket, 3) {
            3 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

trial!(a_service_managers_socket_outlives_servers_without_a_failed_call, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let mut program = activated(&listener, &[]);
    let client = Client::builder().address(address_in(&folder)).max_workers(4).build().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let callers = load(&client, &stop);
    for _ in 0..3 {
        client.call::<()>("nothing", ()).await.unwrap();
        let next = activated(&listener, &[]);
        signal(program.pid(), libc::SIGTERM);
        until("the old server is gone", || is_gone(program.pid())).await;
        program = next;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    drop(program);
    assert!(folder.path().join("s").exists(), "the socket's file is the service manager's");
});

trial!(a_service_manager_hears_how_the_server_is, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "100000")];
    let program = activated(&listener, &variables);
    let heard = |wanted: &str| loop {
        let mut message = [0; 500];
        let length = manager.recv(&mut message).unwrap();
        let message = String::from_utf8_lossy(&message[..length]).into_owned();
        if message.contains(wanted) {
            return message;
        }
    };
    let ready = heard("READY=1");
    assert!(ready.contains(&format!("MAINPID={}", program.pid())), "{ready}");
    for _ in 0..3 {
        heard("WATCHDOG=1");
    }
    signal(program.pid(), libc::SIGTERM);
    heard("STOPPING=1");
});
