//! Connections to the status socket whose requests are not complete. The server reads the requests itself, as
//! only it can retire a worker. It waits for none of them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::event_loop::{ACCEPT_PAUSE, EventLoop, STATUS};
use super::listener::Listener;
use super::log;
use super::status;
use crate::worker::scoreboard::Retirement;

/// The most connections that wait. With more, the oldest are answered at once with the status.
const MOST: usize = 64;

/// The most bytes of a request.
const LONGEST: usize = 64;

/// How long the server waits for a request.
const WAIT: Duration = Duration::from_millis(20);

/// Those that wait, the oldest first.
#[derive(Debug)]
pub(crate) struct StatusRequests {
    /// Watches all of them.
    epoll: OwnedFd,
    waiting: VecDeque<Request>,
    /// Nothing is accepted until then, as descriptors have run out.
    again: Option<Instant>,
}

#[derive(Debug)]
struct Request {
    connection: OwnedFd,
    said: Vec<u8>,
    until: Instant,
}

impl StatusRequests {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            waiting: VecDeque::new(),
            again: None,
        })
    }

    fn add(&mut self, connection: OwnedFd, now: Instant) {
        let watched = rustix::io::ioctl_fionbio(&connection, true).and_then(|()| {
            let flags = EventFlags::IN | EventFlags::RDHUP;
            epoll::add(&self.epoll, &connection, EventData::new_u64(0), flags)
        });
        // One that cannot be watched is answered at once.
        let until = if watched.is_ok() { now + WAIT } else { now };
        self.waiting.push_back(Request { connection, said: Vec::new(), until });
    }

    /// Removes the connections whose request is complete or whose time is over.
    fn take_complete(&mut self, now: Instant) -> Vec<Request> {
        let surplus = self.waiting.len().saturating_sub(MOST);
        let mut complete = Vec::new();
        for (place, mut request) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            if request.read() || place < surplus || request.until <= now {
                let _ = epoll::delete(&self.epoll, &request.connection);
                complete.push(request);
            } else {
                self.waiting.push_back(request);
            }
        }
        complete
    }

    /// The time until the oldest is due.
    fn next(&self, now: Instant) -> Option<Duration> {
        self.waiting.front().map(|request| request.until.saturating_duration_since(now))
    }

    /// Whether connections are to be accepted again, after none could be for a while.
    fn rest_is_over(&mut self, now: Instant) -> bool {
        self.again.take_if(|again| *again <= now).is_some()
    }

    /// In a process that is forked from the server: closes its copies.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
    }

    /// What a new worker closes.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let waiting = self.waiting.iter().map(|request| request.connection.as_fd());
        [self.epoll.as_fd()].into_iter().chain(waiting)
    }
}

impl AsFd for StatusRequests {
    /// Readable when one of them has said something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Request {
    /// Reads what is there. Returns whether the request is complete.
    fn read(&mut self) -> bool {
        let mut piece = [0; LONGEST];
        match recv(&self.connection, &mut piece, RecvFlags::empty()) {
            Ok((_, length)) if length > 0 => {
                self.said.extend_from_slice(&piece[..length]);
                self.said.contains(&b'\n') || self.said.len() >= LONGEST
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // It has ended its side, or is of no use any more.
            Ok(_) | Err(_) => true,
        }
    }
}

impl EventLoop {
    /// Accepts a connection to the status socket.
    pub(super) fn accept_status(&mut self) {
        let now = Instant::now();
        match self.status.as_ref().map(Listener::accept) {
            Some(Ok(connection)) => self.add_status_request(connection),
            None | Some(Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED)) => {}
            Some(Err(errno)) => {
                if self.log_limits.accept_status.allows(now) {
                    log::error!(
                        "cannot accept connections to the status socket for a while: {errno}"
                    );
                }
                self.status_requests.again = Some(now + ACCEPT_PAUSE);
                self.watch_status(EventFlags::empty());
            }
        }
    }

    /// Answers whoever has the other end, once it has made its request.
    pub(super) fn add_status_request(&mut self, connection: OwnedFd) {
        self.status_requests.add(connection, Instant::now());
        self.answer_status_requests();
    }

    fn watch_status(&self, flags: EventFlags) {
        let Some(status) = &self.status else { return };
        if let Err(errno) = epoll::modify(&self.epoll, status, EventData::new_u64(STATUS), flags) {
            log::error!("cannot change the watch on the status socket: {errno}");
        }
    }

    /// Answers the connections whose request is complete or whose time is over.
    pub(super) fn answer_status_requests(&mut self) {
        for request in self.status_requests.take_complete(Instant::now()) {
            let number = status::dismissed(&request.said);
            if let Some(child) = number.and_then(|number| self.children.get_mut(&number)) {
                child.retire(Retirement::Requested);
            }
            self.send_status(request.connection);
        }
    }

    /// Answers the connections that are due. Returns the time until the next one is.
    pub(super) fn run_status_timers(&mut self) -> Option<Duration> {
        if self.status_requests.rest_is_over(Instant::now()) {
            self.watch_status(EventFlags::IN);
        }
        if self.status_requests.next(Instant::now()) == Some(Duration::ZERO) {
            self.answer_status_requests();
        }
        let now = Instant::now();
        let again = self.status_requests.again.map(|again| again.saturating_duration_since(now));
        self.status_requests.next(now).into_iter().chain(again).min()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_request_is_complete_with_its_line_its_end_or_its_time() {
        let mut requests = StatusRequests::new().unwrap();
        let now = Instant::now();
        let [mut line, ended, _silent] = [(); 3].map(|()| {
            let (here, there) = UnixStream::pair().unwrap();
            requests.add(there.into(), now);
            here
        });
        assert!(requests.take_complete(now).is_empty());
        line.write_all(b"dismiss ").unwrap();
        assert!(requests.take_complete(now).is_empty());
        line.write_all(b"7\n").unwrap();
        ended.shutdown(Shutdown::Write).unwrap();
        let complete = requests.take_complete(now);
        assert_eq!(complete.len(), 2);
        assert_eq!(status::dismissed(&complete[0].said), Some(7));
        assert_eq!(requests.next(now), Some(WAIT));
        assert_eq!(requests.take_complete(now + WAIT).len(), 1);
        assert_eq!(requests.next(now), None);
    }

    #[test]
    fn a_pause_ends_once() {
        let mut requests = StatusRequests::new().unwrap();
        let now = Instant::now();
        assert!(!requests.rest_is_over(now));
        requests.again = Some(now + ACCEPT_PAUSE);
        assert!(!requests.rest_is_over(now));
        assert!(requests.rest_is_over(now + ACCEPT_PAUSE));
        assert!(!requests.rest_is_over(now + ACCEPT_PAUSE));
    }

    #[test]
    fn more_than_can_wait_are_answered_at_once_and_long_ones_are_cut() {
        let mut requests = StatusRequests::new().unwrap();
        let now = Instant::now();
        let mut peers: Vec<_> = (0..MOST + 3)
            .map(|_| {
                let (here, there) = UnixStream::pair().unwrap();
                requests.add(there.into(), now);
                here
            })
            .collect();
        assert_eq!(requests.take_complete(now).len(), 3);
        peers.last_mut().unwrap().write_all(&[b'x'; 5000]).unwrap();
        let complete = requests.take_complete(now);
        assert_eq!((complete.len(), complete[0].said.len()), (1, LONGEST));
    }
}
