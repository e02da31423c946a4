//! Clients that say nothing, too little, too slowly or nonsense: they cost a descriptor and no worker.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use taskfork::Client;
use taskfork::client::Value;

use crate::perl::message;
use crate::support::access_control::Guarded;
use crate::support::processes::signal;
use crate::support::raw::{Raw, frame, map, text};
use crate::support::{trial, until};

/// The sockets that this process opens, and some more.
const DESCRIPTORS: u64 = 6000;
const SILENT: usize = 5000;

/// Lets this process open enough descriptors.
fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < DESCRIPTORS) {
        let raised = Rlimit { current: Some(DESCRIPTORS), maximum: limit.maximum };
        setrlimit(Resource::Nofile, raised).unwrap();
    }
}

/// Makes silent connections one after the other, while a good client is served by a new worker for each
/// call; gives the silent ones and how many calls there were.
async fn flood<T: Send + 'static>(
    address: String,
    connect: impl Fn() -> std::io::Result<T> + Send + 'static,
) -> (Vec<T>, usize) {
    raise_limit();
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let silent = std::thread::spawn(move || {
        let silent: Vec<T> = (0..SILENT).map(|_| connect().unwrap()).collect();
        over.store(true, SeqCst);
        silent
    });
    let client = Client::builder().address(address).min_workers(0).max_workers(1).max_checkouts(1);
    let client = client.build().unwrap();
    let (mut calls, mut worst) = (0, Duration::ZERO);
    // At least some of them when all silent ones are there.
    let mut after = 0;
    while after < 20 {
        after += usize::from(is_over.load(SeqCst));
        let start = Instant::now();
        assert_eq!(client.call::<i64>("add", (calls as i64, 1)).await.unwrap(), calls as i64 + 1);
        worst = worst.max(start.elapsed());
        calls += 1;
    }
    eprintln!("the worst of {calls} calls among {SILENT} silent connections took {worst:?}");
    // A silent connection is closed after 10 seconds. A call that waited for that would take as long.
    assert!(worst < Duration::from_secs(8), "{worst:?}");
    (silent.join().unwrap(), calls)
}

trial!(five_thousand_silent_connections_delay_no_client, async || {
    let server = Guarded::start(&[]).await;
    let path = server.path();
    let (silent, calls) = flood(server.address(), move || UnixStream::connect(&path)).await;
    let status = server.status();
    // The client's next worker may have been forked already.
    let workers = calls..=calls + 1;
    assert!(workers.contains(&(status.forked as usize)), "{} {calls}", status.forked);
    assert!(workers.contains(&server.set_ups()), "{} {calls}", server.set_ups());
    assert!(status.handshakes <= 1000, "{}", status.handshakes);
    assert!(status.handshake_failures >= 4000, "{}", status.handshake_failures);
    drop(silent);
    server.until_waiting(0).await;
    let lines = server.log().lines().count();
    assert!(lines < 1000, "{lines} lines");
});

trial!(five_thousand_silent_connections_on_tcp_are_closed_in_the_end, async || {
    let (server, port) = Guarded::start_tcp(&[]).await;
    let connect = move || TcpStream::connect(("127.0.0.1", port));
    let (silent, calls) = flood(format!("tcp:127.0.0.1:{port}"), connect).await;
    let workers = calls..=calls + 1;
    assert!(workers.contains(&(server.status().forked as usize)));
    server.until_waiting(0).await;
    assert_eq!(server.status().handshake_failures, SILENT as u64);
    for mut silent in silent {
        silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    }
    assert!(workers.contains(&server.set_ups()));
    let log = server.log();
    assert!(log.contains("was not complete after 10 seconds (handshake_timeout)"), "{log}");
});

fn hello() -> Vec<u8> {
    let known =
        [("versions", Value::Array(vec![1.into()])), ("name", text("x".repeat(200).as_str()))];
    [&b"taskfork"[..], &frame(vec![0.into(), map(&known)])].concat()
}

trial!(a_slow_hello_is_closed_after_the_handshake_timeout, async || {
    let server = Guarded::start(&["handshake_timeout=500"]).await;
    let json = format!("[\"do\",{{}},\"echo\",\"{}\"]", "x".repeat(200)).into_bytes();
    for (stream, answer) in [(hello(), &b"taskfork"[..]), (json, b"[\"er\",{},")] {
        let mut raw = Raw::connect(&server.path()).await;
        let mut read = raw.0.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            let _ = read.read_to_end(&mut all);
            all
        });
        // Slower than the time allows, byte by byte, until the server has had enough.
        for byte in stream {
            if raw.0.write_all(&[byte]).is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let said = reader.join().unwrap();
        assert!(said.starts_with(answer), "{:?}", String::from_utf8_lossy(&said));
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("(handshake_timeout)"), "{said}");
    }
    server.assert_untouched();
    assert_eq!(server.status().handshake_failures, 2);
});

