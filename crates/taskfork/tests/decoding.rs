//! How much memory the values of a peer take when they are decoded.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]
#![allow(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use taskfork::Client;
use taskfork::client::{Protocol, Value};

/// Counts what is allocated.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: Every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), SeqCst) + layout.size();
        PEAK.fetch_max(held, SeqCst);
        // SAFETY: The caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), SeqCst);
        // SAFETY: `alloc` took it from the system's allocator with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MAX_FRAME: usize = 1 << 20;
/// One for 8 bytes of a frame; the list itself counts as 4.
const MOST: usize = MAX_FRAME / 8 - 8;

fn list(of: &[u8], count: usize) -> Vec<u8> {
    let mut out = vec![0xdd];
    out.extend((count as u32).to_be_bytes());
    out.extend(of.repeat(count));
    out
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

fn message(socket: &mut UnixStream) {
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    socket.read_exact(&mut vec![0; u32::from_le_bytes(length) as usize]).unwrap();
}

/// The peak of memory while a client reads an answer, in multiples of the limit of a frame, and
/// whether it was a result.
fn peak(protocol: Protocol, answer: Vec<u8>) -> (f64, bool) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let worker = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        if protocol == Protocol::Native {
            socket.read_exact(&mut [0; 8]).unwrap();
            message(&mut socket);
            socket.write_all(b"taskfork").unwrap();
            socket.write_all(&framed(b"\x92\x00\x81\xa7version\x01")).unwrap();
            message(&mut socket);
        } else {
            socket.read_exact(&mut [0; 8]).unwrap();
        }
        PEAK.store(HELD.load(SeqCst), SeqCst);
        socket.write_all(&answer).unwrap();
        // It is closed by the other side.
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let before = HELD.load(SeqCst);
    let is_result = runtime.block_on(async {
        let client = Client::builder()
            .address(format!("unix:{}", path.display()))
            .protocol(protocol)
            .max_frame(MAX_FRAME)
            .min_workers(0)
            .build()
            .unwrap();
        client.call::<Value>("x", ()).await.is_ok()
    });
    let peak = PEAK.load(SeqCst).saturating_sub(before);
    drop(runtime);
    worker.join().unwrap();
    (peak as f64 / MAX_FRAME as f64, is_result)
}

/// One test, as memory is counted for the whole process.
#[test]
fn decoded_values_take_at_most_16_times_the_limit_of_a_frame() {
    let native = |value: &[u8]| framed(&[b"\x93\x01\x81\xa4call\x01", value].concat());
    let nested = [&[0x91; 100][..], &[0xc0]].concat();
    let nested_maps = [&b"\x81\xc0".repeat(100)[..], &[0xc0]].concat();
    let mut answers = Vec::new();
    for (of, each) in [
        (&b"\xc0"[..], 1),
        (b"\xa1a", 1),
        (b"\xc4\x01a", 1),
        (b"\x90", 4),
        (b"\x91\xc0", 5),
        (b"\x81\xc0\xc0", 6),
        (&nested, 401),
        (&nested_maps, 501),
    ] {
        let fits = (MOST / each).min((MAX_FRAME - 16) / of.len());
        answers.push((Protocol::Native, native(&list(of, fits)), Some(true)));
        let fills = (MAX_FRAME - 16) / of.len();
        answers.push((Protocol::Native, native(&list(of, fills)), None));
    }
    let mut error = b"\x93\x02\x81\xa4call\x01\x82\xa4kind\xa6method\xa5known".to_vec();
    error.extend(list(b"\xa0", MAX_FRAME - 64));
    answers.push((Protocol::Native, framed(&error), Some(false)));
    for (of, each) in [("1,", 1), ("\"a\",", 1), ("[],", 5), ("{\"a\":1},", 6)] {
        let json = |count: usize| format!("[\"ok\",{{}},[{}1]]", of.repeat(count)).into_bytes();
        let fits = ((MOST - 16) / each).min((MAX_FRAME - 32) / of.len());
        answers.push((Protocol::Perl, json(fits), Some(true)));
        answers.push((Protocol::Perl, json((MAX_FRAME - 32) / of.len()), None));
    }
    for (number, (protocol, answer, is_result)) in answers.into_iter().enumerate() {
        let (times, was_result) = peak(protocol, answer);
        assert!(times <= 16.0, "answer {number} took {times} times the limit of a frame");
        if let Some(expected) = is_result {
            assert_eq!(was_result, expected, "answer {number}");
        }
    }
}
