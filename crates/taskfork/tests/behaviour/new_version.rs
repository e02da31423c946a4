//! Restarts after the program's file has been replaced.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use taskfork::Client;
use tokio::task::JoinHandle;

use crate::support::logged::Logged;
use crate::support::processes::{children, signal, stop};
use crate::support::{address_in, programs, trial, until};

/// A new version: it leaves a mark, and then is this program.
fn new_version(folder: &Path) -> PathBuf {
    let (file, this) = (folder.join("app.new"), std::env::current_exe().unwrap());
    let mark = folder.join("mark");
    let script = format!("#!/bin/sh\necho > {}\nexec {} \"$@\"\n", mark.display(), this.display());
    write_program(&file, &script);
    file
}

fn write_program(file: &Path, script: &str) {
    std::fs::write(file, script).unwrap();
    std::fs::set_permissions(file, PermissionsExt::from_mode(0o755)).unwrap();
}

/// The old version: a copy of this program, so that its file can be removed.
fn old_version(folder: &Path) -> PathBuf {
    let file = folder.join("app");
    std::fs::copy(std::env::current_exe().unwrap(), &file).unwrap();
    file
}

async fn serve(folder: &tempfile::TempDir, program: &Path) -> Logged {
    let arguments = ["serve_logged", &address_in(folder)];
    let command = programs::detached(programs::command_of(program, &arguments));
    Logged::start(folder.path(), command).await
}

/// A server that stays after its replacement, for as long as the call runs.
async fn serve_a_call_without_end(folder: &tempfile::TempDir) -> (Logged, JoinHandle<()>) {
    let server = serve(folder, &std::env::current_exe().unwrap()).await;
    let client = Client::builder().address(address_in(folder)).min_workers(0).max_workers(1);
    let client = client.build().unwrap();
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let call = checkout.call::<()>("hang", ());
    let call = tokio::spawn(async move {
        // The client stays as long as its call. The call ends with the test.
        let _ = (call.await, client);
    });
    server.is_busy().await;
    (server, call)
}

async fn works(folder: &tempfile::TempDir) {
    let client = Client::builder().address(address_in(folder)).build().unwrap();
    assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
}

trial!(a_file_that_was_replaced_takes_over, async || {
    let folder = tempfile::tempdir().unwrap();
    let app = old_version(folder.path());
    let server = serve(&folder, &app).await;
    std::fs::rename(new_version(folder.path()), &app).unwrap();
    server.restart().await;
    assert!(folder.path().join("mark").exists(), "the old version was started again");
    works(&folder).await;
});

trial!(a_link_that_was_changed_takes_over, async || {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    symlink(std::env::current_exe().unwrap(), &app).unwrap();
    let server = serve(&folder, &app).await;
    let next = folder.path().join("next");
    symlink(new_version(folder.path()), &next).unwrap();
    std::fs::rename(next, &app).unwrap();
    server.restart().await;
    assert!(folder.path().join("mark").exists(), "the old version was started again");
});

trial!(a_program_found_by_path_from_another_folder_is_found_again, async || {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    symlink(std::env::current_exe().unwrap(), &app).unwrap();
    let address = address_in(&folder);
    // A shell finds it by a relative entry of PATH, under a name that leads nowhere from the root.
    let mut command = programs::command_of(Path::new("sh"), &["serve_logged", &address]);
    command.args(["-c", "PATH=.:$PATH; exec app"]).current_dir(&folder);
    let server = Logged::start(folder.path(), programs::detached(command)).await;
    std::fs::rename(new_version(folder.path()), &app).unwrap();
    server.restart().await;
    assert!(folder.path().join("mark").exists(), "the old version was started again");
});

trial!(a_file_that_cannot_be_started_leaves_the_old_server, async || {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    symlink(std::env::current_exe().unwrap(), &app).unwrap();
    let server = serve(&folder, &app).await;
    let pid = server.server().unwrap();
    let fails = async |reason: &str| {
        signal(pid, libc::SIGHUP);
        server.logs(reason).await;
        // It tells of itself, and serves.
        until("the old server", || server.server() == Some(pid)).await;
        works(&folder).await;
    };

    std::fs::remove_file(&app).unwrap();
    fails(&format!("the program {} is missing: put it back", app.display())).await;
    std::fs::write(&app, "").unwrap();
    fails(&format!("the program {} is not executable", app.display())).await;
    // It is cut off in the middle of a copy.
    write_program(&app, "\u{7f}ELF");
    fails(&format!("cannot start {}", app.display())).await;

    std::fs::rename(new_version(folder.path()), &app).unwrap();
    server.restart().await;
    works(&folder).await;
});

