//! Servers that a program starts for itself.

use std::collections::HashSet;
use std::path::PathBuf;

use taskfork::{Server, ServerError};

use crate::support::processes::{is_alive, is_gone};
use crate::support::{programs, start, start_with, trial, until};

/// The inodes of a process's sockets.
fn sockets_of(pid: u32) -> HashSet<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let inode = |target: PathBuf| {
        Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    targets.filter_map(inode).collect()
}

trial!(a_spawned_server_is_reached_through_its_handle_only, async || {
    let (server, client) = start("general");
    assert!(server.address().path().is_none());
    assert_eq!(server.address().to_string(), format!("process {}", server.pid()));
    assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let of_server = sockets_of(server.pid());
    assert!(!of_server.is_empty());
    for line in sockets.lines().skip(1) {
        let fields: Vec<_> = line.split_whitespace().collect();
        assert!(!of_server.contains(fields[6]) || fields.len() == 7, "it has a name: {line}");
    }
});

trial!(closing_waits_for_the_end, async || {
    let (server, client) = start("general");
    let worker: u32 = client.call("pid", ()).await.unwrap();
    let pid = server.pid();
    tokio::task::spawn_blocking(move || server.close()).await.unwrap();
    assert!(!is_alive(pid) && !is_alive(worker));
});

trial!(dropping_shuts_down_without_waiting, async || {
    let (server, client) = start("general");
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let running = checkout.call::<()>("sleep", (100,));
    let pid = server.pid();
    drop(server);
    running.await.unwrap();
    drop(checkout);
    until("the server's end, reaped", || !is_alive(pid)).await;
});

trial!(killing_ends_it_at_once, async || {
    let (server, client) = start("general");
    let checkout = client.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let hanging = checkout.call::<()>("hang", ());
    let pid = server.pid();
    server.kill();
    assert!(!is_alive(pid));
    hanging.await.unwrap_err();
    until("the worker's end", || !is_alive(worker)).await;
});

trial!(a_server_does_not_outlive_its_program, async || {
    for how in ["fork", "spawn"] {
        let said = tokio::task::spawn_blocking(move || programs::output(&["orphan_server", how]));
        let pid: u32 = said.await.unwrap().trim().parse().unwrap();
        until("the orphan's end", || is_gone(pid)).await;
    }
});

trial!(forking_with_threads_is_refused_and_names_spawn, async || {
    let error = Server::fork(|_| Ok(())).unwrap_err();
    assert!(matches!(error, ServerError::Threads { threads } if threads > 1), "{error}");
    assert!(error.to_string().contains("`Server::spawn`"), "{error}");
});

trial!(running_with_threads_is_refused_and_names_spawn, async || {
    let said = programs::output(&["run_with_threads"]);
    assert!(said.contains("has 2 threads") && said.contains("`Server::spawn`"), "{said}");
});

trial!(a_forked_server_serves_and_ends, async || {
    assert_eq!(programs::output(&["fork_and_call"]), "5 false\n");
});

trial!(two_forked_servers_do_not_keep_each_other_alive, async || {
    assert_eq!(programs::output(&["two_forks"]), "both ended\n");
});

trial!(a_missing_call_of_init_is_named, async || {
    let said = programs::output(&["spawn_without_init"]);
    assert!(said.contains("first line of `main`") && said.contains("taskfork::init"), "{said}");
});

trial!(a_late_call_of_init_is_named, async || {
    let said = programs::output(&["spawn_with_late_init"]);
    assert!(said.contains("had threads already") && said.contains("first line"), "{said}");
});

trial!(an_unknown_entry_is_named_with_those_there_are, async || {
    let error = Server::spawn("nobody").unwrap_err().to_string();
    assert!(
        error.contains("`nobody`") && error.contains("general, ") && error.contains(" hung,"),
        "{error}"
    );
});

trial!(a_server_that_does_not_come_up_says_why, async || {
    let error = Server::spawn("refuses").unwrap_err().to_string();
    assert!(error.starts_with("the server did not start: the server has no address"), "{error}");
    let error = Server::spawn("never_runs").unwrap_err().to_string();
    assert!(error.contains("exited with status 0 before it called `run`"), "{error}");
});

trial!(a_calls_debug_output_shows_its_client_and_its_state, async || {
    let (_server, client) = start_with("general", |client| client.name("shop").max_workers(1));
    let checkout = client.checkout();
    checkout.ready().await.unwrap();
    let answered = checkout.call::<i64>("add", (2, 3));
    let shown = format!("{answered:?}");
    assert!(shown.contains(r#"client: "shop""#) && shown.contains("handles.rs:"), "{shown}");
    // The client's only worker is held.
    let waiting = client.checkout().call::<i64>("add", (2, 3));
    assert!(format!("{waiting:?}").contains(r#"state: "queued""#), "{waiting:?}");
    until("the answer", || format!("{answered:?}").contains(r#"state: "done""#)).await;
});
