//! Servers whose process id outlives restarts.

use taskfork::Client;

use crate::support::logged::Logged;
use crate::support::processes::{Program, all_children, command_line, is_gone, signal};
use crate::support::{address_in, programs, trial, until};

async fn serve(folder: &tempfile::TempDir, options: &[&str]) -> Logged {
    let address = address_in(folder);
    let arguments = [&["serve_logged", &*address, "keep_pid"], options].concat();
    Logged::start(folder.path(), programs::detached(programs::command(&arguments))).await
}

fn client(folder: &tempfile::TempDir) -> Client {
    Client::builder().address(address_in(folder)).min_workers(0).max_workers(1).build().unwrap()
}

trial!(restarts_keep_the_pid_without_a_failed_call, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&folder, &[]).await;
    let client = client(&folder);
    let calls = tokio::spawn({
        let client = client.clone();
        async move {
            for number in 0..2000 {
                let sum: i64 = client.call("add", (number, 1)).await.unwrap();
                assert_eq!(sum, number + 1);
            }
        }
    });
    for _ in 0..3 {
        let serving = server.restart().await;
        assert_ne!(serving, server.pid());
        // It has adopted the new server, and holds no other.
        until("one child", || all_children(server.pid()) == [serving]).await;
    }
    calls.await.unwrap();
    drop(client);
    let serving = server.server().unwrap();
    signal(server.pid(), libc::SIGTERM);
    let status = server.end().await;
    assert!(status.success() && is_gone(serving), "{status}");
    assert!(!folder.path().join("s").exists());
});

// As with systemd's control groups, and with Ctrl-C.
trial!(signals_that_come_twice_count_once, async || {
    for number in [libc::SIGTERM, libc::SIGINT] {
        let folder = tempfile::tempdir().unwrap();
        let server = serve(&folder, &[]).await;
        let client = client(&folder);
        let checkout = client.checkout();
        checkout.call::<()>("nothing", ()).await.unwrap();
        let running = tokio::spawn(checkout.call::<()>("sleep", (500,)));
        server.is_busy().await;
        let serving = server.server().unwrap();
        signal(serving, number);
        // Otherwise the kernel may make one of both.
        server.logs("shutting down").await;
        signal(server.pid(), number);
        running.await.unwrap().unwrap();
        drop((checkout, client));
        let status = server.end().await;
        assert!(status.success(), "{status}");
    }
});

trial!(a_second_request_ends_it_at_once, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&folder, &[]).await;
    let client = client(&folder);
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let running = tokio::spawn(checkout.call::<()>("hang", ()));
    server.is_busy().await;
    signal(server.pid(), libc::SIGTERM);
    server.logs("shutting down").await;
    signal(server.pid(), libc::SIGTERM);
    running.await.unwrap().unwrap_err();
    let log = folder.path().join("log");
    let status = server.end().await;
    assert_eq!(status.code(), Some(1));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("had to kill 1 of its workers"), "{log}");
});

trial!(a_second_request_also_ends_a_server_that_has_been_replaced, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&folder, &["grace=3600000"]).await;
    let (old, new) = (client(&folder), client(&folder));
    let mut hanging = Vec::new();
    let mut replaced = server.server().unwrap();
    for client in [&old, &new] {
        let checkout = client.checkout();
        checkout.call::<()>("nothing", ()).await.unwrap();
        hanging.push((checkout.call::<()>("hang", ()), checkout));
        server.is_busy().await;
        if hanging.len() == 1 {
            let before = replaced;
            signal(server.pid(), libc::SIGHUP);
            until("a new server", || server.server().is_some_and(|pid| pid != before)).await;
            replaced = before;
        }
    }
    let serving = server.server().unwrap();
    assert!(!is_gone(replaced) && replaced != serving);
    signal(server.pid(), libc::SIGTERM);
    until("both servers shut down", || server.log().matches("shutting down").count() == 2).await;
    signal(server.pid(), libc::SIGTERM);
    let status = server.end().await;
    assert_eq!(status.code(), Some(1));
    for (call, _) in hanging {
        call.await.unwrap_err();
    }
    assert!(is_gone(replaced) && is_gone(serving));
    // The parent would kill a server that it had not told, and no worker of that server would be in the log.
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert_eq!(log.matches("the server was told to end at once").count(), 2, "{log}");
});

/// A server under a parent, whose log is `log` in this folder of the temporary one.
async fn serve_to(folder: &tempfile::TempDir, inner: &str) -> (Program, std::path::PathBuf) {
    let log = folder.path().join(inner).join("log");
    std::fs::create_dir(log.parent().unwrap()).unwrap();
    let arguments = ["serve_logging_to", log.to_str().unwrap(), &address_in(folder), "keep_pid"];
    let server = Program::new(programs::detached(programs::command(&arguments)).spawn().unwrap());
    until("the server", || logged(&log).contains("listening at")).await;
    (server, log)
}

