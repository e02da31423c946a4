//! The pool that a good engineer writes instead of using a library: a semaphore, some sockets, and
//! blocking processes that answer messages with a length in front. A process that dies stays dead.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream as BlockingStream;
use std::process::Child;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::roles;

/// A fixed number of workers.
pub struct Pool {
    /// One for each worker that is free. Who holds one finds a connection in `free`.
    permits: Semaphore,
    /// The worker that was used last is used next, as its memory is most likely in the cache.
    free: Mutex<Vec<AsyncBufReader<UnixStream>>>,
    workers: Vec<Child>,
}

impl Pool {
    /// Must run in a runtime.
    pub fn new(workers: usize) -> io::Result<Self> {
        let (mut free, mut children) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let (ours, theirs) = BlockingStream::pair()?;
            children.push(roles::start(&["serve"], theirs.into()));
            ours.set_nonblocking(true)?;
            free.push(AsyncBufReader::new(UnixStream::from_std(ours)?));
        }
        let permits = Semaphore::new(workers);
        Ok(Self { permits, free: Mutex::new(free), workers: children })
    }

    /// Sends `request` to a free worker and gives its answer.
    pub async fn call(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let _permit = self.permits.acquire().await.map_err(io::Error::other)?;
        let taken = self.free.lock().expect("no panic while it was locked").pop();
        let mut worker = taken.expect("a connection for each permit");
        worker.write_all(&message(request)).await?;
        let length = worker.read_u32_le().await?;
        let mut answer = vec![0; length as usize];
        worker.read_exact(&mut answer).await?;
        // Before the permit is given back.
        self.free.lock().expect("no panic while it was locked").push(worker);
        Ok(answer)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

/// The length and the bytes in one piece, so that one system call sends them.
fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("a short message");
    [&length.to_le_bytes(), bytes].concat()
}

/// What a worker runs: it answers each message with the same bytes, until the other side is closed.
pub fn serve(socket: BlockingStream) -> io::Result<()> {
    let mut answers = socket.try_clone()?;
    // One system call reads the length and the bytes.
    let mut requests = BufReader::new(socket);
    loop {
        let mut length = [0; 4];
        requests.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        requests.read_exact(&mut body)?;
        answers.write_all(&message(&body))?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_worker_answers_with_what_it_got() {
        let (mut ours, theirs) = BlockingStream::pair().expect("sockets");
        // A worker that is silent fails the test instead of stopping it.
        ours.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        let worker = std::thread::spawn(move || serve(theirs));
        for request in [&b"first"[..], b"", b"third"] {
            ours.write_all(&message(request)).expect("a worker");
            let mut answer = vec![0; 4 + request.len()];
            ours.read_exact(&mut answer).expect("an answer");
            assert_eq!(answer, message(request));
        }
        drop(ours);
        let ended = worker.join().expect("no panic").expect_err("the end of the connection");
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }
}
