//! What a server tells of itself.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use taskfork::server::ServerStatus;
use taskfork::{Client, Server};

use crate::support::{address_in, programs, trial, until};

trial!(status_shows_what_workers_do, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let program = programs::start(&["serve", &address]);
    let path = folder.path().join("s.status");
    let client = Client::builder().address(&address).min_workers(0).max_workers(3);
    let client = client.build().unwrap();
    let (busy, held) = (client.checkout(), client.checkout());
    held.call::<()>("nothing", ()).await.unwrap();
    let hanging = busy.call::<()>("hang", ());
    client.call::<()>("abort", ()).await.unwrap_err();
    let read = || ServerStatus::read(&path).unwrap();
    // A worker that has sent its answer is still answering for a moment.
    until("a busy and a held worker", || {
        let workers = read().workers;
        ["busy", "held"].iter().all(|state| workers.iter().any(|worker| worker.state == *state))
    })
    .await;

    let status = read();
    assert_eq!((status.pid, &*status.name), (program.pid(), "taskfork"));
    assert_eq!((status.forked, status.refused, status.accepting), (3, 0, true));
    assert_eq!(status.deaths, BTreeMap::from([("signaled".to_owned(), 1)]));
    let states: Vec<_> = status
        .workers
        .iter()
        .map(|worker| (&*worker.state, worker.method.as_deref(), worker.calls, worker.checkouts))
        .collect();
    assert!(states.contains(&("busy", Some("hang"), 1, 0)), "{states:?}");
    assert!(states.contains(&("held", Some("nothing"), 1, 0)), "{states:?}");
    for worker in &status.workers {
        let (now, peak) = (worker.memory.unwrap(), worker.peak_memory.unwrap());
        assert!((1 << 20..=peak).contains(&now), "{worker:?}");
    }
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    drop((hanging, busy, held));
    until("both are done with", || {
        let status = read();
        status.deaths.get("client_gone") == Some(&1)
            && status.workers.iter().all(|worker| worker.state == "idle" && worker.checkouts == 1)
    })
    .await;
    drop(program);
});

trial!(status_counts_waiting_checkouts, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _program = programs::start(&["serve", &address]);
    let queued = || ServerStatus::read(folder.path().join("s.status")).unwrap().queued;
    let client = || {
        let client = Client::builder().address(&address).min_workers(0).max_workers(1);
        client.build().unwrap()
    };
    let (client, other) = (client(), client());
    let first = client.checkout();
    first.call::<()>("nothing", ()).await.unwrap();
    assert_eq!(queued(), 0);

    let mut waiting: Vec<_> = (0..5).map(|_| client.checkout()).collect();
    drop(first);
    waiting[0].call::<()>("nothing", ()).await.unwrap();
    assert_eq!(queued(), 4);

    let of_other: Vec<_> = (0..3).map(|_| other.checkout()).collect();
    of_other[0].call::<()>("nothing", ()).await.unwrap();
    assert_eq!(queued(), 4 + 2);

    drop(of_other);
    while !waiting.is_empty() {
        waiting[0].call::<()>("nothing", ()).await.unwrap();
        drop(waiting.remove(0));
    }
    until("nobody waits", || queued() == 0).await;
});

trial!(a_status_reader_that_does_not_read_blocks_no_other, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _program = programs::start(&["serve", &address]);
    let client = Client::builder().address(&address).max_workers(1).build().unwrap();
    client.call::<()>("nothing", ()).await.unwrap();
    let path = folder.path().join("s.status");
    let silent: Vec<_> =
        (0..50).map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap()).collect();
    client.call::<()>("nothing", ()).await.unwrap();
    assert_eq!(ServerStatus::read(&path).unwrap().workers.len(), 1);
    drop(silent);
});

trial!(status_counts_calls_by_method, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _program = programs::start(&["serve", &address]);
    let path = folder.path().join("s.status");
    let client = Client::builder().address(&address).min_workers(0).max_workers(1);
    let client = client.dont_refork_after_error(true).build().unwrap();
    for _ in 0..3 {
        client.call::<()>("nothing", ()).await.unwrap();
    }
    client.call::<()>("unknown", ()).await.unwrap_err();
    let counted = |method: &str| {
        let status = ServerStatus::read(&path).unwrap();
        status.calls.get(method).map(|calls| (calls.times.count(), calls.errors))
    };
    assert_eq!((counted("nothing"), counted("(unknown)")), (Some((3, 0)), Some((1, 1))));
    assert_eq!(counted("unknown"), None, "clients choose no names");
    assert_eq!(ServerStatus::read(&path).unwrap().waits.count(), 1);
    // The calls of a worker that has ended are still counted.
    client.call::<()>("abort", ()).await.unwrap_err();
    until("the worker has ended", || ServerStatus::read(&path).unwrap().deaths.len() == 1).await;
    assert_eq!((counted("nothing"), counted("abort")), (Some((3, 0)), None));
});

