//! The least that new workers and deaths can take: a process that does nothing but fork.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::roles;
use crate::sample::Sample;

/// How often each floor is measured.
const TIMES: usize = 21;

/// A process that forks for each connection.
pub struct Forker {
    process: Child,
    path: PathBuf,
    /// Connections whose children live meanwhile.
    held: Vec<Connection>,
}

/// A connection to a child that answers.
struct Connection {
    socket: UnixStream,
    pid: i32,
}

impl Connection {
    /// Exchanges 64 bytes, and learns the child's process id.
    fn exchange(&mut self) {
        let mut buffer = [b'x'; 64];
        self.socket.write_all(&buffer).expect("a child");
        self.socket.read_exact(&mut buffer).expect("a child");
        let [a, b, c, d, ..] = buffer;
        self.pid = i32::from_ne_bytes([a, b, c, d]);
    }

    fn kill(&self) {
        // SAFETY: a plain system call on a process of this program's own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    fn await_end(&mut self) {
        let ended = self.socket.read(&mut [0]);
        assert!(matches!(ended, Ok(0)), "the connection has ended: {ended:?}");
    }
}

impl Forker {
    /// With `live` children.
    pub fn new(live: usize) -> Self {
        let path = std::env::temp_dir().join(format!("taskfork-compare-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket");
        let process = roles::start(&["fork"], listener.into());
        let mut forker = Self { process, path, held: Vec::new() };
        forker.held = (0..live).map(|_| forker.connect()).collect();
        forker
    }

    /// Connects, and has the first answer of the new child.
    fn connect(&self) -> Connection {
        let mut connection = self.open();
        connection.exchange();
        connection
    }

    fn open(&self) -> Connection {
        let socket = UnixStream::connect(&self.path).expect("a server");
        Connection { socket, pid: 0 }
    }

    /// Connect, fork, round trip. The children live until all have been measured, as no other process
    /// is to exit meanwhile.
    pub fn new_children(&self) -> Sample {
        let mut held = Vec::new();
        let time = |_| {
            let start = Instant::now();
            held.push(self.connect());
            start.elapsed()
        };
        Sample::times((0..TIMES).map(time).collect())
    }

    /// Kills a child. From there on: sees the end of its connection, and connects, forks and makes a
    /// round trip.
    pub fn replace(&self) -> Sample {
        let mut current = self.connect();
        let time = |_| {
            let start = Self::kill(&current);
            current.await_end();
            current = self.connect();
            start.elapsed()
        };
        Sample::times((0..TIMES).map(time).collect())
    }

    /// The same with a child that has been connected before: sees the end, and makes a round trip.
    pub fn replace_by_spare(&self) -> Sample {
        let mut current = self.connect();
        let time = |_| {
            let mut spare = self.connect();
            let start = Self::kill(&current);
            current.await_end();
            spare.exchange();
            let time = start.elapsed();
            current = spare;
            time
        };
        Sample::times((0..TIMES).map(time).collect())
    }

    /// Kills a child while all processes sleep, and returns when it did. The child may end before
    /// `kill` returns, so its end is in the time.
    fn kill(connection: &Connection) -> Instant {
        std::thread::sleep(Duration::from_millis(5));
        let start = Instant::now();
        connection.kill();
        start
    }

    /// Kills all children; until as many new ones have answered.
    pub fn replace_all(&mut self) -> Duration {
        let mut dead = std::mem::take(&mut self.held);
        let start = Instant::now();
        dead.iter().for_each(Connection::kill);
        dead.iter_mut().for_each(Connection::await_end);
        // All at once: the process forks one while another answers.
        let mut live: Vec<_> = dead.iter().map(|_| self.open()).collect();
        for connection in &mut live {
            connection.socket.write_all(&[b'x'; 64]).expect("a child");
        }
        for connection in &mut live {
            connection.socket.read_exact(&mut [0; 64]).expect("a child");
        }
        start.elapsed()
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
