//! The log of this process: lines that are written without ever waiting for a reader, and counted where
//! they cannot be written.

mod queue;
mod sink;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use queue::{Queue, Written};
use sink::Sink;

/// Writes the log of a process that must neither wait for the log's reader nor end with it, as a server.
///
/// Give it to a subscriber of the crate `tracing`. The log goes to standard error, or to the file of
/// [`open`](Self::open). What workers print to standard error goes the same way.
///
/// Each write is taken for a line. It never fails and never waits. While the reader takes nothing, up to 256 KiB
/// wait in memory. Lines beyond that are lost, and so are lines that cannot be written, for instance since the
/// disk is full. Their number is the first line that is written when that is possible again. A server tries
/// again by itself after 1 second, and later after up to 32. Workers write to their own standard error instead,
/// which the server reads, and may wait for it.
///
/// ```
/// tracing_subscriber::fmt().with_ansi(false).with_writer(taskfork::server::LogWriter::new).init();
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct LogWriter {}

impl LogWriter {
    /// A writer of this process's log. All of them write to the same.
    ///
    /// ```
    /// use std::io::Write;
    /// writeln!(taskfork::server::LogWriter::new(), "this never fails").unwrap();
    /// ```
    pub fn new() -> Self {
        Self {}
    }

    /// Appends the log to this file from here on, instead of writing it to standard error. The file is made if it
    /// is not there, with the mode 0640 less the umask. A server opens the file again at SIGUSR1, so that a log can
    /// be rotated.
    ///
    /// # Errors
    /// When the file cannot be opened for writing. The log then goes where it went before.
    ///
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("log");
    /// taskfork::server::LogWriter::open(&path)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn open(path: impl Into<PathBuf>) -> io::Result<()> {
        let mut output = lock();
        output.take_over();
        output.sink.open(path.into())
    }
}

impl io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            IS_SUBSCRIBERS.store(true, Relaxed);
            lock().line(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How often a reader that takes nothing is tried again.
const STALLED: Duration = Duration::from_millis(50);

/// After a failure the log is tried again after this time, twice as long after each more, and at most after
/// the other.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(32);

/// At the end of a server so much time is left for what waits.
const LAST_WAIT: Duration = Duration::from_millis(200);

static OUTPUT: Mutex<Output> = Mutex::new(Output {
    owner: 0,
    is_worker: false,
    queue: Queue::new(),
    sink: Sink::new(),
    failure: None,
});

#[derive(Debug)]
pub(crate) struct Output {
    /// The process that writes what waits; a forked one has a copy of this.
    owner: u32,
    /// Standard error is a server's to read.
    is_worker: bool,
    queue: Queue,
    sink: Sink,
    /// When the log is tried again, and how long that is after the failure.
    failure: Option<(Instant, Duration)>,
}

/// Something writes to the log but the server itself: most likely the program's subscriber.
static IS_SUBSCRIBERS: AtomicBool = AtomicBool::new(false);

/// Whether the program's subscriber writes through a [`LogWriter`].
pub(crate) fn is_subscribers() -> bool {
    IS_SUBSCRIBERS.load(Relaxed)
}

/// The log of this process.
pub(crate) fn lock() -> MutexGuard<'static, Output> {
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    /// This process is a server, or any that is no worker: it has a log of its own.
    pub(crate) fn take_over(&mut self) {
        let own = std::process::id();
        if self.owner != own {
            if self.owner != 0 {
                self.leave();
            }
            self.owner = own;
        }
        if std::mem::take(&mut self.is_worker)
            && let Some(path) = self.sink.path().map(PathBuf::from)
        {
            // Without it the log goes to standard error.
            let _ = self.sink.open(path);
        }
    }

    /// In a forked process that is no worker: the log goes where it went before. What waits is the other process's.
    pub(crate) fn inherit(&mut self) {
        self.queue.clear();
        (self.failure, self.is_worker, self.owner) = (None, false, std::process::id());
    }

    /// In a forked process: what waits is the other one's.
    fn leave(&mut self) {
        self.queue.clear();
        self.sink.forget();
        (self.failure, self.is_worker) = (None, true);
    }

    /// Writes a line, or has it wait.
    fn line(&mut self, bytes: &[u8]) {
        let own = std::process::id();
        if self.owner != own {
            if self.owner != 0 {
                self.leave();
            }
            self.owner = own;
        }
        let mut text = bytes.to_vec();
        if text.last() != Some(&b'\n') {
            text.push(b'\n');
        }
        if self.is_worker {
            // Nobody can be told if it fails.
            let _ = io::Write::write_all(&mut io::stderr(), &text);
            return;
        }
        self.queue.push(text);
        self.flush();
    }

    /// Has a line wait that ends with a newline, until [`flush`](Self::flush).
    pub(crate) fn push(&mut self, text: Vec<u8>) {
        self.queue.push(text);
    }

    /// Writes what is taken at once.
    pub(crate) fn flush(&mut self) -> bool {
        let Self { queue, sink, .. } = self;
        let written = queue.flush(|bytes| sink.write(bytes));
        self.failure = match (written, self.failure) {
            (Written::Failed, None) => Some((Instant::now() + FIRST_RETRY, FIRST_RETRY)),
            (Written::Failed, failure) => failure,
            (Written::All | Written::Stalled, _) => None,
        };
        written == Written::All
    }

    /// Tries to write what waits, and to report what was lost, when it is time. Returns the time until the next try.
    pub(crate) fn retry(&mut self) -> Option<Duration> {
        if let Some((at, pause)) = self.failure {
            let now = Instant::now();
            if at > now {
                return Some(at - now);
            }
            let pause = (pause * 2).min(LAST_RETRY);
            self.failure = Some((now + pause, pause));
        } else if self.queue.is_empty() && self.queue.lost() == 0 {
            return None;
        }
        self.queue.report();
        match (self.flush(), self.failure) {
            (true, _) => None,
            (false, Some((_, pause))) => Some(pause),
            (false, None) => Some(STALLED),
        }
    }

    /// Before this process ends: gives a reader that is slow a moment.
    pub(crate) fn finish(&mut self) {
        let until = Instant::now() + LAST_WAIT;
        while !self.flush() && self.failure.is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Opens the log file again. Returns whether there is one.
    pub(crate) fn reopen(&mut self) -> io::Result<bool> {
        let Some(path) = self.sink.path().map(PathBuf::from) else { return Ok(false) };
        self.flush();
        self.sink.open(path)?;
        Ok(true)
    }

    /// All that the log has open but standard error.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sink.descriptors()
    }
}
