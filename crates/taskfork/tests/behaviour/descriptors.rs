//! Descriptors that come without a message that tells of them, from the first byte of a connection on.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use rustix::net::Shutdown;
use taskfork::Client;
use taskfork::client::Value;

use crate::files::{open_here, try_send_with};
use crate::support::processes::children;
use crate::support::raw::{Raw, agreed, frame, greet, map};
use crate::support::{address_in, programs, trial, until};

/// The most unclaimed descriptors of one connection.
const MOST: usize = 64;

trial!(a_client_holds_few_descriptors_of_a_worker, async || {
    // In a process of its own, as other tests open and close files meanwhile.
    programs::run("few_descriptors").await;
});

/// When a worker sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    BeforeGreeting,
    WithinGreeting,
    DuringCall,
    NotReading,
}

/// The test program of that test.
pub(crate) async fn hold_few() {
    for when in [When::BeforeGreeting, When::WithinGreeting, When::DuringCall, When::NotReading] {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = sent.clone();
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let count = send_many(Raw(socket), when);
                counter.fetch_add(count, SeqCst);
            }
        });
        let done = Arc::new(AtomicBool::new(false));
        let counted = {
            let done = done.clone();
            std::thread::spawn(move || {
                let mut most = 0;
                while !done.load(SeqCst) {
                    most = most.max(open_here());
                }
                most
            })
        };
        let before = open_here();
        let client = Client::builder().address(address_in(&folder)).min_workers(0).max_workers(1);
        let client = client.timeout(Duration::from_millis(500)).build().unwrap();
        let error = client.call::<Value>("any", ()).await.unwrap_err();
        done.store(true, SeqCst);
        let most = counted.join().unwrap();
        // More are open: those that are sent, the sockets of both sides, and those of the runtime and this test.
        assert!(most <= before + MOST + 16 + 16, "{when:?}: {before}, then {most}: {error}");
        // The other side may still be about to notice the end.
        until(&format!("{when:?}: {error}"), || sent.load(SeqCst) >= MOST).await;
        if when != When::NotReading {
            assert!(
                [
                    "differs from the number that messages announce",
                    "before a message announced them"
                ]
                .iter()
                .any(|text| error.to_string().contains(text)),
                "{error}"
            );
        }
    }
}

/// Sends up to 1,600 descriptors, 16 with each byte; gives how many were sent.
fn send_many(mut raw: Raw, when: When) -> usize {
    // Nothing, a part of the preamble, or of a frame that never ends.
    let bytes = match when {
        When::BeforeGreeting => b"taskfork\xff\x3f\0\0".to_vec(),
        When::WithinGreeting => {
            raw.send(b"taskfork\xff\x3f\0\0");
            vec![]
        }
        When::DuringCall => {
            greet(&mut raw, 1);
            raw.send(b"\xff\xff\0\0");
            vec![]
        }
        When::NotReading => {
            greet(&mut raw, 0);
            rustix::net::shutdown(&raw.0, Shutdown::Read).unwrap();
            [agreed(1 << 20), frame(vec![7.into(), map(&[])]).repeat(100)].concat()
        }
    };
    let files = [(); 16].map(|()| std::fs::File::open("/dev/null").unwrap().into());
    let mut sent = 0;
    for number in 0..100 {
        let byte = bytes.get(number).copied().unwrap_or(7);
        if try_send_with(&raw, &[byte], &files).is_err() {
            break;
        }
        sent += files.len();
    }
    let _ = raw.0.flush();
    raw.drain();
    sent
}

trial!(a_worker_holds_few_descriptors_of_a_client, async || {
    let folder = tempfile::tempdir().unwrap();
    let program = programs::start(&["serve_files", &address_in(&folder)]);
    for first in [&b""[..], b"taskfork\xff\x3f\0\0", b"[\"do\", {}, \""] {
        let mut raw = Raw::connect(&folder.path().join("s")).await;
        raw.send(first);
        let files = [(); 16].map(|()| std::fs::File::open("/dev/null").unwrap().into());
        let (mut sent, mut most) = (0, 0);
        for number in 0..100 {
            // Blanks, which begin nothing.
            let byte = if first.is_empty() { b' ' } else { b'x' };
            if try_send_with(&raw, &[byte], &files).is_err() {
                break;
            }
            sent += files.len();
            for worker in children(program.pid()) {
                let listed = std::fs::read_dir(format!("/proc/{worker}/fd"));
                most = most.max(listed.map_or(0, Iterator::count));
            }
            // So that the worker reads them one by one.
            std::thread::sleep(Duration::from_millis(if number < 10 { 5 } else { 0 }));
        }
        raw.drain();
        // It has a few of its own.
        assert!(most <= MOST + 16, "{most} after {sent} to {:?}", String::from_utf8_lossy(first));
    }
});
