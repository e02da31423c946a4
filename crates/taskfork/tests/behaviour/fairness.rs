//! More clients than workers: the server serves waiting clients in turn, and none waits for ever.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use taskfork::server::ServerStatus;
use taskfork::{Checkout, Client};

use crate::support::processes::{Program, signal};
use crate::support::raw::{Raw, map, text};
use crate::support::{address_in, programs, trial, until};

/// Starts a server with `options` at a socket in `folder`.
fn server(folder: &tempfile::TempDir, options: &[&str]) -> Program {
    let address = address_in(folder);
    programs::start(&[&["serve_guarded", &*address], options].concat())
}

fn status(folder: &tempfile::TempDir) -> Option<ServerStatus> {
    ServerStatus::read(folder.path().join("s.status")).ok()
}

fn client(folder: &tempfile::TempDir, workers: usize) -> Client {
    let client = Client::builder().address(address_in(folder)).min_workers(0).max_workers(workers);
    client.build().unwrap()
}

/// Starts a server with one worker, and takes the worker.
async fn busy_server(folder: &tempfile::TempDir) -> (Program, Checkout) {
    let program = server(folder, &["max_workers=1"]);
    let held = client(folder, 1).checkout();
    held.call::<()>("nothing", ()).await.unwrap();
    (program, held)
}

/// Makes a client hold this number of idle workers.
async fn hold_idle(client: &Client, workers: usize) {
    let checkouts: Vec<_> = (0..workers).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        checkout.call::<()>("nothing", ()).await.unwrap();
    }
    drop(checkouts);
    until("all are idle", || client.stats().idle == workers).await;
}

trial!(a_client_that_idles_makes_room_for_another, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = server(&folder, &["max_workers=2"]);
    let (first, second) = (client(&folder, 2), client(&folder, 2));
    hold_idle(&first, 2).await;
    assert_eq!(second.call::<i64>("add", (2, 3)).await.unwrap(), 5);
    let deaths = status(&folder).unwrap().deaths;
    assert_eq!(deaths.get("made_room"), Some(&1), "{deaths:?}");
    // What it has lost it does not miss.
    for number in 0..20 {
        assert_eq!(first.call::<i64>("add", (number, 1)).await.unwrap(), number + 1);
        assert_eq!(second.call::<i64>("add", (number, 2)).await.unwrap(), number + 2);
    }
});

/// The test program that is a client which holds workers and does nothing with them.
pub(crate) fn idle(address: &str, workers: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::builder().address(address).min_workers(workers).max_workers(workers);
        let client = client.build().unwrap();
        client.call::<()>("nothing", ()).await.unwrap();
        std::future::pending::<()>().await;
    });
}

trial!(a_program_that_idles_makes_room_for_another, async || {
    let folder = tempfile::tempdir().unwrap();
    let _server = server(&folder, &["max_workers=3"]);
    let _idle = programs::start(&["idle_client", &address_in(&folder), "3"]);
    let all_idle = || {
        let workers = status(&folder).map(|status| status.workers).unwrap_or_default();
        workers.iter().filter(|worker| worker.state == "idle").count() == 3
    };
    until("it holds all workers", all_idle).await;
    let client = client(&folder, 3);
    assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
});

trial!(waiting_clients_are_served_in_order_of_arrival, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, held) = busy_server(&folder).await;
    let file = folder.path().join("order").display().to_string();
    let mut calls = Vec::new();
    for (number, letter) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let client = client(&folder, 1);
        let call = client.call::<()>("append", (&file, letter));
        until("it waits", || status(&folder).is_some_and(|it| it.waiting == number + 1)).await;
        calls.push((client, call));
    }
    drop(held);
    for (_, call) in &mut calls {
        call.await.unwrap();
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "abcde");
    let status = status(&folder).unwrap();
    assert_eq!((status.waiting, status.refused), (0, 0));
});

