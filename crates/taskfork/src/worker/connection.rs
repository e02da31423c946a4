//! A worker's side of its connection: blocking, interrupted by nothing, bounded in what it stores.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::scoreboard::Slot;
use super::serve::Limits;
use crate::busy_poll::Poller;
use crate::display::seconds;
use crate::wire::WireError;
use crate::wire::frame::{self, PREAMBLE};

/// Buffers above this size are given back once they are empty.
const KEPT: usize = 1 << 20;

/// For how long a worker looks for its next call at most, unless it is told otherwise.
const LONGEST_LOOK: Duration = Duration::from_micros(50);

/// A connection to a client.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Arc<OwnedFd>,
    inbox: Vec<u8>,
    /// How much of `inbox` has been used.
    used: usize,
    max_frame: usize,
    /// How long a peer may stop in the middle of a frame.
    stall_timeout: Duration,
    poller: Poller,
    /// How many cores there are.
    cores: usize,
    slot: Slot,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the client is gone")]
    Closed,
    #[error("the client closed the connection in the middle of a frame")]
    Truncated,
    #[error("the client stopped for {} in the middle of a frame", seconds(*.0))]
    Stalled(Duration),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl Connection {
    pub(crate) fn new(socket: Arc<OwnedFd>, limits: &Limits, slot: Slot) -> Self {
        let Limits { max_frame, stall_timeout, busy_poll, cores, .. } = *limits;
        let poller = Poller::new(busy_poll, LONGEST_LOOK, cores);
        slot.works();
        Self { socket, inbox: Vec::new(), used: 0, max_frame, stall_timeout, poller, cores, slot }
    }

    /// Waits for the client to name the protocol.
    pub(crate) fn read_preamble(&mut self) -> Result<(), Broken> {
        loop {
            let there = self.inbox.len().min(PREAMBLE.len());
            if self.inbox[..there] != PREAMBLE[..there] {
                let began = String::from_utf8_lossy(&self.inbox[..there]).into_owned();
                return Err(WireError::Preamble { began }.into());
            }
            if there == PREAMBLE.len() {
                self.used = there;
                return Ok(());
            }
            self.read()?;
        }
    }

    /// Waits for a whole frame; its body is [`body`](Self::body) of what this gives.
    pub(crate) fn read_frame(&mut self) -> Result<Range<usize>, Broken> {
        if self.used == self.inbox.len() {
            self.inbox.clear();
            self.inbox.shrink_to(KEPT);
            self.used = 0;
        }
        loop {
            if let Some(body) = frame::find(&self.inbox[self.used..], self.max_frame)? {
                let place = self.used + body.start..self.used + body.end;
                self.used = place.end;
                return Ok(place);
            }
            self.read()?;
        }
    }

    /// Reads what is there without waiting for more, up to `most` bytes behind the last frame.
    pub(crate) fn read_what_is_there(&mut self, most: usize) {
        while self.inbox.len() < self.used + most {
            self.inbox.reserve(frame::room_for_next_read(&self.inbox[self.used..]));
            match recv(&*self.socket, spare_capacity(&mut self.inbox), RecvFlags::DONTWAIT) {
                Ok((length, _)) if length > 0 => {}
                Err(Errno::INTR) => {}
                // Whatever it is, it comes again.
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// The bodies of the frames that are there behind the last.
    pub(crate) fn next_bodies(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.inbox[self.used..];
        std::iter::from_fn(move || {
            let body = frame::find(rest, self.max_frame).ok()??;
            let (frame, behind) = rest.split_at(body.end);
            rest = behind;
            Some(&frame[body])
        })
    }

    pub(crate) fn body(&self, place: Range<usize>) -> &[u8] {
        &self.inbox[place]
    }

    /// Sends all of `bytes`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match retry_on_intr(|| send(&*self.socket, rest, SendFlags::NOSIGNAL)) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Broken::Closed),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    /// Waits for more bytes: as long as it takes for the first of a frame, not longer than the
    /// stall timeout in the middle of one.
    fn read(&mut self) -> Result<(), Broken> {
        let begun = self.inbox.len() > self.used;
        if begun {
            self.inbox.drain(..self.used);
            self.used = 0;
            self.wait()?;
        }
        self.inbox.reserve(frame::room_for_next_read(&self.inbox));
        if !begun && self.look() {
            return Ok(());
        }
        let since = (!begun && self.poller.is_adaptive()).then(Instant::now);
        self.slot.rests();
        let read = retry_on_intr(|| {
            recv(&*self.socket, spare_capacity(&mut self.inbox), RecvFlags::empty())
        });
        self.slot.works();
        if let Some(since) = since {
            self.poller.slept(since.elapsed());
        }
        match read {
            Ok((0, _)) | Err(Errno::CONNRESET) if begun => Err(Broken::Truncated),
            Ok((0, _)) | Err(Errno::CONNRESET) => Err(Broken::Closed),
            Ok(_) => Ok(()),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    /// Looks for the next frame for a moment, where that pays and a core is there for it; tells
    /// whether some of it came.
    fn look(&mut self) -> bool {
        let Some(budget) = self.poller.budget() else { return false };
        // One of them is for the client.
        if self.poller.is_adaptive() && self.slot.busy_cores() >= self.cores {
            return false;
        }
        let end = Instant::now() + budget;
        loop {
            match recv(&*self.socket, spare_capacity(&mut self.inbox), RecvFlags::DONTWAIT) {
                Ok((length, _)) if length > 0 => {
                    self.poller.paid();
                    return true;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Whatever it is, it comes again.
                Ok(_) | Err(_) => return false,
            }
            if Instant::now() >= end {
                self.poller.failed();
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn wait(&self) -> Result<(), Broken> {
        let deadline = Instant::now() + self.stall_timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&*self.socket, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(Broken::Stalled(self.stall_timeout)),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }
}