trial!(a_program_that_is_no_server_leaves_the_old_one, async || {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    symlink(std::env::current_exe().unwrap(), &app).unwrap();
    let server = serve(&folder, &app).await;
    let pid = server.server().unwrap();

    let other = folder.path().join("other");
    write_program(&other, "#!/bin/sh\nexit 7\n");
    std::fs::rename(&other, &app).unwrap();
    signal(pid, libc::SIGHUP);
    server.logs("exited with status 7").await;
    until("the old server", || server.server() == Some(pid)).await;

    // One that never says that it is ready is replaced by the next.
    let started = folder.path().join("started");
    write_program(&other, &format!("#!/bin/sh\necho > {}\nsleep 1000\n", started.display()));
    std::fs::rename(&other, &app).unwrap();
    signal(pid, libc::SIGHUP);
    until("a program that never is ready", || started.exists()).await;
    std::fs::rename(new_version(folder.path()), &app).unwrap();
    signal(pid, libc::SIGHUP);
    server.takes_over_from(pid).await;
    server.logs("is not ready yet, and is replaced by another").await;
    works(&folder).await;
});

trial!(a_replaced_server_forwards_restart_requests, async || {
    let folder = tempfile::tempdir().unwrap();
    let (server, call) = serve_a_call_without_end(&folder).await;
    let first = server.server().unwrap();
    let mut servers = vec![first];
    for _ in 0..2 {
        signal(first, libc::SIGHUP);
        let is_new = |server: &u32| !servers.contains(server);
        until("a new server", || server.server().as_ref().is_some_and(is_new)).await;
        servers.push(server.server().unwrap());
    }
    call.abort();
});

trial!(a_request_that_precedes_the_report_of_a_new_server_is_forwarded_too, async || {
    let folder = tempfile::tempdir().unwrap();
    let (server, call) = serve_a_call_without_end(&folder).await;
    let first = server.server().unwrap();
    let workers = children(first);
    signal(first, libc::SIGHUP);
    // Stopped any earlier, it would not have started the new one.
    let started = || children(first).iter().any(|child| !workers.contains(child));
    until("a child beside the worker", started).await;
    // The first server finds this request and the new server's report at once.
    stop(first).await;
    signal(first, libc::SIGHUP);
    until("a new server", || server.server().is_some_and(|pid| pid != first)).await;
    let second = server.server().unwrap();
    signal(first, libc::SIGCONT);
    server.takes_over_from(second).await;
    call.abort();
});

trial!(the_reason_of_a_new_server_that_fails_is_told, async || {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("address");
    std::fs::write(&file, address_in(&folder)).unwrap();
    let option = format!("listen_in={}", file.display());
    let command = programs::detached(programs::command(&["serve_logged", "-", &option]));
    let server = Logged::start(folder.path(), command).await;
    let pid = server.server().unwrap();
    std::fs::write(&file, "nowhere").unwrap();
    signal(pid, libc::SIGHUP);
    server.logs("did not come up, this one goes on: `nowhere` is not an address").await;
    until("the old server", || server.server() == Some(pid)).await;
    works(&folder).await;
});

trial!(a_new_server_at_another_address_opens_it, async || {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("address");
    let first = folder.path().join("first");
    std::fs::write(&file, format!("unix:{}", first.display())).unwrap();
    let option = format!("listen_in={}", file.display());
    let command = programs::detached(programs::command(&["serve_logged", "-", &option]));
    let server = tokio::spawn({
        let folder = folder.path().to_owned();
        async move { Logged::start(&folder, command).await }
    });
    until("the server", || first.exists()).await;
    let mut status = None;
    until("its status", || {
        status = taskfork::server::ServerStatus::read(folder.path().join("first.status")).ok();
        status.is_some()
    })
    .await;
    let pid = status.unwrap().pid;
    std::fs::write(&file, address_in(&folder)).unwrap();
    signal(pid, libc::SIGHUP);
    let server = server.await.unwrap();
    works(&folder).await;
    assert_ne!(server.server(), Some(pid));
    until("the first socket's end", || !first.exists()).await;
});
