//! Who gets which worker, and how many there are.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use taskfork::error::FatalError;
use taskfork::{Client, Error, Server};
use tokio::runtime::{Builder, Runtime};

use crate::support::processes::is_alive;
use crate::support::{address_in, programs, start, start_with, trial, until};

trial!(checkouts_are_served_in_the_order_they_were_made, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("order").display().to_string();
    let calls: Vec<_> = (b'a'..=b'z')
        .map(|letter| client.call::<()>("append", (&file, char::from(letter).to_string())))
        .collect();
    for call in calls.into_iter().rev() {
        call.await.unwrap();
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), "abcdefghijklmnopqrstuvwxyz");
});

trial!(min_workers_are_connected_ahead, async || {
    let (_server, client) = start_with("general", |client| client.min_workers(3));
    until("three idle workers", || client.stats().idle == 3).await;
    let stats = client.stats();
    assert_eq!((stats.busy, stats.connecting, stats.queued), (0, 0, 0));
});

trial!(a_worker_is_replaced_after_max_checkouts, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1).max_checkouts(3));
    let mut pids = Vec::new();
    for _ in 0..9 {
        pids.push(client.call::<u32>("pid", ()).await.unwrap());
    }
    for run in pids.chunks(3) {
        assert!(run.iter().all(|pid| *pid == run[0]), "{pids:?}");
    }
    assert_eq!(pids.iter().collect::<HashSet<_>>().len(), 3, "{pids:?}");
});

trial!(a_released_worker_is_used_again, async || {
    let (_server, client) = start("general");
    let pid: u32 = client.call("pid", ()).await.unwrap();
    for _ in 0..20 {
        assert_eq!(client.call::<u32>("pid", ()).await.unwrap(), pid);
    }
});

trial!(checkout_done_runs_after_every_checkout, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    client.call::<()>("remember", ("left behind",)).await.unwrap();
    assert_eq!(client.call::<String>("note", ()).await.unwrap(), "");
    client.checkout().ready().await.unwrap();
    assert_eq!(client.call::<u64>("checkouts", ()).await.unwrap(), 3);
});

trial!(checkout_done_runs_also_where_others_wait, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let file = folder.path().join("done").display().to_string();
    let _server = programs::start(&["serve_appending", &address, &file]);
    let client = Client::builder().address(address).min_workers(0).max_workers(1);
    let client = client.max_checkouts(2).build().unwrap();
    let calls: Vec<_> = (0..6).map(|_| client.call::<u32>("pid", ())).collect();
    let mut pids = Vec::new();
    for call in calls {
        pids.push(call.await.unwrap().to_string());
    }
    let done = || std::fs::read_to_string(&file).unwrap_or_default();
    until("six lines", || done().lines().count() == 6).await;
    let done = done();
    let mut done: Vec<_> = done.lines().collect();
    // A worker that is not used again ends its last checkout when it likes.
    done.sort_unstable();
    pids.sort_unstable();
    assert_eq!(done, pids);
});

/// Makes one call with a new client, and does nothing else in its runtime after that.
fn call_once(address: String, runtime: &Runtime) -> (Client, u32) {
    runtime.block_on(async {
        let client = Client::builder().address(address).min_workers(0).build().unwrap();
        let pid = client.call::<u32>("pid", ()).await.unwrap();
        (client, pid)
    })
}

trial!(checkout_done_runs_although_the_caller_leaves_its_runtime, async || {
    for is_closed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let address = address_in(&folder);
        let file = folder.path().join("done").display().to_string();
        let _server = programs::start(&["serve_appending", &address, &file]);
        let called = tokio::task::spawn_blocking(move || {
            let mut one = Builder::new_current_thread();
            let mut several = Builder::new_multi_thread();
            [one.enable_all(), several.worker_threads(1).enable_all()].map(|builder| {
                let runtime = builder.build().unwrap();
                let (client, pid) = call_once(address.clone(), &runtime);
                // A client that is dropped sends the end itself.
                (pid.to_string(), (!is_closed).then_some((client, runtime)))
            })
        });
        let mut called = called.await.unwrap();
        let done = || std::fs::read_to_string(&file).unwrap_or_default();
        until("both ends", || done().lines().count() == 2).await;
        let done = done();
        let mut done: Vec<_> = done.lines().collect();
        done.sort_unstable();
        called.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(done, called.each_ref().map(|(pid, _)| pid.as_str()));
        // A runtime may not be dropped within another one.
        tokio::task::spawn_blocking(move || drop(called)).await.unwrap();
    }
});

