//! Servers that a program starts for itself.

use taskfork::{Server, ServerError};

use crate::support::processes::{is_alive, is_gone};
use crate::support::{roles, start, trials, until};

trials! {
    a_spawned_server_is_reached_through_its_handle_only,
    closing_waits_for_the_end,
    dropping_shuts_down_without_waiting,
    killing_ends_it_at_once,
    a_server_does_not_outlive_its_program,
    forking_with_threads_is_refused_and_names_spawn,
    running_with_threads_is_refused_and_names_spawn,
    a_forked_server_serves_and_ends,
    two_forked_servers_do_not_keep_each_other_alive,
    a_missing_line_in_main_is_named,
    a_late_line_in_main_is_named,
    an_unknown_entry_is_named_with_those_there_are,
    a_server_that_does_not_come_up_says_why,
}

async fn a_spawned_server_is_reached_through_its_handle_only() {
    let (server, client) = start("faults");
    assert!(server.address().path().is_none());
    assert_eq!(server.address().to_string(), format!("the server in process {}", server.pid()));
    assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!sockets.lines().any(|line| line.contains("taskfork")), "{sockets}");
}

async fn closing_waits_for_the_end() {
    let (server, client) = start("faults");
    let worker: u32 = client.call("pid", ()).await.unwrap();
    let pid = server.pid();
    tokio::task::spawn_blocking(move || server.close()).await.unwrap();
    assert!(!is_alive(pid) && !is_alive(worker));
}

async fn dropping_shuts_down_without_waiting() {
    let (server, client) = start("faults");
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let running = checkout.call::<()>("sleep", (100,));
    let pid = server.pid();
    drop(server);
    running.await.unwrap();
    drop(checkout);
    until("the server's end, reaped", || !is_alive(pid)).await;
}

async fn killing_ends_it_at_once() {
    let (server, client) = start("faults");
    let checkout = client.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let hanging = checkout.call::<()>("hang", ());
    let pid = server.pid();
    server.kill();
    assert!(!is_alive(pid));
    hanging.await.unwrap_err();
    until("the worker's end", || !is_alive(worker)).await;
}

async fn a_server_does_not_outlive_its_program() {
    for how in ["fork", "spawn"] {
        let said = tokio::task::spawn_blocking(move || roles::output(&["orphan_server", how]));
        let pid: u32 = said.await.unwrap().trim().parse().unwrap();
        until("the orphan's end", || is_gone(pid)).await;
    }
}

async fn forking_with_threads_is_refused_and_names_spawn() {
    let error = Server::fork(|_| Ok(())).unwrap_err();
    assert!(matches!(error, ServerError::Threads { threads } if threads > 1), "{error}");
    assert!(error.to_string().contains("`Server::spawn`"), "{error}");
}

async fn running_with_threads_is_refused_and_names_spawn() {
    let said = roles::output(&["run_with_threads"]);
    assert!(said.contains("has 2 threads") && said.contains("`Server::spawn`"), "{said}");
}

async fn a_forked_server_serves_and_ends() {
    assert_eq!(roles::output(&["fork_and_call"]), "5 false\n");
}

async fn two_forked_servers_do_not_keep_each_other_alive() {
    assert_eq!(roles::output(&["two_forks"]), "both ended\n");
}

async fn a_missing_line_in_main_is_named() {
    let said = roles::output(&["spawn_without_init"]);
    assert!(said.contains("first line of `main`") && said.contains("taskfork::init"), "{said}");
}

async fn a_late_line_in_main_is_named() {
    let said = roles::output(&["spawn_with_late_init"]);
    assert!(said.contains("had threads already") && said.contains("first line"), "{said}");
}

async fn an_unknown_entry_is_named_with_those_there_are() {
    let error = Server::spawn("nobody").unwrap_err().to_string();
    assert!(error.contains("`nobody`") && error.contains("faults, hung"), "{error}");
}

async fn a_server_that_does_not_come_up_says_why() {
    let error = Server::spawn("refuses").unwrap_err().to_string();
    assert!(error.starts_with("the server did not start: the server has no address"), "{error}");
    let error = Server::spawn("never_runs").unwrap_err().to_string();
    assert!(error.contains("exited with status 0 before it called `run`"), "{error}");
}
