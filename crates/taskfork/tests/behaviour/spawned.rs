//! Servers that a program has started: their death, their replacement and their end.

use std::time::Duration;

use taskfork::error::{End, FatalError};
use taskfork::server::{ServerHandle, Spawn, WorkerStatus};
use taskfork::{Call, Checkout, Client, Error, Methods, Server, ServerBuilder, ServerError};

use crate::spawn_config::Config;
use crate::support::processes::{is_alive, is_gone, signal};
use crate::support::{address_in, programs, servers, start, trial, until};

pub(crate) fn panics_later(server: ServerBuilder) -> Result<(), ServerError> {
    server.interface(Methods::<()>::new().function("pid", || Ok(std::process::id()))).run()?;
    panic!("after the end");
}

/// A client with one worker, whose calls have no limit of time.
pub(crate) fn client_of(server: &ServerHandle) -> Client {
    let client = Client::builder().address(server.address()).min_workers(0).max_workers(1);
    client.timeout(None).build().unwrap()
}

fn without_respawn(entry: &str) -> ServerHandle {
    Spawn::new(entry).respawn(false).start().unwrap()
}

/// A call that hangs in a worker.
async fn hang(server: &ServerHandle, checkout: &Checkout) -> Call<()> {
    let call = checkout.call::<()>("hang", ());
    let is_busy = |worker: &WorkerStatus| worker.method.as_deref() == Some("hang");
    until("the call to begin", || server.status().unwrap().workers.iter().any(is_busy)).await;
    call
}

pub(crate) fn kill(server: &ServerHandle) -> u32 {
    let pid = server.pid();
    signal(pid, libc::SIGKILL);
    pid
}

trial!(a_killed_server_is_replaced_at_its_address, async || {
    let folder = tempfile::tempdir().unwrap();
    let at_path = Config { listen: Some(address_in(&folder)), ..Config::new() };
    let started = [
        Server::spawn("general").unwrap(),
        Server::spawn("tcp").unwrap(),
        Server::spawn_with("configured", &at_path).unwrap(),
    ];
    for server in started {
        let client = client_of(&server);
        let address = server.address();
        let checkout = client.checkout();
        let worker: u32 = checkout.call("pid", ()).await.unwrap();
        let running = hang(&server, &checkout).await;
        let waiting = client.call::<i64>("add", (2, 3));
        let before = kill(&server);
        let error = running.await.unwrap_err();
        assert!(error.is_fatal() && error.may_have_run(), "{error}");
        drop(checkout);
        assert_eq!(waiting.await.unwrap(), 5);
        assert!(server.is_alive() && server.pid() != before);
        assert!(!is_alive(before), "a zombie is left");
        until("the worker's end", || is_gone(worker)).await;
        let (now, was) = (server.address().to_string(), address.to_string());
        match server.address().path() {
            _ if now.starts_with("process") => {
                assert_eq!(now, format!("process {}", server.pid()));
            }
            _ => assert_eq!(now, was),
        }
        // Once more, and for a client that is built meanwhile.
        kill(&server);
        let late = Client::builder().address(address).build().unwrap();
        assert_eq!(late.call::<i64>("add", (3, 4)).await.unwrap(), 7);
        assert_eq!(client.call::<i64>("add", (4, 4)).await.unwrap(), 8);
    }
});

trial!(a_call_of_a_killed_server_says_so, async || {
    for entry in ["general", "tcp"] {
        let server = Server::spawn(entry).unwrap();
        let client = client_of(&server);
        let checkout = client.checkout();
        checkout.ready().await.unwrap();
        let running = hang(&server, &checkout).await;
        let pid = kill(&server);
        let error = running.await.unwrap_err().to_string();
        let reason = format!("the server, process {pid}, was killed by SIGKILL");
        assert!(error.contains(&reason), "{error}");
    }
});

fn server_ended(error: &Error) -> (u32, End) {
    let Error::Fatal { cause, may_have_run: false, .. } = error else { panic!("{error}") };
    let FatalError::ServerEnded { pid, end, .. } = cause else { panic!("{error}") };
    (*pid, *end)
}

