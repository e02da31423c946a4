//! What no pool can beat: the same done barely.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A copy of this program that echoes messages of a fixed length.
pub struct Peer {
    child: Child,
    pub socket: UnixStream,
}

impl Peer {
    pub fn new(bytes: usize) -> Self {
        let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
        let child = start(&["answer", &bytes.to_string()], theirs.into());
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
        Self(start(&["compute"], nothing.into()))
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(role: &[&str], stdin: OwnedFd) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(role).stdin(Stdio::from(stdin)).spawn().expect("a copy of this program")
}

/// The roles of such copies.
pub fn play(role: &[String]) -> bool {
    let stdin = || std::io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    match role {
        [role, bytes] if role == "answer" => {
            let mut socket = UnixStream::from(stdin());
            let mut buffer = vec![0; bytes.parse().expect("a number")];
            while socket.read_exact(&mut buffer).is_ok() && socket.write_all(&buffer).is_ok() {}
        }
        [role] if role == "compute" => loop {
            std::hint::spin_loop();
        },
        [role] if role == "fork" => fork_for_ever(UnixListener::from(stdin())),
        _ => return false,
    }
    true
}

/// Forks for each connection and answers requests of 64 bytes in the child, with its process id in front.
fn fork_for_ever(listener: UnixListener) {
    // SAFETY: children are reaped by the kernel; no handler runs.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    while let Ok((mut socket, _)) = listener.accept() {
        // SAFETY: this process has one thread.
        if unsafe { libc::fork() } == 0 {
            let mut buffer = [0; 64];
            while socket.read_exact(&mut buffer).is_ok() {
                buffer[..4].copy_from_slice(&std::process::id().to_ne_bytes());
                if socket.write_all(&buffer).is_err() {
                    break;
                }
            }
            // SAFETY: it ends this process.
            unsafe { libc::_exit(0) };
        }
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

/// A process that forks for each connection.
struct Forker {
    child: Child,
    path: PathBuf,
}

impl Forker {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("taskfork-compare-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket");
        Self { child: start(&["fork"], listener.into()), path }
    }

    /// Connects, and exchanges 64 bytes with the new child; gives its process id as well.
    fn connect(&self) -> (UnixStream, i32) {
        let mut buffer = [b'x'; 64];
        let mut socket = UnixStream::connect(&self.path).expect("a server");
        socket.write_all(&buffer).expect("a child");
        socket.read_exact(&mut buffer).expect("a child");
        let [a, b, c, d, ..] = buffer;
        (socket, i32::from_ne_bytes([a, b, c, d]))
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects to a process that forks, and exchanges 64 bytes with its child.
pub fn fork() -> Duration {
    let forker = Forker::new();
    median(|| {
        let start = Instant::now();
        let (_socket, _) = forker.connect();
        start.elapsed()
    })
}

/// Kills such a child, sees the end of its connection, and does the same again.
pub fn kill() -> Duration {
    let forker = Forker::new();
    median(|| {
        let (mut socket, child) = forker.connect();
        std::thread::sleep(Duration::from_millis(5));
        // SAFETY: a plain system call on a process of this program's own.
        unsafe { libc::kill(child, libc::SIGKILL) };
        let start = Instant::now();
        let ended = socket.read(&mut [0]);
        assert!(matches!(ended, Ok(0)), "it has ended");
        let (_socket, _) = forker.connect();
        start.elapsed()
    })
}

fn median(time: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = std::iter::repeat_with(time).take(21).collect();
    times.sort();
    times[times.len() / 2]
}