trial!(garbage_in_place_of_a_hello_forks_no_worker, async || {
    let server = Guarded::start(&[]).await;
    let over = [&b"taskfork"[..], &(16_385_u32.to_le_bytes())].concat();
    let cases = [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "does not speak this protocol: it began with \"GET / HT"),
        (b"\x16\x03\x01", "does not speak this protocol"),
        (b"task-fork", "does not speak this protocol"),
        (&[b' '; 5000], "does not speak this protocol"),
        (b"  x", "does not speak this protocol"),
        (&over, "a frame of 16385 bytes is over the limit of 16384"),
    ];
    for (count, (bytes, reason)) in cases.into_iter().enumerate() {
        let mut raw = Raw::connect(&server.path()).await;
        raw.send(bytes);
        let said = String::from_utf8_lossy(&raw.drain()).into_owned();
        assert!(said.is_empty() || said.contains(reason), "{said}");
        until("the log line", || server.log().contains(reason)).await;
        assert_eq!(server.status().handshake_failures, count as u64 + 1);
    }
    server.assert_untouched();
});

trial!(half_a_hello_is_closed_after_the_handshake_timeout, async || {
    let server = Guarded::start(&["handshake_timeout=200"]).await;
    for part in [&hello()[..5], &hello()[..12], &hello()[..50], b"[\"do\",{},\"add\",1,"] {
        let mut raw = Raw::connect(&server.path()).await;
        raw.send(part);
        let said = String::from_utf8_lossy(&raw.drain()).into_owned();
        assert!(said.contains("was not complete after 0.2 seconds"), "{said}");
        // One that ends in the middle is no better.
        let mut raw = Raw::connect(&server.path()).await;
        raw.send(part);
        raw.0.shutdown(std::net::Shutdown::Write).unwrap();
        raw.drain();
    }
    server.until_waiting(0).await;
    server.assert_untouched();
    until("the log line", || server.log().contains("closed the connection in the middle of its"))
        .await;
    assert_eq!(server.status().handshake_failures, 8);
});

trial!(a_silent_client_of_the_servers_own_user_is_kept, async || {
    let server = Guarded::start(&[]).await;
    let (mut silent, mut spoken) =
        (Raw::connect(&server.path()).await, Raw::connect(&server.path()).await);
    spoken.send(b"[");
    server.until_waiting(2).await;
    // That takes the default time, which the other has been silent for as well.
    assert!(spoken.drain().starts_with(b"[\"er\",{},"));
    server.until_waiting(1).await;
    server.assert_untouched();
    silent.send(b"[\"do\",{},\"add\",1,2]");
    assert_eq!(message(&mut silent.0).unwrap(), b"[\"ok\",{},3]");
    assert_eq!(server.set_ups(), 1);
});

trial!(a_time_that_is_set_holds_for_the_servers_own_user, async || {
    let server = Guarded::start(&["handshake_timeout=100"]).await;
    assert!(Raw::connect(&server.path()).await.drain().is_empty());
    server.assert_untouched();
    // JSON is not allowed here, so that no client has a reason to be silent.
    let server = Guarded::start(&["protocols=native", "max_handshakes=5"]).await;
    let mut silent = Raw::connect(&server.path()).await;
    server.until_waiting(1).await;
    assert!(silent.drain().is_empty());
    server.assert_untouched();
});

trial!(the_oldest_connection_makes_room_for_a_new_one, async || {
    let server = Guarded::start(&["max_handshakes=2"]).await;
    let mut silent = Vec::new();
    for number in 0..3 {
        silent.push(Raw::connect(&server.path()).await);
        server.until_waiting(2.min(number + 1)).await;
    }
    assert!(silent[0].drain().is_empty());
    until("the log line", || server.log().contains("2 others wait with it (max_handshakes)")).await;
    for silent in &mut silent[1..] {
        silent.send(b"[\"do\",{},\"add\",1,2]");
        assert_eq!(message(&mut silent.0).unwrap(), b"[\"ok\",{},3]");
    }
    let (mut good, _) = Raw::greeted(&server.path()).await;
    good.call("add", vec![1.into(), 2.into()]);
    assert_eq!(good.receive().unwrap().as_array().unwrap()[2], 3.into());
});