/// Its process id, and whether its handle was dropped.
fn server_shut_down(error: &Error) -> (u32, bool) {
    let Error::Fatal { cause, may_have_run: false, .. } = error else { panic!("{error}") };
    let FatalError::ServerShutDown { pid, handle_dropped } = cause else { panic!("{error}") };
    (*pid, *handle_dropped)
}

trial!(without_respawn_calls_fail_at_once_and_say_how_the_server_died, async || {
    let folder = tempfile::tempdir().unwrap();
    let at_path = Config { listen: Some(address_in(&folder)), ..Config::new() };
    let started = [
        without_respawn("general"),
        without_respawn("tcp"),
        Spawn::new("configured").config(&at_path).respawn(false).start().unwrap(),
    ];
    for server in started {
        let client = client_of(&server);
        let checkout = client.checkout();
        checkout.ready().await.unwrap();
        let running = hang(&server, &checkout).await;
        let waiting = client.call::<i64>("add", (2, 3));
        let pid = kill(&server);
        running.await.unwrap_err();
        // None of these has a limit of time.
        let death = (pid, End::Signaled(libc::SIGKILL));
        assert_eq!(server_ended(&waiting.await.unwrap_err()), death);
        for _ in 0..20 {
            let error = client.call::<i64>("add", (2, 3)).await.unwrap_err();
            assert_eq!(server_ended(&error), death);
            let text = format!("the server, process {pid}, was killed by SIGKILL");
            assert_eq!(error.to_string(), text);
        }
        assert!(!server.is_alive() && !is_alive(pid));
        assert!(server.status().unwrap_err().to_string().contains("SIGKILL"));
    }
});

trial!(without_respawn_a_waiting_thread_gets_the_error, async || {
    let told = tokio::task::spawn_blocking(|| {
        let server = without_respawn("general");
        let options = Client::builder().address(server.address()).timeout(None).max_workers(1);
        let client = options.build_blocking().unwrap();
        let checkout = client.checkout();
        checkout.ready().unwrap();
        let running = checkout.queue::<()>("hang", ());
        let pid = kill(&server);
        running.wait().unwrap_err();
        let error = client.call::<i64>("add", (2, 3)).unwrap_err();
        assert_eq!(server_ended(&error), (pid, End::Signaled(libc::SIGKILL)));
    });
    told.await.unwrap();
});

trial!(a_client_of_an_ended_server_fails_at_once, async || {
    let (server, client) = start("general");
    let (pid, address) = (server.pid(), server.address());
    tokio::task::spawn_blocking(move || server.close()).await.unwrap();
    let late = Client::builder().address(address).timeout(None).build().unwrap();
    for client in [client, late] {
        let error = client.call::<()>("nothing", ()).await.unwrap_err();
        assert_eq!(server_shut_down(&error), (pid, false));
    }
});

trial!(calls_fail_at_once_while_a_server_of_this_program_shuts_down, async || {
    let folder = tempfile::tempdir().unwrap();
    let at_path = Config { listen: Some(address_in(&folder)), ..Config::new() };
    let started =
        [Server::spawn("general").unwrap(), Server::spawn_with("configured", &at_path).unwrap()];
    for server in started {
        // An idle worker would run the call.
        let options = Client::builder().address(server.address()).timeout(None).min_workers(1);
        let client = options.build().unwrap();
        // The server waits for this checkout.
        let checkout = client.checkout();
        checkout.ready().await.unwrap();
        server.shutdown();
        let error = client.call::<()>("nothing", ()).await.unwrap_err();
        assert_eq!(server_shut_down(&error), (server.pid(), false));
        assert!(error.to_string().contains("down by its handle"), "{error}");
    }
});

trial!(calls_of_a_server_whose_handle_was_dropped_say_so, async || {
    let (server, client) = start("general");
    let pid = server.pid();
    client.call::<()>("nothing", ()).await.unwrap();
    drop(server);
    until("the server's end", || is_gone(pid)).await;
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    assert_eq!(server_shut_down(&error), (pid, true));
    assert!(error.to_string().contains("keep the `ServerHandle`"), "{error}");
});

