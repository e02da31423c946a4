//! The pipe through which workers wake the server. All workers hold its writing end, so none can
//! read what another has written. A worker that writes all the time costs the server only a part of
//! its time: after each wake-up, the server ignores the pipe for a multiple of the time that the
//! wake-up took.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{Mode, fchmod};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};

/// The pause after a wake-up is this many times as long as the wake-up, so wake-ups take at most 4
/// % of a CPU.
const PAUSE_FACTOR: u32 = 25;
const MIN_PAUSE: Duration = Duration::from_micros(200);
const MAX_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct WakePipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// The start of a wake-up that has not been handled completely.
    woken: Option<Instant>,
    /// When the pipe is watched again.
    resume_at: Option<Instant>,
}

impl WakePipe {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A worker could open its end anew in `/proc/self/fd`, read there, and so take wake-ups away.
        fchmod(&writer, Mode::WUSR)?;
        Ok(Self { reader, writer, woken: None, resume_at: None })
    }

    /// The end that workers hold.
    pub(crate) fn writer(&self) -> &OwnedFd {
        &self.writer
    }

    /// Begins to watch the pipe, until its first event.
    pub(crate) fn watch(&self, epoll: &OwnedFd, token: u64) -> rustix::io::Result<()> {
        epoll::add(epoll, &self.reader, EventData::new_u64(token), flags())
    }

    /// Whether a worker has woken the server, and what it wants has not been handled.
    pub(crate) fn is_woken(&self) -> bool {
        self.woken.is_some()
    }

    /// Empties the pipe after an event at the time `woken`. The bytes have no meaning.
    pub(crate) fn drain(&mut self, woken: Instant) {
        let _: Result<_, Errno> = read(&self.reader, &mut [0; 4096]);
        self.woken = Some(woken);
    }

    /// Ends a wake-up. Returns how long the pipe is ignored, if it is.
    pub(crate) fn finish_wakeup(&mut self) -> Option<Duration> {
        if let Some(woken) = self.woken.take() {
            self.resume_at = Some(Instant::now() + pause_after(woken.elapsed()));
        }
        self.resume_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Watches the pipe again if the pause is over.
    pub(crate) fn resume_if_due(&mut self, epoll: &OwnedFd, token: u64) -> rustix::io::Result<()> {
        match self.resume_at.take_if(|at| *at <= Instant::now()) {
            Some(_) => epoll::modify(epoll, &self.reader, EventData::new_u64(token), flags()),
            None => Ok(()),
        }
    }
}

impl AsFd for WakePipe {
    /// The server's end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// How long the server ignores workers after a wake-up that took this long.
pub(crate) fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE)
}

fn flags() -> EventFlags {
    EventFlags::IN | EventFlags::ONESHOT
}
