//! What a server tells of itself.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use taskfork::Client;
use taskfork::server::ServerStatus;

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