trial!(a_worker_learns_soon_that_its_checkout_is_over, async || {
    let (server, client) = start_with("function", |client| client.max_workers(1));
    let state = || {
        let workers = server.status().unwrap().workers;
        workers.first().map(|worker| (worker.state.clone(), worker.checkouts))
    };
    let is_idle_after = |checkouts: u64| state() == Some(("idle".into(), checkouts));
    // The first call goes out before the worker's hello, and the second one ends its checkout by itself.
    for checkouts in 1..=2 {
        client.invoke::<i64>((2,)).await.unwrap();
        until("the end of a checkout", || is_idle_after(checkouts)).await;
    }
    let held = client.checkout();
    held.invoke::<i64>((2,)).await.unwrap();
    assert!(!is_idle_after(3));
    drop(held);
    until("the end of a checkout", || is_idle_after(3)).await;
});

trial!(a_checkout_that_gave_up_leaves_the_queue, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let busy = client.checkout();
    busy.ready().await.unwrap();
    let waiting: Vec<_> = (0..10).map(|_| client.checkout()).collect();
    let call = client.call::<()>("nothing", ());
    assert_eq!(client.stats().queued, 11);
    drop(waiting);
    assert_eq!(client.stats().queued, 1);
    drop(call);
    assert_eq!(client.stats().queued, 0);
});

trial!(a_worker_handed_over_in_the_instant_of_giving_up_is_not_lost, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    client.call::<()>("nothing", ()).await.unwrap();
    for round in 0..300 {
        let held = client.checkout();
        held.ready().await.unwrap();
        let waiting = client.checkout();
        let give_up = tokio::spawn(async move {
            for _ in 0..round % 7 {
                tokio::task::yield_now().await;
            }
            drop(waiting);
        });
        drop(held);
        give_up.await.unwrap();
    }
    client.call::<()>("nothing", ()).await.unwrap();
    assert!(client.stats().busy + client.stats().idle <= 1);
});

trial!(load_can_be_shed_instead_of_queued, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    assert!(client.try_checkout().is_none(), "there is no worker yet");
    client.call::<()>("nothing", ()).await.unwrap();
    let checkout = client.try_checkout().unwrap();
    assert!(client.try_checkout().is_none());
    assert_eq!(client.stats().queued, 0);
    assert_eq!(checkout.call::<i64>("add", (2, 3)).await.unwrap(), 5);
    drop(checkout);
    assert!(client.try_checkout().is_some());
});

trial!(a_slow_clean_up_delays_no_other_worker, async || {
    let (_server, client) = start_with("done_slow", |client| client.max_workers(2));
    let (one, two) = (client.checkout(), client.checkout());
    let pid: u32 = two.call("pid", ()).await.unwrap();
    one.ready().await.unwrap();
    drop(one);
    // The first worker is cleaning up now; the second answers meanwhile.
    assert_eq!(two.call::<u32>("pid", ()).await.unwrap(), pid);
    let stats = client.stats();
    assert_eq!((stats.idle, stats.busy), (1, 1));
});

trial!(checkouts_may_be_made_before_the_server_exists, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let client = Client::builder().address(&address).build().unwrap();
    let calls: Vec<_> = (0..10).map(|number| client.call::<i64>("add", (number, 1))).collect();
    let _program = programs::start(&["serve", &address]);
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), number as i64 + 1);
    }
});

trial!(with_no_server_the_error_says_so_and_since_when, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let timeout = Duration::from_millis(200);
    let client = Client::builder().address(&address).timeout(timeout).build().unwrap();
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    let Error::Fatal { cause, may_have_run: false, .. } = &error else { panic!("{error}") };
    let FatalError::CannotConnect { address: tried, unreachable_for, after, .. } = cause else {
        panic!("{error}")
    };
    assert_eq!((tried, *after), (&address, timeout));
    assert!(*unreachable_for > Duration::ZERO);
    assert!(error.to_string().contains("No such file"), "{error}");
    assert_eq!(system_error(&error), Some(io::ErrorKind::NotFound));

    // A closed port says it in its own words.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let client = Client::builder()
        .address(format!("tcp:127.0.0.1:{port}"))
        .timeout(timeout)
        .build()
        .unwrap();
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(system_error(&error), Some(io::ErrorKind::ConnectionRefused));
});

/// The system's error that made a client fail to connect.
fn system_error(error: &Error) -> Option<io::ErrorKind> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<io::Error>().map(io::Error::kind)
}

