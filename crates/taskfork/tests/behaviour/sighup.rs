//! SIGHUP: terminals that close, `nohup`, and restarts.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use taskfork::Client;

use crate::support::logged::Logged;
use crate::support::processes::{is_gone, signal};
use crate::support::{address_in, programs, trial, until};

/// A terminal; it is closed when the first of these is dropped.
fn terminal() -> (File, File) {
    let (mut ours, mut theirs) = (0, 0);
    let nothing = std::ptr::null_mut();
    // SAFETY: it writes two numbers, and gives two descriptors that nobody else owns.
    #[allow(unsafe_code)]
    unsafe {
        let made =
            libc::openpty(&raw mut ours, &raw mut theirs, nothing, nothing.cast(), nothing.cast());
        assert_eq!(made, 0);
        for descriptor in [ours, theirs] {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        (File::from_raw_fd(ours), File::from_raw_fd(theirs))
    }
}

/// Starts a program as the foreground program of a terminal.
fn in_terminal(mut command: Command, terminal: &File) -> Command {
    let number = terminal.as_raw_fd();
    // SAFETY: it makes system calls only.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() == -1 || libc::ioctl(number, libc::TIOCSCTTY, 0) == -1 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command
}

trial!(a_terminal_that_closes_ends_the_server, async || {
    ends_with_its_terminal(&[]).await;
});

trial!(a_terminal_that_closes_ends_a_server_that_keeps_its_pid, async || {
    ends_with_its_terminal(&["keep_pid"]).await;
});

async fn ends_with_its_terminal(options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = terminal();
    let address = address_in(&folder);
    let arguments = [&["serve_logged", &*address], options].concat();
    let command = in_terminal(programs::command(&arguments), &theirs);
    let server = Logged::start(folder.path(), command).await;
    drop(theirs);
    // A call that runs is finished.
    let client = Client::builder().address(&address).min_workers(0).max_workers(1).build().unwrap();
    client.call::<()>("nothing", ()).await.unwrap();
    let checkout = client.checkout();
    let call = checkout.call::<()>("sleep", (500,));
    let running = tokio::spawn(call);
    server.is_busy().await;
    let serving = server.server().unwrap();
    drop(ours);
    running.await.unwrap().unwrap();
    drop(checkout);
    drop(client);
    server.logs("SIGHUP ends a server that has a controlling terminal").await;
    until("the server's end", || is_gone(serving)).await;
    assert!(!server.log().contains("as a new server"), "{}", server.log());
    let status = server.end().await;
    assert!(status.success(), "{status}");
    assert!(!folder.path().join("s").exists());
}

trial!(a_server_with_a_terminal_restarts_if_an_option_says_so, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_ours, theirs) = terminal();
    let template = programs::command(&["serve_logged", &address_in(&folder), "restart"]);
    // The end of a session's first process signals the others as well, so that is a shell.
    let mut command = Command::new("sh");
    command.args(["-c", "\"$0\"; exec sleep 1000"]).arg(template.get_program());
    for (name, value) in template.get_envs() {
        command.env(name, value.unwrap());
    }
    let server = Logged::start(folder.path(), in_terminal(command, &theirs)).await;
    let first = server.server().unwrap();
    signal(first, libc::SIGHUP);
    server.takes_over_from(first).await;
});

trial!(a_server_under_nohup_outlives_its_terminal_with_its_calls, async || {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = terminal();
    let address = address_in(&folder);
    let template = programs::command(&["serve_logged", &address, "grace=50"]);
    let mut command = Command::new("nohup");
    command.arg(template.get_program()).stdin(std::process::Stdio::null());
    for (name, value) in template.get_envs() {
        command.env(name, value.unwrap());
    }
    let server = Logged::start(folder.path(), in_terminal(command, &theirs)).await;
    drop(theirs);
    let client = Client::builder().address(&address).min_workers(0).max_workers(1).build().unwrap();
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let running = tokio::spawn(checkout.call::<()>("sleep", (1000,)));
    server.is_busy().await;
    let pid = server.server().unwrap();
    drop(ours);
    // And once more, as a shell does.
    signal(pid, libc::SIGHUP);
    running.await.unwrap().unwrap();
    assert_eq!(server.server(), Some(pid));
    assert!(server.log().contains("SIGHUP is ignored"), "{}", server.log());
});