trial!(another_server_at_the_same_path_serves_the_old_ones_clients, async || {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { listen: Some(address_in(&folder)), ..Config::new() };
    let first = Server::spawn_with("configured", &config).unwrap();
    let client = client_of(&first);
    client.call::<()>("nothing", ()).await.unwrap();
    tokio::task::spawn_blocking(move || first.close()).await.unwrap();
    server_shut_down(&client.call::<()>("nothing", ()).await.unwrap_err());
    let second = Server::spawn_with("configured", &config).unwrap();
    client.call::<()>("nothing", ()).await.unwrap();
    // It is the one that counts, also while it is being replaced.
    kill(&second);
    client.call::<()>("nothing", ()).await.unwrap();
    // A worker of the killed server may have answered: it lives a little longer.
    until("the second server's replacement", || second.is_alive()).await;
});

trial!(a_server_ended_by_a_signal_is_not_replaced_if_it_shuts_down, async || {
    let server = Server::spawn("general").unwrap();
    signal(server.pid(), libc::SIGTERM);
    let end = tokio::task::spawn_blocking(move || server.wait()).await.unwrap();
    assert_eq!(end, End::Exited(0));

    // Not in peace either.
    let server = Server::spawn("short_grace").unwrap();
    let client = client_of(&server);
    let checkout = client.checkout();
    checkout.ready().await.unwrap();
    let running = hang(&server, &checkout).await;
    signal(server.pid(), libc::SIGTERM);
    running.await.unwrap_err();
    let end = tokio::task::spawn_blocking(move || server.wait()).await.unwrap();
    assert_eq!(end, End::Exited(1));
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    assert!(error.to_string().contains("had to kill 1 of its workers"), "{error}");
});

trial!(a_server_that_cannot_be_replaced_says_why_until_it_can, async || {
    let folder = tempfile::tempdir().unwrap();
    let obstacle = folder.path().join("obstacle");
    for listen in [None, Some(address_in(&folder))] {
        let config = Config { obstacle: Some(obstacle.clone()), listen, ..Config::new() };
        let server = Server::spawn_with("configured", &config).unwrap();
        std::fs::write(&obstacle, "").unwrap();
        let pid = kill(&server);
        let options = Client::builder().address(server.address());
        let client = options.timeout(Duration::from_secs(1)).build().unwrap();
        let mut said = String::new();
        for _ in 0..20 {
            said = client.call::<()>("nothing", ()).await.unwrap_err().to_string();
            if said.contains("obstacle") {
                break;
            }
        }
        assert!(said.contains(&format!("process {pid}, was killed by SIGKILL")), "{said}");
        assert!(said.contains("cannot be replaced so far"), "{said}");
        assert!(said.contains("there is an obstacle"), "{said}");
        assert!(!server.is_alive());
        std::fs::remove_file(&obstacle).unwrap();
        until("the replacement", || server.is_alive()).await;
        client_of(&server).call::<()>("nothing", ()).await.unwrap();
    }
});

trial!(a_server_that_is_being_replaced_can_be_closed, async || {
    let folder = tempfile::tempdir().unwrap();
    let obstacle = folder.path().join("obstacle");
    let config = Config { obstacle: Some(obstacle.clone()), ..Config::new() };
    for closes in [ServerHandle::close, ServerHandle::kill, drop] {
        let server = Server::spawn_with("configured", &config).unwrap();
        std::fs::write(&obstacle, "").unwrap();
        let pid = kill(&server);
        until("the server's end", || !server.is_alive()).await;
        let client = client_of(&server);
        tokio::task::spawn_blocking(move || closes(server)).await.unwrap();
        let error = client.call::<()>("nothing", ()).await.unwrap_err();
        assert_eq!(server_ended(&error), (pid, End::Signaled(libc::SIGKILL)));
        std::fs::remove_file(&obstacle).unwrap();
    }
});

