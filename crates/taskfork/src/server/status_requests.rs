//! Connections to the status socket whose requests are not complete. The server itself reads the
//! requests, because only it can retire a worker. It never blocks on a peer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::watched_set::WatchedSet;

/// The maximum number of pending requests. The oldest ones beyond it are answered at once with the
/// status.
const MAX_PENDING: usize = 64;

/// The maximum length of a request, in bytes.
const MAX_LENGTH: usize = 64;

/// How long the server waits for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct StatusRequests {
    pending: WatchedSet<StatusRequest>,
    /// No connection is accepted until then, because descriptors have run out.
    accept_paused_until: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct StatusRequest {
    pub(super) connection: OwnedFd,
    pub(super) text: Vec<u8>,
    deadline: Instant,
}

impl StatusRequests {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { pending: WatchedSet::new()?, accept_paused_until: None })
    }

    /// Adds a connection. Returns it if the kernel cannot watch it.
    pub(super) fn add(&mut self, connection: OwnedFd, now: Instant) -> Result<(), OwnedFd> {
        if rustix::io::ioctl_fionbio(&connection, true).is_err() {
            return Err(connection);
        }
        let request =
            StatusRequest { connection, text: Vec::new(), deadline: now + REQUEST_TIMEOUT };
        match self.pending.insert(request, EventFlags::IN | EventFlags::RDHUP) {
            Ok(_) => Ok(()),
            Err((request, _)) => Err(request.connection),
        }
    }

    /// Removes the requests that are complete, or whose time is over.
    pub(super) fn take_complete(&mut self, now: Instant) -> Vec<StatusRequest> {
        let surplus = self.pending.len().saturating_sub(MAX_PENDING);
        let mut complete = Vec::new();
        for (place, (number, request)) in self.pending.iter_from(0).enumerate() {
            if request.read() || place < surplus || request.deadline <= now {
                complete.push(number);
            }
        }
        complete.into_iter().filter_map(|number| self.pending.remove(number)).collect()
    }

    /// The time until the oldest request has to be answered.
    pub(super) fn time_until_due(&self, now: Instant) -> Option<Duration> {
        let (_, oldest) = self.pending.iter().next()?;
        Some(oldest.deadline.saturating_duration_since(now))
    }

    pub(super) fn pause_accepting(&mut self, until: Instant) {
        self.accept_paused_until = Some(until);
    }

    /// Ends a pause that is over. Returns whether one has ended.
    pub(super) fn end_accept_pause(&mut self, now: Instant) -> bool {
        self.accept_paused_until.take_if(|until| *until <= now).is_some()
    }

    /// The rest of a pause.
    pub(super) fn accept_pause(&self, now: Instant) -> Option<Duration> {
        self.accept_paused_until.map(|until| until.saturating_duration_since(now))
    }

    /// Closes this process's copies, in a process that was forked from the server.
    pub(crate) fn close_copies(&mut self) {
        self.pending.close_copies();
    }

    /// The descriptors that a worker must close.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pending.descriptors()
    }
}

impl AsFd for StatusRequests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pending.as_fd()
    }
}

impl StatusRequest {
    /// Reads what has arrived. Returns whether the request is complete.
    fn read(&mut self) -> bool {
        let mut piece = [0; MAX_LENGTH];
        match recv(&self.connection, &mut piece, RecvFlags::empty()) {
            Ok((_, length)) if length > 0 => {
                self.text.extend_from_slice(&piece[..length]);
                self.text.contains(&b'\n') || self.text.len() >= MAX_LENGTH
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // The peer has shut down its sending side, or the connection has failed.
            Ok(_) | Err(_) => true,
        }
    }
}

impl AsFd for StatusRequest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::super::status::StatusRequest as Parsed;
    use super::*;

    #[test]
    fn a_request_is_complete_with_its_line_its_end_or_its_timeout() {
        let mut requests = StatusRequests::new().unwrap();
        let now = Instant::now();
        let [mut line, ended, _silent] = [(); 3].map(|()| {
            let (here, there) = UnixStream::pair().unwrap();
            requests.add(there.into(), now).unwrap();
            here
        });
        assert!(requests.take_complete(now).is_empty());
        line.write_all(b"dismiss ").unwrap();
        assert!(requests.take_complete(now).is_empty());
        line.write_all(b"7\n").unwrap();
        ended.shutdown(Shutdown::Write).unwrap();
        let complete = requests.take_complete(now);
        assert_eq!(complete.len(), 2);
        assert_eq!(Parsed::parse(&complete[0].text), Parsed::Dismiss { worker: 7, pid: None });
        assert_eq!(requests.time_until_due(now), Some(REQUEST_TIMEOUT));
        assert_eq!(requests.take_complete(now + REQUEST_TIMEOUT).len(), 1);
        assert_eq!(requests.time_until_due(now), None);
    }

    #[test]
    fn a_pause_ends_once() {
        let mut requests = StatusRequests::new().unwrap();
        let (now, pause) = (Instant::now(), Duration::from_millis(100));
        assert!(!requests.end_accept_pause(now));
        requests.pause_accepting(now + pause);
        assert!(!requests.end_accept_pause(now));
        assert_eq!(requests.accept_pause(now), Some(pause));
        assert!(requests.end_accept_pause(now + pause));
        assert!(!requests.end_accept_pause(now + pause));
    }

    #[test]
    fn surplus_requests_are_answered_at_once_and_long_ones_are_cut() {
        let mut requests = StatusRequests::new().unwrap();
        let now = Instant::now();
        let mut peers: Vec<_> = (0..MAX_PENDING + 3)
            .map(|_| {
                let (here, there) = UnixStream::pair().unwrap();
                requests.add(there.into(), now).unwrap();
                here
            })
            .collect();
        assert_eq!(requests.take_complete(now).len(), 3);
        peers.last_mut().unwrap().write_all(&[b'x'; 5000]).unwrap();
        let complete = requests.take_complete(now);
        assert_eq!((complete.len(), complete[0].text.len()), (1, MAX_LENGTH));
    }
}
