//! Short messages that go through memory which both sides have, while they are awake.

use std::time::Duration;

use log_defer::Log;
use taskfork::client::{BusyPoll, Value};
use taskfork::error::CallError;
use taskfork::{
    Blob, BoxError, Checkout, Client, Error, Methods, Server, ServerBuilder, ServerError,
};

use crate::files::open_here;
use crate::support::{programs, start, start_with, trial, until};

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("echo", |value: Value| Ok(value))
        .function("blob", |blob: Blob| Ok(blob))
        .function("make", |length: usize| Ok("x".repeat(length)))
        .function("log", |line: String| {
            taskfork::worker::logger().info(line);
            Ok(())
        })
        .function("log_and_sleep", |milliseconds: u64| {
            taskfork::worker::logger().info("it takes long");
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(())
        })
        .function("sleep", |milliseconds: u64| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(())
        })
        .function("append", |file: String, text: String| {
            use std::io::Write;
            let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
            Ok(file?.write_all(text.as_bytes())?)
        })
        .function("fail", || Err::<(), _>("no".into()))
        .function("abort", || -> Result<(), BoxError> { std::process::abort() })
        .function("mapped", || Ok(mapped()))
        .function("open_files", || Ok(open_here()));
    server.interface(methods).run()
}

/// How many rings this process has.
fn mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:taskfork-ring")).count()
}

/// A client that polls for longer than any answer takes, so that it never sleeps.
fn start_awake(entry: &str) -> (taskfork::server::ServerHandle, Client) {
    start_with(entry, |client| client.busy_poll(BusyPoll::Fixed(Duration::from_secs(5))))
}

/// Makes calls until the connection has rings. A busy runtime takes more calls than usual.
async fn warm(checkout: &Checkout) {
    for n in 0..10_000 {
        assert_eq!(checkout.call::<u64>("echo", (n,)).await.unwrap(), n);
        if n > 40 && checkout.call::<usize>("mapped", ()).await.unwrap() == 1 {
            return;
        }
    }
    panic!("there are none");
}

trial!(a_connection_with_many_calls_uses_rings, async || {
    let (_server, client) = start("rings");
    let checkout = client.checkout();
    for _ in 0..20 {
        assert_eq!(checkout.call::<usize>("mapped", ()).await.unwrap(), 0);
    }
    warm(&checkout).await;
    drop(checkout);
    // The connection keeps them for the next checkout.
    assert_eq!(client.call::<usize>("mapped", ()).await.unwrap(), 1);
});

// Also where each call is a checkout's only one, whose end is said along with the next one's call.
trial!(a_connection_with_many_checkouts_uses_rings, async || {
    let (_server, client) = start_with("rings", |client| client.max_workers(1));
    let calls: Vec<_> = (0..200).map(|n: u64| client.call::<u64>("echo", (n,))).collect();
    let mapped = client.call::<usize>("mapped", ());
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), n as u64);
    }
    assert_eq!(mapped.await.unwrap(), 1);
});

trial!(no_rings_over_tcp_or_without_shared_memory, async || {
    for (entry, memory) in [("rings_tcp", 1 << 20), ("rings_none", 1 << 20), ("rings", 0)] {
        let (_server, client) = start_with(entry, |client| client.shared_memory(memory));
        let checkout = client.checkout();
        for n in 0..100 {
            assert_eq!(checkout.call::<u64>("echo", (n,)).await.unwrap(), n);
        }
        assert_eq!(checkout.call::<usize>("mapped", ()).await.unwrap(), 0, "{entry}");
    }
});

