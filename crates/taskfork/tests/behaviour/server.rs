//! Where a server listens.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use taskfork::Client;

use crate::support::processes::{Program, is_alive, signal};
use crate::support::{address_in, programs, start, trial, until};

trial!(a_unix_socket_admits_its_owner_only, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve", &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let mode = std::fs::metadata(folder.path().join("s")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
});

trial!(a_tcp_server_reports_its_port, async || {
    let (server, client) = start("tcp");
    let address = server.address().to_string();
    assert!(address.starts_with("tcp:127.0.0.1:") && !address.ends_with(":0"), "{address}");
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let blob: taskfork::client::Value = client.call("blob", (1_000_000,)).await.unwrap();
    assert_eq!(blob.as_slice().unwrap().len(), 1_000_000);
    client.call::<()>("abort", ()).await.unwrap_err();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(an_inherited_listener_is_served, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let mut command = programs::command(&["serve_inherited"]);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let program = Program::new(command.spawn().unwrap());
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    drop(client);
    signal(program.pid(), libc::SIGTERM);
    assert!(program.end().await.success());
    assert!(folder.path().join("s").exists(), "whoever made the socket removes its file");
});

trial!(a_stale_socket_file_is_replaced, async || {
    let folder = tempfile::tempdir().unwrap();
    let program = programs::start(&["serve", &address_in(&folder)]);
    until("the socket", || folder.path().join("s").exists()).await;
    // With one worker, none is being forked when the server is killed. That one would have the listener for a moment.
    let client = Client::builder().address(address_in(&folder)).max_workers(1);
    let client = client.build().unwrap();
    client.call::<()>("nothing", ()).await.unwrap();
    program.kill().await;
    assert!(folder.path().join("s").exists());

    let _program = programs::start(&["serve", &address_in(&folder)]);
    client.call::<()>("nothing", ()).await.unwrap();
});

trial!(a_live_servers_address_is_refused, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve", &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    client.call::<()>("nothing", ()).await.unwrap();
    let said = programs::output(&["serve", &address_in(&folder)]);
    assert!(said.starts_with("another server is listening at unix:"), "{said}");
    client.call::<()>("nothing", ()).await.unwrap();
});

trial!(a_dying_worker_leaves_the_socket_file_alone, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve", &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    for method in ["abort", "segv"] {
        client.call::<()>(method, ()).await.unwrap_err();
    }
    client.call::<()>("exit", (0,)).await.unwrap_err();
    let pid: u32 = client.call("pid", ()).await.unwrap();
    drop(client);
    until("the worker's end", || !is_alive(pid)).await;
    assert!(folder.path().join("s").exists());
});

trial!(one_connection_one_worker, async || {
    let (server, client) = start("general");
    let checkouts: Vec<_> = (0..4).map(|_| client.checkout()).collect();
    let mut pids = Vec::new();
    for checkout in &checkouts {
        pids.push(checkout.call::<u32>("pid", ()).await.unwrap());
    }
    pids.sort_unstable();
    let mut children = crate::support::processes::children(server.pid());
    children.sort_unstable();
    assert_eq!(pids, children);
});
