//! The log of this process. Writing never waits for a reader. Lines that cannot be written are
//! counted.

mod queue;
mod sink;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use queue::{Queue, WriteResult};
use sink::Sink;

use crate::sync;

/// A writer for the log of a process that must neither wait for the log's reader nor end with it,
/// such as a server.
///
/// Pass it to a subscriber of the crate `tracing`. The log goes to standard error, or to the file
/// of [`open`](Self::open). The lines that workers write to standard error go to the same place.
///
/// Each write is one line. It never fails and never blocks. While the reader takes nothing, up to
/// 256 KiB wait in memory. Further lines are lost, and so are lines that cannot be written, for
/// example because the disk is full. When writing works again, the number of lost lines comes
/// first. A server tries again after 1 second, and later after up to 32 seconds.
///
/// In a worker the log goes to the worker's standard error. The server reads that, and the worker
/// may wait for it.
///
/// ```
/// tracing_subscriber::fmt().with_ansi(false).with_writer(taskfork::server::LogWriter::new).init();
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct LogWriter {}

impl LogWriter {
    /// Returns a writer of this process's log. All writers write to the same log.
    ///
    /// ```
    /// use std::io::Write;
    /// writeln!(taskfork::server::LogWriter::new(), "this never fails").unwrap();
    /// ```
    pub fn new() -> Self {
        Self {}
    }

    /// Appends the log to this file from now on. Defaults to standard error. A missing file is
    /// created with the mode 0640 less the umask. A server reopens the file at SIGUSR1, for log
    /// rotation.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be opened for writing. The log then goes where it went
    /// before.
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
        output.open(path.into())
    }
}

impl io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            HAS_SUBSCRIBER.store(true, Relaxed);
            lock().line(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How soon a write is tried again if the reader takes nothing.
const STALL_INTERVAL: Duration = Duration::from_millis(50);

/// How soon a write is tried again after a failure. The time doubles with each further failure, up
/// to the second value.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(32);

/// How long the end of a server waits for a slow reader.
const FINISH_TIMEOUT: Duration = Duration::from_millis(200);

static OUTPUT: Mutex<Output> = Mutex::new(Output {
    owner: 0,
    is_worker: false,
    queue: Queue::new(),
    sink: Sink::new(),
    failure: None,
});

#[derive(Debug)]
pub(crate) struct Output {
    /// The process that writes the queue. A forked process has a copy of it.
    owner: u32,
    /// This process is a worker, so its server reads its standard error.
    is_worker: bool,
    queue: Queue,
    sink: Sink,
    /// When a failed write is tried again, and how long the pause was.
    failure: Option<(Instant, Duration)>,
}

/// Whether lines wait, or lost lines have not been reported. The server locks the log only then: a lock
/// writes to a page that workers share, and the kernel would copy it.
static IS_DUE: AtomicBool = AtomicBool::new(false);

/// The log has a descriptor besides standard error.
static HAS_DESCRIPTORS: AtomicBool = AtomicBool::new(false);

/// Something other than the server writes to the log. Most likely that is the program's subscriber.
static HAS_SUBSCRIBER: AtomicBool = AtomicBool::new(false);

/// Whether the program's subscriber writes through a [`LogWriter`].
pub(crate) fn has_subscriber() -> bool {
    HAS_SUBSCRIBER.load(Relaxed)
}

/// Locks the log of this process.
pub(crate) fn lock() -> MutexGuard<'static, Output> {
    sync::lock(&OUTPUT)
}

/// Writes the waiting lines and the number of lost lines if it is time for the next attempt. Returns the time until the
/// next attempt.
pub(crate) fn retry() -> Option<Duration> {
    if IS_DUE.load(Relaxed) { lock().retry() } else { None }
}

/// Writes as many waiting lines as the output accepts without blocking.
pub(crate) fn flush() {
    if IS_DUE.load(Relaxed) {
        lock().flush();
    }
}

/// The log of this process, if it has a descriptor besides standard error.
#[taskfork_macros::startup_code]
pub(crate) fn with_descriptors() -> Option<MutexGuard<'static, Output>> {
    HAS_DESCRIPTORS.load(Relaxed).then(lock)
}