async fn pieces(server: &Guarded) {
    // With the first call right behind the hello.
    let call = frame(vec![1.into(), map(&[]), text("add"), Value::Array(vec![2.into(), 3.into()])]);
    let stream = [hello(), call].concat();
    for cut in [1, 8, 11, 12, 13, 100] {
        let mut raw = Raw::connect(&server.path()).await;
        raw.send(&stream[..cut]);
        server.until_waiting(1).await;
        raw.send(&stream[cut..]);
        let mut preamble = [0; 8];
        raw.0.read_exact(&mut preamble).unwrap();
        raw.receive().unwrap();
        assert_eq!(raw.receive().unwrap().as_array().unwrap()[2], 5.into(), "{cut}");
    }
    let stream = b" [\"do\",{},\"add\",2,3][\"do\",{},\"add\",4,5]";
    for cut in [1, 2, 10, 19] {
        let mut raw = Raw::connect(&server.path()).await;
        raw.send(&stream[..cut]);
        server.until_waiting(1).await;
        raw.send(&stream[cut..]);
        assert_eq!(message(&mut raw.0).unwrap(), b"[\"ok\",{},5]", "{cut}");
        assert_eq!(message(&mut raw.0).unwrap(), b"[\"ok\",{},9]", "{cut}");
    }
    // More small pieces than a socket takes while its peer does not read.
    let mut raw = Raw::connect(&server.path()).await;
    for &byte in format!("[\"do\",{{}},\"echo\",\"{}\"]", "x".repeat(2000)).as_bytes() {
        raw.send(&[byte]);
    }
    assert_eq!(message(&mut raw.0).unwrap().len(), 2000 + br#"["ok",{},""]"#.len());
}

trial!(a_hello_in_pieces_is_served, async || {
    pieces(&Guarded::start(&[]).await).await;
});

trial!(a_hello_in_pieces_is_served_by_a_spare_worker, async || {
    let server = Guarded::start(&["spare_workers=1"]).await;
    let is_spare =
        |server: &Guarded| server.status().workers.iter().any(|worker| worker.state == "spare");
    until("a spare worker", || is_spare(&server)).await;
    let mut silent = Raw::connect(&server.path()).await;
    server.until_waiting(1).await;
    // A silent client does not get it.
    assert!(is_spare(&server));
    silent.send(b"[\"do\",{},\"add\",1,2]");
    assert_eq!(message(&mut silent.0).unwrap(), b"[\"ok\",{},3]");
    pieces(&server).await;
});

trial!(a_long_first_message_is_read_by_a_worker_that_is_not_set_up, async || {
    for spare in ["spare_workers=0", "spare_workers=1"] {
        let server = Guarded::start(&["handshake_timeout=1500", spare]).await;
        let long = format!("[\"do\",{{}},\"echo\",\"{}\"]", "x".repeat(300_000)).into_bytes();
        let mut raw = Raw::connect(&server.path()).await;
        raw.send(&long);
        assert_eq!(message_of(&mut raw.0, 300_000 + 12).len(), 300_000 + 12);
        let before = server.set_ups();
        let mut stalled = Raw::connect(&server.path()).await;
        stalled.send(&long[..100_000]);
        let is_read = |server: &Guarded| {
            server.status().workers.iter().any(|worker| worker.state == "greeting")
        };
        until("a worker that reads it", || is_read(&server)).await;
        assert!(stalled.drain().is_empty());
        until("the log line", || {
            server.log().contains("first message was not complete in time (handshake_timeout)")
        })
        .await;
        if spare.ends_with('0') {
            assert_eq!(server.set_ups(), before);
        }
    }
});

/// Reads a message of `length` bytes.
fn message_of(socket: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut all = vec![0; length];
    socket.read_exact(&mut all).unwrap();
    all
}

trial!(a_shutdown_does_not_wait_for_handshakes, async || {
    let server = Guarded::start(&[]).await;
    let mut silent = Raw::connect(&server.path()).await;
    let mut half = Raw::connect(&server.path()).await;
    half.send(b"taskf");
    server.until_waiting(2).await;
    let pid = server.program.pid();
    server.assert_untouched();
    let Guarded { folder, program } = server;
    signal(pid, libc::SIGTERM);
    assert!(program.end().await.success());
    silent.drain();
    half.drain();
    let left: Vec<PathBuf> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [folder.path().join("log")]);
});
