//! Processes that lose their parents and become children of the server, as process 1 of a container and elsewhere.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use taskfork::{Client, Server};

use crate::support::processes::{Program, all_children, command_line, is_alive, is_gone, signal};
use crate::support::{address_in, programs, trial, until};

/// A server in a program whose child starts a process and ends, once there is a file in the folder.
pub(crate) fn serve(folder: &str, address: &str) {
    let script = "until [ -e go ]; do sleep 0.01; done; sleep 1000 & echo $! > new; mv new pid";
    let mut child = Command::new("sh").args(["-c", script]).current_dir(folder).spawn().unwrap();
    crate::support::servers::serve(Server::builder().listen(address)).unwrap();
    child.wait().unwrap();
}

fn client(folder: &tempfile::TempDir) -> Client {
    Client::builder().address(address_in(folder)).max_workers(1).build().unwrap()
}

/// Has workers die, and what they have left running with them.
async fn workers_die(client: &Client) {
    for _ in 0..3 {
        let checkout = client.checkout();
        let left: Vec<u32> = checkout.call("start_daemons", ()).await.unwrap();
        assert_eq!(left.len(), 2);
        checkout.call::<()>("abort", ()).await.unwrap_err();
    }
    // A death of a worker has been seen to when another one has the connection.
    client.call::<()>("nothing", ()).await.unwrap();
}

trial!(a_process_that_is_no_workers_lives_on_and_is_reaped, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let program = programs::start(&["serve_with_an_orphan", &path, &address_in(&folder)]);
    let client = client(&folder);
    client.call::<()>("nothing", ()).await.unwrap();
    std::fs::write(folder.path().join("go"), "").unwrap();
    let mut orphan = 0;
    until("the orphan", || {
        let text = std::fs::read_to_string(folder.path().join("pid")).unwrap_or_default();
        orphan = text.trim().parse().unwrap_or_default();
        all_children(program.pid()).contains(&orphan)
    })
    .await;
    workers_die(&client).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!is_gone(orphan));
    signal(orphan, libc::SIGKILL);
    until("the orphan is reaped", || !is_alive(orphan)).await;
    drop(client);
    signal(program.pid(), libc::SIGTERM);
    assert!(program.end().await.success());
});

trial!(a_process_of_a_worker_that_has_removed_its_mark_dies_too, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = programs::start(&["serve", &address_in(&folder)]);
    let client = client(&folder);
    let checkout = client.checkout();
    let hidden: u32 = checkout.call("fork_hidden_daemon", ()).await.unwrap();
    until("its own session", || {
        let stat = std::fs::read_to_string(format!("/proc/{hidden}/stat")).unwrap();
        stat.split_whitespace().nth(5) == Some(&hidden.to_string())
    })
    .await;
    checkout.call::<()>("abort", ()).await.unwrap_err();
    until("the hidden process is gone", || is_gone(hidden)).await;
    drop(server);
});

/// Runs the program in a namespace of processes of its own, as process 1.
fn contained(command: &Command) -> Command {
    let mut contained = Command::new("unshare");
    contained.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    contained.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        contained.env(name, value.unwrap());
    }
    contained.stdin(Stdio::null());
    contained
}

trial!(process_1_of_a_container_kills_what_its_workers_started_only, async || {
    let tried = contained(&Command::new("true")).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        eprintln!("not tried: no namespace of processes can be made here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = programs::command(&["serve", &address_in(&folder)]);
    let program = Program::new(contained(&server).spawn().unwrap());
    let client = client(&folder);
    // The server is process 1. It forks its guardian before this worker, unless the client has connected before.
    let worker = client.call::<u32>("pid", ()).await.unwrap();
    assert!([2, 3].contains(&worker), "{worker}");
    let init = all_children(program.pid())[0];
    // As `docker exec` does.
    let (target, script) = (format!("--target={init}"), "sleep 1000 >/dev/null 2>&1 &");
    let mut entered = Command::new("nsenter");
    let entered = entered.args([&target, "--pid", "--mount", "sh", "-c", script]).status().unwrap();
    assert!(entered.success());
    let sleeps = || {
        let children = all_children(init).into_iter();
        children.filter(|&pid| command_line(pid) == "sleep 1000").collect::<Vec<u32>>()
    };
    until("the orphan", || sleeps().len() == 1).await;
    let orphan = sleeps()[0];
    workers_die(&client).await;
    until("all that workers have left is gone", || sleeps() == [orphan]).await;
    assert!(!is_gone(orphan));
    signal(orphan, libc::SIGKILL);
    until("the orphan is reaped", || !Path::new(&format!("/proc/{orphan}")).exists()).await;
    drop(client);
    signal(init, libc::SIGTERM);
    assert!(program.end().await.success());
});