trial!(messages_keep_their_order_across_ring_and_socket, async || {
    for entry in ["rings", "rings_awake"] {
        let (_server, client) = start_awake(entry);
        let (messages, logged) = std::sync::mpsc::channel();
        let log = Log::new(move |message| messages.send(message).unwrap());
        let checkout = client.checkout().log(&log);
        warm(&checkout).await;
        let lengths = [0, 10, 5000, 100, 60_000, 4, 300_000, 4000, 1];
        let mut answers = Vec::new();
        for (n, &length) in lengths.iter().cycle().take(300).enumerate() {
            let said = "y".repeat(lengths[n * 7 % lengths.len()].min(20_000));
            let blob = Blob::from(vec![n as u8; said.len()]);
            answers.push((
                (length, said.clone(), blob.clone()),
                checkout.call::<String>("make", (length,)),
                checkout.call::<String>("echo", (said,)),
                checkout.call::<Blob>("blob", (blob,)),
                checkout.call::<()>("log", (n.to_string(),)),
            ));
        }
        for ((length, said, sent), made, echoed, blob, logged) in answers {
            assert_eq!(made.await.unwrap().len(), length);
            assert_eq!(echoed.await.unwrap(), said);
            assert_eq!(blob.await.unwrap(), sent);
            logged.await.unwrap();
        }
        drop((checkout, log));
        let logs = logged.recv().unwrap().logs;
        assert_eq!(logs.len(), 300);
        for (n, line) in logs.iter().enumerate() {
            assert!(format!("{line:?}").contains(&format!("{:?}", n.to_string())), "{line:?}");
        }
    }
});

// What a call logs is sent while it runs, through the socket.
trial!(a_log_sent_during_a_call_keeps_its_place, async || {
    let (_server, client) = start_with("rings_awake", |client| {
        client.busy_poll(BusyPoll::Fixed(Duration::from_secs(5))).timeout(Duration::from_secs(5))
    });
    let (messages, logged) = std::sync::mpsc::channel();
    let log = Log::new(move |message| messages.send(message).unwrap());
    let checkout = client.checkout().log(&log);
    warm(&checkout).await;
    checkout.call::<()>("log_and_sleep", (200,)).await.unwrap();
    for n in 0..100 {
        assert_eq!(checkout.call::<u64>("echo", (n,)).await.unwrap(), n);
    }
    drop((checkout, log));
    assert_eq!(logged.recv().unwrap().logs.len(), 1);
});

trial!(a_failed_call_drops_the_calls_pipelined_after_it, async || {
    let (_server, client) = start_awake("rings_awake");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file").display().to_string();
    let checkout = client.checkout();
    warm(&checkout).await;
    for round in 0..50 {
        let before: Vec<_> = (0..round).map(|n| checkout.call::<u64>("echo", (n,))).collect();
        let fails = checkout.call::<()>("fail", ());
        let behind = checkout.call::<()>("append", (file.clone(), "x"));
        for (n, call) in before.into_iter().enumerate() {
            assert_eq!(call.await.unwrap(), n as u64);
        }
        assert!(!fails.await.unwrap_err().is_fatal());
        let dropped = behind.await.unwrap_err();
        assert!(matches!(dropped, Error::Call { error: CallError::Dropped { .. }, .. }));
    }
    assert_eq!(checkout.call::<usize>("mapped", ()).await.unwrap(), 1);
    assert!(!std::fs::exists(file).unwrap());
});

trial!(a_dropped_call_is_cancelled_while_its_neighbours_run, async || {
    let (_server, client) = start_awake("rings_awake");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file").display().to_string();
    let checkout = client.checkout();
    warm(&checkout).await;
    let first = checkout.call::<()>("append", (file.clone(), "first"));
    let slow = checkout.call::<()>("sleep", (100,));
    let not_wanted = checkout.call::<()>("append", (file.clone(), "not wanted"));
    let last = checkout.call::<()>("append", (file.clone(), ", last"));
    // Those behind it have been sent along with it.
    first.await.unwrap();
    drop(not_wanted);
    slow.await.unwrap();
    last.await.unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "first, last");
});