trial!(a_server_that_comes_back_is_found, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let program = programs::start(&["serve", &address]);
    let client = Client::builder().address(&address).build().unwrap();
    let pid: u32 = client.call("pid", ()).await.unwrap();
    program.kill().await;
    until("the worker's end", || !is_alive(pid)).await;
    let call = client.call::<u32>("pid", ());
    let _program = programs::start(&["serve", &address]);
    assert_ne!(call.await.unwrap(), pid);
});

trial!(clients_do_not_disturb_each_other, async || {
    let (server, one) = start("general");
    let two = Client::builder().address(server.address()).build().unwrap();
    one.call::<()>("abort", ()).await.unwrap_err();
    assert_eq!(two.call::<i64>("add", (1, 1)).await.unwrap(), 2);
    drop(one);
    assert_eq!(two.call::<i64>("add", (1, 1)).await.unwrap(), 2);
});

trial!(a_client_dropped_closes_its_workers, async || {
    let (server, client) = start_with("general", |client| client.min_workers(3));
    until("three idle workers", || client.stats().idle == 3).await;
    drop(client);
    let pid = server.pid();
    until("the workers' end", || crate::support::processes::children(pid).is_empty()).await;
});

// A checkout with a worker, one with an idle worker to take, and one without.
trial!(a_client_whose_runtime_is_gone_says_so, async || {
    for entry in ["general", "tcp"] {
        let server = Server::spawn(entry).unwrap();
        let address = server.address();
        let other = tokio::task::spawn_blocking(move || {
            let runtime = Runtime::new().unwrap();
            let (client, held) = runtime.block_on(async {
                let client = Client::builder().address(address).max_workers(2).build().unwrap();
                let held = client.checkout();
                held.ready().await.unwrap();
                client.call::<()>("nothing", ()).await.unwrap();
                assert_eq!(client.stats().idle, 1);
                (client, held)
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
            (client, held)
        });
        let (client, held) = other.await.unwrap();
        for _ in 0..3 {
            let error = client.call::<()>("nothing", ()).await.unwrap_err();
            assert!(is_runtime_error(&error) && !error.may_have_run(), "{error}");
        }
        let error = held.call::<()>("nothing", ()).await.unwrap_err();
        assert!(is_runtime_error(&error), "{error}");
    }
});

fn is_runtime_error(error: &Error) -> bool {
    matches!(error, Error::Fatal { cause: FatalError::Aborted { message }, .. }
        if message.contains("runtime in which the client was built"))
}

fn is_closed_error(error: &Error) -> bool {
    matches!(error, Error::Fatal { cause: FatalError::ClientClosed, may_have_run: false, .. })
}

trial!(a_closed_client_refuses_checkouts_and_ends_its_workers, async || {
    let (server, client) = start_with("general", |client| client.min_workers(2));
    until("two idle workers", || client.stats().idle == 2).await;
    client.clone().close().await;
    assert!(client.is_closed());
    assert!(client.try_checkout().is_none());
    let error = client.call::<()>("nothing", ()).await.unwrap_err();
    assert!(is_closed_error(&error), "{error}");
    let stats = client.stats();
    assert_eq!((stats.idle, stats.busy, stats.connecting, stats.queued), (0, 0, 0, 0));
    let pid = server.pid();
    until("the workers' end", || crate::support::processes::children(pid).is_empty()).await;
    client.close().await;
});

trial!(closing_a_client_fails_waiting_checkouts_and_waits_for_held_ones, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let held = client.checkout();
    held.call::<()>("remember", ("before",)).await.unwrap();
    let waiting = client.call::<()>("nothing", ());
    let closing = tokio::spawn(client.close());
    let error = waiting.await.unwrap_err();
    assert!(is_closed_error(&error), "{error}");
    assert_eq!(held.call::<String>("note", ()).await.unwrap(), "before");
    assert!(!closing.is_finished());
    drop(held);
    closing.await.unwrap();
});

trial!(closing_a_client_stops_attempts_to_connect, async || {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap());
    let timeout = Duration::from_secs(600);
    let client = Client::builder().address(address).connect_timeout(timeout).build().unwrap();
    until("attempts to connect", || client.stats().connecting > 0).await;
    tokio::time::timeout(Duration::from_secs(60), client.close()).await.unwrap();
});

trial!(a_client_is_closed_although_the_future_is_dropped, async || {
    let (_server, client) = start("general");
    let held = client.checkout();
    held.ready().await.unwrap();
    drop(client.close());
    assert!(is_closed_error(&client.call::<()>("nothing", ()).await.unwrap_err()));
    held.call::<()>("nothing", ()).await.unwrap();
});