fn logged(log: &std::path::Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

trial!(parent_and_server_write_to_the_log_file, async || {
    let folder = tempfile::tempdir().unwrap();
    let (server, log) = serve_to(&folder, "logs").await;
    let old = log.with_extension("old");
    std::fs::rename(&log, &old).unwrap();
    signal(server.pid(), libc::SIGUSR1);
    until("the new file", || logged(&log).contains("opened again")).await;
    let has_open = |pid: u32, file: &std::path::Path| {
        let mut open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        open.any(|entry| std::fs::read_link(entry.unwrap().path()).is_ok_and(|it| it == file))
    };
    let serving = all_children(server.pid())[0];
    for pid in [server.pid(), serving] {
        until("the new file of each process", || has_open(pid, &log)).await;
        assert!(!has_open(pid, &old));
    }
    signal(server.pid(), libc::SIGTERM);
    assert!(server.end().await.success());
    assert!(logged(&log).contains("shutting down"));
});

trial!(a_log_file_whose_folder_was_removed_stays_open, async || {
    let folder = tempfile::tempdir().unwrap();
    let (server, log) = serve_to(&folder, "logs").await;
    let moved = folder.path().join("moved");
    std::fs::rename(log.parent().unwrap(), &moved).unwrap();
    let log = moved.join("log");
    signal(server.pid(), libc::SIGUSR1);
    for told in ["the parent process cannot open the log file again", "still write to the old one"]
    {
        until(told, || logged(&log).contains(told)).await;
    }
    assert_eq!(client(&folder).call::<i64>("add", (2, 3)).await.unwrap(), 5);
    signal(server.pid(), libc::SIGTERM);
    assert!(server.end().await.success());
    assert!(logged(&log).contains("shutting down"));
});

trial!(the_death_of_the_server_is_reported, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&folder, &[]).await;
    let client = client(&folder);
    let worker: u32 = client.call("pid", ()).await.unwrap();
    let serving = server.server().unwrap();
    signal(serving, libc::SIGKILL);
    let parent = server.pid();
    let log = folder.path().join("log");
    assert_eq!(server.end().await.code(), Some(1));
    let log = std::fs::read_to_string(log).unwrap();
    let told = format!("the server process {serving} was killed by SIGKILL");
    assert!(log.contains(&told), "{log}");
    assert!(is_gone(worker) && is_gone(parent));
});

trial!(the_server_ends_gracefully_if_the_parent_is_killed, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&folder, &[]).await;
    server.restart().await;
    let client = client(&folder);
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let running = tokio::spawn(checkout.call::<()>("sleep", (300,)));
    let serving = server.server().unwrap();
    server.is_busy().await;
    signal(server.pid(), libc::SIGKILL);
    running.await.unwrap().unwrap();
    drop((checkout, client));
    until("the server's end", || is_gone(serving)).await;
    assert!(!folder.path().join("s").exists());
});

trial!(an_error_of_the_server_is_the_parents, async || {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s");
    std::fs::write(&file, "").unwrap();
    let said = programs::output(&["serve_logged", &address_in(&folder), "keep_pid"]);
    let expected = format!("the server did not start: {} exists and is no socket", file.display());
    assert!(said.contains(&expected), "{said}");
});

trial!(the_parent_holds_and_loads_nothing, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&folder, &[]).await;
    // It names itself once the server runs.
    until("its name", || command_line(server.pid()) == "taskfork-parent:taskfork").await;
    let open: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .unwrap()
        .filter_map(|entry| {
            Some(std::fs::read_link(entry.ok()?.path()).ok()?.display().to_string())
        })
        .collect();
    let sockets = open.iter().filter(|target| target.starts_with("socket:")).count();
    assert_eq!(sockets, 1, "more than the line to the server: {open:?}");
    // A worker has nothing of it either.
    let mut of_worker: Vec<String> = client(&folder).call("descriptors", ()).await.unwrap();
    of_worker.retain(|target| target.starts_with("socket:") || target.contains("signalfd"));
    assert_eq!(of_worker.len(), 1, "more than its connection: {of_worker:?}");
});

// Otherwise it would serve without a parent that forwards signals to it.
trial!(a_successor_that_has_not_taken_over_ends_with_the_server, async || {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &app).unwrap();
    let arguments = ["serve_logged", &address_in(&folder), "keep_pid"];
    let command = programs::detached(programs::command_of(&app, &arguments));
    let server = Logged::start(folder.path(), command).await;
    let serving = server.server().unwrap();
    // One that never is ready.
    let (other, started) = (folder.path().join("other"), folder.path().join("started"));
    let script = format!(
        "#!/bin/sh\necho $$ > {0}.new\nmv {0}.new {0}\nexec sleep 1000\n",
        started.display()
    );
    std::fs::write(&other, script).unwrap();
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&other, &app).unwrap();
    signal(server.pid(), libc::SIGHUP);
    until("a program that never is ready", || started.exists()).await;
    let successor = std::fs::read_to_string(&started).unwrap().trim().parse().unwrap();
    signal(serving, libc::SIGKILL);
    assert_eq!(server.end().await.code(), Some(1));
    assert!(is_gone(successor));
});

trial!(the_parent_sleeps_while_a_server_does_something_else_at_its_end, async || {
    let folder = tempfile::tempdir().unwrap();
    let done = folder.path().join("done");
    let server = serve(&folder, &[&format!("at_end={}", done.display())]).await;
    // The program of this one returns from `run`.
    let serving = server.restart().await;
    signal(server.pid(), libc::SIGTERM);
    until("the end of `run`", || done.exists()).await;
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().next().unwrap().to_owned()
    };
    // The end of the line has woken it. It goes to sleep again.
    until("a parent that sleeps", || state() == "S").await;
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        assert_eq!(state(), "S");
    }
    signal(serving, libc::SIGKILL);
    server.end().await;
});