impl Output {
    /// Gives this process a log of its own. For every process that is not a worker.
    pub(crate) fn take_over(&mut self) {
        let own = std::process::id();
        if self.owner != own {
            if self.owner != 0 {
                self.discard_copy();
            }
            self.owner = own;
        }
        if std::mem::take(&mut self.is_worker)
            && let Some(path) = self.sink.path().map(PathBuf::from)
        {
            // If the file cannot be opened, the log goes to standard error.
            let _ = self.open(path);
        }
    }

    fn open(&mut self, path: PathBuf) -> io::Result<()> {
        let opened = self.sink.open(path);
        HAS_DESCRIPTORS.store(self.sink.descriptors().next().is_some(), Relaxed);
        opened
    }

    /// In a forked process that is not a worker: the log goes where it went before. The other
    /// process writes the queue.
    pub(crate) fn inherit(&mut self) {
        self.queue.clear();
        (self.failure, self.is_worker, self.owner) = (None, false, std::process::id());
        self.update_due();
    }

    /// In a forked process: the other process writes the queue.
    fn discard_copy(&mut self) {
        self.queue.clear();
        self.sink.forget();
        (self.failure, self.is_worker) = (None, true);
        HAS_DESCRIPTORS.store(false, Relaxed);
        self.update_due();
    }

    /// Writes a line now or later.
    fn line(&mut self, bytes: &[u8]) {
        let own = std::process::id();
        if self.owner != own {
            if self.owner != 0 {
                self.discard_copy();
            }
            self.owner = own;
        }
        let mut text = bytes.to_vec();
        if text.last() != Some(&b'\n') {
            text.push(b'\n');
        }
        if self.is_worker {
            // There is no other place to report a failure.
            let _ = io::Write::write_all(&mut io::stderr(), &text);
            return;
        }
        self.queue.push(text);
        self.flush();
    }

    /// Adds a line, which ends with a newline, for the next [`flush`](Self::flush).
    pub(crate) fn push(&mut self, text: Vec<u8>) {
        self.queue.push(text);
        IS_DUE.store(true, Relaxed);
    }

    /// Writes as much as the reader takes at once. Returns whether that was everything.
    fn flush(&mut self) -> bool {
        let Self { queue, sink, .. } = self;
        let written = queue.flush(|bytes| sink.write(bytes));
        self.failure = match (written, self.failure) {
            (WriteResult::Failed, None) => Some((Instant::now() + FIRST_RETRY, FIRST_RETRY)),
            (WriteResult::Failed, failure) => failure,
            (WriteResult::All | WriteResult::Stalled, _) => None,
        };
        HAS_DESCRIPTORS.store(sink.descriptors().next().is_some(), Relaxed);
        self.update_due();
        written == WriteResult::All
    }

    fn update_due(&self) {
        let is_empty = self.queue.is_empty() && self.queue.lost() == 0;
        IS_DUE.store(!is_empty || self.failure.is_some(), Relaxed);
    }

    /// See [`retry`].
    fn retry(&mut self) -> Option<Duration> {
        if let Some((at, pause)) = self.failure {
            let now = Instant::now();
            if at > now {
                return Some(at - now);
            }
            let pause = (pause * 2).min(MAX_RETRY);
            self.failure = Some((now + pause, pause));
        } else if self.queue.is_empty() && self.queue.lost() == 0 {
            return None;
        }
        self.queue.report();
        match (self.flush(), self.failure) {
            (true, _) => None,
            (false, Some((_, pause))) => Some(pause),
            (false, None) => Some(STALL_INTERVAL),
        }
    }

    /// Writes the queue before this process ends. Waits a moment for a slow reader.
    pub(crate) fn finish(&mut self) {
        let until = Instant::now() + FINISH_TIMEOUT;
        while !self.flush() && self.failure.is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Opens the log file again. Returns whether there is one.
    pub(crate) fn reopen(&mut self) -> io::Result<bool> {
        let Some(path) = self.sink.path().map(PathBuf::from) else { return Ok(false) };
        self.flush();
        self.open(path)?;
        Ok(true)
    }

    /// All descriptors of the log except standard error.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sink.descriptors()
    }
}
