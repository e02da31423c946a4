//! How a server ends.

use std::time::Duration;

use taskfork::Client;

use crate::support::processes::{children, is_alive, signal};
use crate::support::{address_in, programs, start, start_with, trial, until};

trial!(running_checkouts_finish_and_nothing_is_left, async || {
    let folder = tempfile::tempdir().unwrap();
    let program = programs::start(&["serve", &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let running = checkout.call::<()>("sleep", (200,));
    let workers = children(program.pid());
    signal(program.pid(), libc::SIGTERM);
    until("the listener's end", || !folder.path().join("s").exists()).await;
    running.await.unwrap();
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
    drop(checkout);
    assert!(program.end().await.success());
    assert!(workers.iter().all(|worker| !is_alive(*worker)));
});

trial!(every_signal_that_ends_a_program_is_graceful, async || {
    for number in [libc::SIGTERM, libc::SIGINT] {
        let folder = tempfile::tempdir().unwrap();
        let program = programs::start(&["serve", &address_in(&folder)]);
        let client = Client::builder().address(address_in(&folder)).build().unwrap();
        client.call::<()>("nothing", ()).await.unwrap();
        signal(program.pid(), number);
        assert!(program.end().await.success(), "signal {number}");
        assert!(!folder.path().join("s").exists());
    }
});

trial!(a_second_signal_ends_it_at_once, async || {
    let folder = tempfile::tempdir().unwrap();
    let program = programs::start(&["serve", &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let hanging = checkout.call::<()>("hang", ());
    signal(program.pid(), libc::SIGINT);
    until("the listener's end", || !folder.path().join("s").exists()).await;
    signal(program.pid(), libc::SIGINT);
    assert_eq!(program.end().await.code(), Some(1), "it says that something was killed");
    let error = hanging.await.unwrap_err().to_string();
    assert!(error.contains("SIGKILL") && error.contains("told to end at once"), "{error}");
});

trial!(the_grace_period_has_an_end, async || {
    let (server, client) = start("short_grace");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let hanging = checkout.call::<()>("hang", ());
    tokio::task::spawn_blocking(move || server.close()).await.unwrap();
    assert!(!is_alive(pid));
    let error = hanging.await.unwrap_err().to_string();
    assert!(error.contains("shutdown_grace"), "{error}");
});

trial!(idle_workers_end_at_once, async || {
    let (server, client) = start_with("general", |client| client.min_workers(4));
    until("four idle workers", || client.stats().idle == 4).await;
    let workers = children(server.pid());
    tokio::task::spawn_blocking(move || server.close()).await.unwrap();
    assert!(workers.iter().all(|worker| !is_alive(*worker)));
});

trial!(nothing_new_is_accepted_while_it_drains, async || {
    let (server, client) =
        start_with("general", |client| client.max_workers(2).timeout(Duration::from_millis(300)));
    let held = client.checkout();
    held.call::<()>("nothing", ()).await.unwrap();
    server.shutdown();
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    assert!(error.is_fatal() && !error.may_have_run(), "{error}");
    // What was running goes on.
    held.call::<()>("nothing", ()).await.unwrap();
});

trial!(a_server_that_waits_for_a_call_sleeps, async || {
    let (server, client) = start_with("general", |client| client.max_workers(1));
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let pid = server.pid();
    let running = checkout.call::<()>("sleep", (500,));
    let closing = tokio::task::spawn_blocking(move || server.close());
    running.await.unwrap();
    let ran = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let nanoseconds: u64 = ran.split_whitespace().next().unwrap().parse().unwrap();
    assert!(nanoseconds < 250_000_000, "it ran for {nanoseconds} ns");
    drop(checkout);
    closing.await.unwrap();
});

trial!(workers_end_with_a_killed_server, async || {
    let (server, client) = start_with("general", |client| client.min_workers(3));
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let hanging = checkout.call::<()>("hang", ());
    until("three workers", || children(server.pid()).len() == 3).await;
    let workers = children(server.pid());
    server.kill();
    hanging.await.unwrap_err();
    until("the workers' end", || workers.iter().all(|worker| !is_alive(*worker))).await;
});

trial!(a_call_handed_to_an_idle_worker_at_the_end_is_tried_again, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::builder().address(address_in(&folder)).max_workers(2).build().unwrap();
    for _ in 0..10 {
        let program = programs::start(&["serve", &address_in(&folder)]);
        client.call::<()>("nothing", ()).await.unwrap();
        signal(program.pid(), libc::SIGTERM);
        let calls: Vec<_> = (0..20).map(|_| client.call::<()>("nothing", ())).collect();
        let ended = program.end();
        let next = async {
            assert!(ended.await.success());
            programs::start(&["serve", &address_in(&folder)])
        };
        let (next, ()) = tokio::join!(next, async {
            for call in calls {
                call.await.unwrap();
            }
        });
        signal(next.pid(), libc::SIGTERM);
        next.end().await;
    }
});