trial!(three_busy_clients_all_make_progress, async || {
    const PARTS: usize = 4;
    let folder = tempfile::tempdir().unwrap();
    let _program = server(&folder, &["max_workers=3"]);
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    // Always more checkouts than there are workers, a few, and one at a time with pauses.
    let greed = [(20, 1, 0), (3, 5, 0), (1, 1, 30)];
    let done = greed.map(|(checkouts, work, pause)| {
        let client = client(&folder, 20);
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..checkouts {
            let (client, done, stop) = (client.clone(), done.clone(), stop.clone());
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    client.call::<()>("sleep", (work,)).await.unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            }));
        }
        done
    });
    let mut before = [0; 3];
    for part in 0..PARTS {
        tokio::time::sleep(Duration::from_secs(10) / PARTS as u32).await;
        let now = done.each_ref().map(|done| done.load(Ordering::SeqCst));
        assert!(
            now.iter().zip(before).all(|(now, before)| *now > before),
            "{part}: {before:?} {now:?}"
        );
        before = now;
    }
    stop.store(true, Ordering::SeqCst);
    // No call has failed.
    for task in tasks {
        task.await.unwrap();
    }
});

trial!(a_json_client_waits_as_well, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = server(&folder, &["max_workers=1"]);
    let client = client(&folder, 1);
    let held = client.checkout();
    held.call::<()>("nothing", ()).await.unwrap();
    let mut stream = UnixStream::connect(folder.path().join("s")).unwrap();
    stream.write_all(br#"["do",{},"add",2,3]"#).unwrap();
    until("it waits", || status(&folder).is_some_and(|it| it.waiting == 1)).await;
    drop(held);
    let mut answer = [0; 11];
    let read = tokio::task::spawn_blocking(move || {
        stream.read_exact(&mut answer).unwrap();
        (answer, stream)
    });
    let (answer, stream) = read.await.unwrap();
    assert_eq!(std::str::from_utf8(&answer).unwrap().replace(' ', ""), r#"["ok",{},5]"#);
    // Its worker makes room as well, if no other can.
    (&stream).write_all(br#"["dn",{}]"#).unwrap();
    assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
    drop(stream);
});

trial!(clients_that_leave_the_queue_are_removed, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, _held) = busy_server(&folder).await;
    let other = client(&folder, 1);
    let waiting = other.call::<()>("nothing", ());
    until("it waits", || status(&folder).is_some_and(|it| it.waiting == 1)).await;
    drop((waiting, other));
    until("it has left", || status(&folder).is_some_and(|it| it.waiting == 0)).await;
    // One whose call is too late needs no worker any more.
    let late = client(&folder, 1);
    let checkout = late.checkout().timeout(Duration::from_millis(200));
    let error = checkout.call::<()>("nothing", ()).await.unwrap_err().to_string();
    assert!(error.contains("it has all of its 1 workers (max_workers)"), "{error}");
    until("it has left", || status(&folder).is_some_and(|it| it.waiting == 0)).await;
    drop(checkout);
});

trial!(a_server_that_shuts_down_does_not_wait_for_its_queue, async || {
    let folder = tempfile::tempdir().unwrap();
    let (program, held) = busy_server(&folder).await;
    let other = client(&folder, 1);
    let _waiting = other.call::<()>("nothing", ());
    until("it waits", || status(&folder).is_some_and(|it| it.waiting == 1)).await;
    signal(program.pid(), libc::SIGTERM);
    drop(held);
    assert!(program.end().await.success());
});

trial!(a_waiting_client_receives_its_place_in_the_queue, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, held) = busy_server(&folder).await;
    let (mut raw, first) = Raw::greeted(&folder.path().join("s")).await;
    let reason = text("it has all of its 1 workers (max_workers)");
    assert_eq!(first, taskfork::client::Value::Array(vec![9.into(), map(&[("reason", reason)])]));
    drop(held);
    // The hello follows, without another preamble.
    let hello = raw.receive().unwrap();
    assert_eq!(hello[0], 0.into());
    raw.call("add", vec![2.into(), 3.into()]);
    assert_eq!(raw.receive().unwrap()[2], 5.into());
});

trial!(a_spare_worker_serves_a_waiting_client, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = server(&folder, &["max_workers=2", "spare_workers=1"]);
    let clients = [0; 3].map(|_| client(&folder, 2));
    for round in 0..5 {
        for client in &clients {
            assert_eq!(client.call::<i64>("add", (round, 1)).await.unwrap(), round + 1);
        }
    }
});
