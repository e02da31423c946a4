//! The least that a call or a copy can take: the same work in bare system calls.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::roles;

/// A copy of this program that echoes messages of a fixed length.
pub struct Peer {
    child: Child,
    pub socket: UnixStream,
}

impl Peer {
    pub fn new(bytes: usize) -> Self {
        let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
        let child = roles::start(&["answer", &bytes.to_string()], theirs.into());
        Self { child, socket }
    }

    /// From a thread that blocks.
    pub fn exchange(&mut self, buffer: &mut [u8]) {
        // Both ways at once, as the peer answers only what it has read whole.
        self.socket.write_all(buffer).expect("a peer that reads");
        self.socket.read_exact(buffer).expect("a peer that answers");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A copy of this program that computes for as long as this lives.
pub struct Computing(Child);

impl Computing {
    pub fn start() -> Self {
        let nothing = std::fs::File::open("/dev/null").expect("/dev/null");
        Self(roles::start(&["compute"], nothing.into()))
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One exchange of 64 bytes after the other between a tokio client and a blocking process, each after a pause.
pub fn tokio_latencies(exchanges: usize, pause: Duration) -> Vec<Duration> {
    let peer = Peer::new(64);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        peer.socket.set_nonblocking(true).expect("a socket");
        let socket = peer.socket.try_clone().expect("a socket");
        let mut socket = tokio::net::UnixStream::from_std(socket).expect("a socket");
        let mut times = Vec::new();
        for _ in 0..exchanges {
            rest(pause);
            let (start, mut buffer) = (Instant::now(), [b'x'; 64]);
            socket.write_all(&buffer).await.expect("a peer");
            socket.read_exact(&mut buffer).await.expect("a peer");
            times.push(start.elapsed());
        }
        times
    })
}

fn rest(pause: Duration) {
    if !pause.is_zero() {
        std::thread::sleep(pause);
    }
}

/// The same between two blocking processes.
pub fn blocking_latencies(exchanges: usize, pause: Duration) -> Vec<Duration> {
    let mut peer = Peer::new(64);
    let mut time = |_| {
        rest(pause);
        let start = Instant::now();
        peer.exchange(&mut [b'x'; 64]);
        start.elapsed()
    };
    (0..exchanges).map(&mut time).collect()
}

/// Time of `messages` messages of 64 bytes, in batches of 64. The peer answers each batch at once.
pub fn batches(messages: usize) -> Duration {
    const BATCH: usize = 64;
    let (mut peer, mut buffer) = (Peer::new(64 * BATCH), [b'x'; 64 * BATCH]);
    peer.exchange(&mut buffer);
    let start = Instant::now();
    (0..messages / BATCH).for_each(|_| peer.exchange(&mut buffer));
    start.elapsed()
}

/// Time to send `bytes` bytes through a socket and back.
pub fn exchange(bytes: usize) -> Duration {
    let (mut peer, mut buffer) = (Peer::new(bytes), vec![b'x'; bytes]);
    peer.exchange(&mut buffer);
    let start = Instant::now();
    peer.exchange(&mut buffer);
    start.elapsed()
}

/// Time to copy `bytes` bytes twice in memory.
pub fn copy(bytes: usize) -> Duration {
    let (source, mut target) = (vec![b'x'; bytes], vec![0; bytes]);
    let start = Instant::now();
    for _ in 0..2 {
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&mut target);
    }
    start.elapsed()
}