trial!(status_tells_how_workers_died, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _program = programs::start(&["serve", &address]);
    let path = folder.path().join("s.status");
    let client = Client::builder().address(&address).min_workers(0).max_workers(1);
    let client = client.build().unwrap();
    client.call::<()>("abort", ()).await.unwrap_err();
    let hung = client.checkout().run_timeout(Duration::from_millis(50));
    hung.call::<()>("hang", ()).await.unwrap_err();
    let details = |after| ServerStatus::read_details(&path, after, None).unwrap();
    until("both deaths", || details(0).last_death == 2).await;

    // A second may not be enough to resolve a stack on a busy machine.
    let mut deaths = Vec::new();
    until("both deaths with the stack", || {
        deaths = details(0).recent_deaths;
        deaths.len() == 2 && deaths[1].stack.is_some()
    })
    .await;
    let causes: Vec<_> =
        deaths.iter().map(|it| (it.number, &*it.cause, it.method.as_deref())).collect();
    assert_eq!(causes, [(1, "signaled", Some("abort")), (2, "timed_out", Some("hang"))]);
    let without_stacks = ServerStatus::read_deaths(&path, 1).unwrap().recent_deaths;
    let told: Vec<_> = without_stacks.iter().map(|it| (it.number, &it.stack)).collect();
    assert_eq!(told, [(2, &None)]);
    assert!(deaths[0].text.contains("SIGABRT during a call"), "{}", deaths[0].text);
    assert_eq!(deaths[0].stack, None);
    assert!(deaths[1].stack.as_ref().is_some_and(|stack| stack.contains("park")), "{deaths:?}");
    assert!(deaths.iter().all(|it| it.peer.is_some() && it.at > 0.0), "{deaths:?}");
    assert_eq!(details(1).recent_deaths.len(), 1);
    assert_eq!(details(2).recent_deaths.len(), 0);
    // A worker that leaves in order is no such death.
    drop(client);
    until("no worker is left", || details(0).workers.is_empty()).await;
    assert_eq!(details(0).last_death, 2);
});

trial!(status_shows_where_a_call_is_and_kills_its_worker, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _program = programs::start(&["serve", &address]);
    let path = folder.path().join("s.status");
    let client = Client::builder().address(&address).min_workers(0).max_workers(1);
    let client = client.timeout(None).build().unwrap();
    client.call::<()>("nothing", ()).await.unwrap();
    let hanging = client.checkout();
    let call = hanging.call::<()>("hang", ());
    let busy = || {
        let status = ServerStatus::read(&path).unwrap();
        status.workers.iter().find(|it| it.state == "busy").map(|it| it.number)
    };
    until("a busy worker", || busy().is_some()).await;
    let number = busy().unwrap();
    let stack = || {
        let status = ServerStatus::read_details(&path, 0, Some(number)).unwrap();
        status.workers.into_iter().find(|it| it.number == number).unwrap().stack
    };
    let mut shown = None;
    until("its stack", || {
        shown = stack();
        shown.is_some()
    })
    .await;
    assert!(shown.as_ref().is_some_and(|stack| stack.contains("park")), "{shown:?}");
    assert_eq!(busy(), Some(number), "it runs on");
    let worker = ServerStatus::read(&path).unwrap().workers.remove(0);
    assert!(worker.cpu_seconds.is_some() && worker.stack.is_none() && worker.client.is_some());

    let done = |status: std::io::Result<ServerStatus>| status.unwrap().done;
    assert_eq!(done(ServerStatus::kill(&path, 4_000_000, None)), Some(false));
    assert_eq!(done(ServerStatus::kill(&path, number, Some(1))), Some(false));
    assert_eq!(done(ServerStatus::dismiss(&path, number, Some(1))), Some(false));
    assert_eq!(busy(), Some(number), "another number or process id kills nobody");
    assert_eq!(done(ServerStatus::read(&path)), None);
    assert_eq!(done(ServerStatus::kill(&path, number, Some(worker.pid))), Some(true));
    let error = call.await.unwrap_err().to_string();
    assert!(error.contains("SIGKILL"), "{error}");
    let deaths = ServerStatus::read_details(&path, 0, None).unwrap().recent_deaths;
    assert!(deaths[0].text.ends_with("it was killed through the status socket"), "{deaths:?}");
    assert_eq!(ServerStatus::read(&path).unwrap().deaths["signaled"], 1);
});

trial!(status_shows_who_waits_for_a_worker, async || {
    let server = Server::spawn("max_workers").unwrap();
    let client = || {
        let client = Client::builder().address(server.address()).min_workers(0);
        client.max_workers(2).build().unwrap()
    };
    let (first, second) = (client(), client());
    let held = [first.checkout(), first.checkout()];
    for checkout in &held {
        checkout.call::<()>("nothing", ()).await.unwrap();
    }
    let waiting = second.call::<()>("nothing", ());
    until("a connection waits", || server.status().unwrap().waiting == 1).await;
    let status = server.status().unwrap();
    let shown = &status.waiting_clients[0];
    assert!(shown.peer.is_some() && shown.seconds < 60.0, "{shown:?}");
    drop((held, first));
    waiting.await.unwrap();
    let status = server.status().unwrap();
    assert_eq!((status.waits.count(), status.waiting_clients.len()), (3, 0));
});
