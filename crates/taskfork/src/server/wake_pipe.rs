//! The pipe through which workers wake the server. All of them hold its writing end, so that none can read
//! what another has written. One that writes without end costs the server only a part of its time: after each
//! time that it was woken, the server leaves the pipe alone for a multiple of what that took.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};

/// The pause after a wake-up is as many times as long as the wake-up took, which leaves at most a twenty-fifth of
/// a core for wake-ups.
const SHARE: u32 = 25;
const LEAST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct WakePipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// When the server was woken whose work is not done yet.
    woken: Option<Instant>,
    /// The pipe is watched again from then on.
    again: Option<Instant>,
}

impl WakePipe {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, writer, woken: None, again: None })
    }

    /// What workers hold.
    pub(crate) fn writer(&self) -> &OwnedFd {
        &self.writer
    }

    /// Begins to watch the pipe. It is watched until the first event.
    pub(crate) fn watch(&self, epoll: &OwnedFd, token: u64) -> rustix::io::Result<()> {
        epoll::add(epoll, &self.reader, EventData::new_u64(token), flags())
    }

    /// The pipe is readable, and has been since `woken`. What was written means nothing.
    pub(crate) fn drain(&mut self, woken: Instant) {
        let _: Result<_, Errno> = read(&self.reader, &mut [0; 4096]);
        self.woken = Some(woken);
    }

    /// All that a wake-up leads to is done: gives how long the pipe is left alone, if it is.
    pub(crate) fn finish_wakeup(&mut self) -> Option<Duration> {
        if let Some(woken) = self.woken.take() {
            self.again = Some(Instant::now() + pause_after(woken.elapsed()));
        }
        self.again.map(|again| again.saturating_duration_since(Instant::now()))
    }

    /// Watches the pipe again if it is time.
    pub(crate) fn resume_if_due(&mut self, epoll: &OwnedFd, token: u64) -> rustix::io::Result<()> {
        match self.again.take_if(|again| *again <= Instant::now()) {
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

/// How long the server does not listen to workers after having done so for this long.
pub(crate) fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(LEAST_PAUSE, LONGEST_PAUSE)
}

fn flags() -> EventFlags {
    EventFlags::IN | EventFlags::ONESHOT
}