// An answer that comes while its caller sleeps is heard at once, whatever the worker does next.
trial!(an_answer_does_not_wait_for_the_next_call, async || {
    let (_server, client) = start_with("rings_awake", |client| client.busy_poll(BusyPoll::Off));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let checkout = client.checkout();
    warm(&checkout).await;
    for round in 0..20 {
        let first = checkout.call::<u64>("echo", (round,));
        let second = checkout.call::<u64>("echo", (round,));
        let slow = checkout.call::<()>("sleep", (50,));
        let last = checkout.call::<()>("append", (file.display().to_string(), "x"));
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (round, round));
        assert!(!file.exists());
        slow.await.unwrap();
        last.await.unwrap();
        std::fs::remove_file(&file).unwrap();
    }
});

trial!(answers_arrive_before_a_death_notice, async || {
    for entry in ["rings", "rings_awake"] {
        let (_server, client) = start_awake(entry);
        for before in [0, 1, 50, 500] {
            let checkout = client.checkout();
            warm(&checkout).await;
            let answered: Vec<_> =
                (0..before).map(|n| checkout.call::<u64>("echo", (n,))).collect();
            let dies = checkout.call::<()>("abort", ());
            let behind = checkout.call::<u64>("echo", (7,));
            for (n, call) in answered.into_iter().enumerate() {
                assert_eq!(call.await.unwrap(), n as u64);
            }
            let died = dies.await.unwrap_err();
            assert!(died.may_have_run() && died.to_string().contains("SIGABRT"), "{died}");
            let behind = behind.await.unwrap_err();
            assert!(behind.is_fatal() && !behind.may_have_run(), "{behind}");
        }
    }
});

trial!(a_call_left_in_the_ring_of_a_recycled_worker_runs_on_another, async || {
    let (_server, client) = start_awake("rings_worn_out");
    for n in 0..2000_u64 {
        assert_eq!(client.call::<u64>("echo", (n,)).await.unwrap(), n);
    }
});

// Both sides sleep between messages for various times. Each message wakes its receiver.
trial!(sleeping_peers_are_woken, async || {
    let (_server, client) = start("rings");
    let (one, other) = (client.checkout(), client.checkout());
    warm(&one).await;
    warm(&other).await;
    for n in 0..300_u64 {
        let calls: Vec<_> = (0..n % 5).map(|n| one.call::<u64>("echo", (n,))).collect();
        let slow = other.call::<()>("sleep", (n % 3,));
        if n % 2 == 0 {
            tokio::time::sleep(Duration::from_micros(37 * n)).await;
        }
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap(), n as u64);
        }
        slow.await.unwrap();
    }
    // Calls that are not awaited run too.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let name = file.display().to_string();
    let kept = ["a", "b", "c"].map(|text| one.call::<()>("append", (name.clone(), text)));
    until("all to have run", || std::fs::read_to_string(&file).is_ok_and(|it| it == "abc")).await;
    drop(kept);
});

trial!(ended_workers_leave_no_ring_or_descriptor, async || {
    // Other tests have rings and open files meanwhile.
    programs::run("release_rings").await;
});

/// The test program of that test.
pub(crate) async fn release_all() {
    let (_server, client) = start_with("rings", |client| client.max_workers(1));
    let before: usize = client.call("open_files", ()).await.unwrap();
    let here = open_here();
    for _ in 0..5 {
        let checkout = client.checkout();
        warm(&checkout).await;
        // A connection has a second descriptor while calls follow each other quickly.
        assert!(mapped() == 1 && (here..=here + 1).contains(&open_here()), "{}", open_here());
        assert_eq!(checkout.call::<usize>("open_files", ()).await.unwrap(), before);
        assert!(checkout.call::<()>("abort", ()).await.unwrap_err().is_fatal());
        drop(checkout);
        until("the rings of a dead worker to go", || mapped() == 0).await;
    }
}

/// The test program that is a server.
pub(crate) fn serve_at(address: &str) -> Result<(), ServerError> {
    server(Server::builder().listen(address).socket_mode(0o666))
}