trial!(a_call_of_a_failed_server_has_the_servers_error, async || {
    let server = without_respawn("panics_later");
    let client = client_of(&server);
    client.call::<u32>("pid", ()).await.unwrap();
    signal(server.pid(), libc::SIGTERM);
    let end = tokio::task::spawn_blocking(move || server.wait()).await.unwrap();
    assert_eq!(end, End::Exited(101));
    let error = client.call::<u32>("pid", ()).await.unwrap_err().to_string();
    assert!(error.ends_with("exited with status 101: it panicked"), "{error}");
});

trial!(a_killed_server_leaves_no_zombie, async || {
    // The test does not use the handles, and there is no client.
    for server in [Server::spawn("general").unwrap(), without_respawn("general")] {
        let pid = kill(&server);
        until("the server's end, reaped", || !is_alive(pid)).await;
    }
});

trial!(a_handle_waits_for_the_end, async || {
    let server = std::sync::Arc::new(without_respawn("general"));
    let waits = server.clone();
    let waiting = tokio::task::spawn_blocking(move || waits.wait());
    assert!(server.is_alive() && !waiting.is_finished());
    kill(&server);
    assert_eq!(waiting.await.unwrap(), End::Signaled(libc::SIGKILL));
    assert_eq!(server.wait(), End::Signaled(libc::SIGKILL));

    // One that is replaced has not ended; shutting it down ends it.
    let server = std::sync::Arc::new(Server::spawn("general").unwrap());
    let waits = server.clone();
    let waiting = tokio::task::spawn_blocking(move || waits.wait());
    let before = kill(&server);
    until("the replacement", || server.is_alive() && server.pid() != before).await;
    assert!(!waiting.is_finished());
    server.shutdown();
    assert_eq!(waiting.await.unwrap(), End::Exited(0));
});

trial!(a_handle_reads_the_status_without_a_path, async || {
    let server = Server::spawn("general").unwrap();
    let client = client_of(&server);
    let checkout = client.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let server = std::sync::Arc::new(server);
    let asked = server.clone();
    let status = tokio::task::spawn_blocking(move || asked.status()).await.unwrap().unwrap();
    assert_eq!((status.pid, &status.name[..], status.forked), (server.pid(), "general", 1));
    assert_eq!(status.workers.iter().map(|worker| worker.pid).collect::<Vec<_>>(), [worker]);
});

trial!(the_death_of_a_forked_server_is_reported, async || {
    let said = programs::output(&["fork_and_kill"]);
    let expected = "the server was killed by SIGKILL\nfalse\ntrue\n";
    assert_eq!(said, expected);
});

/// A program without threads.
pub(crate) fn fork_and_kill() {
    let server = Server::fork(servers::serve).unwrap();
    let options = Client::builder().address(server.address()).timeout(None).min_workers(0);
    let client = options.build_blocking().unwrap();
    client.call::<()>("nothing", ()).unwrap();
    let pid = kill(&server);
    while !is_gone(pid) {
        std::thread::yield_now();
    }
    let error = client.call::<()>("nothing", ()).unwrap_err().to_string();
    println!("{}", error.replace(&format!(", process {pid},"), ""));
    println!("{}", server.is_alive());
    println!("{}", server.wait() == End::Signaled(libc::SIGKILL) && !is_alive(pid));
}

trial!(a_program_can_still_fork_after_it_has_spawned, async || {
    assert_eq!(programs::output(&["spawn_and_fork"]), "true false true\n");
});

pub(crate) fn spawn_and_fork() {
    let spawned = Server::spawn("general").unwrap();
    let first = kill(&spawned);
    let forked = Server::fork(servers::serve).unwrap();
    while !is_gone(first) {
        std::thread::yield_now();
    }
    let before = is_alive(first);
    let is_alive_at_once = spawned.is_alive();
    while !spawned.is_alive() {
        std::thread::yield_now();
    }
    println!("{before} {is_alive_at_once} {}", spawned.pid() != first);
    forked.close();
    spawned.close();
}
