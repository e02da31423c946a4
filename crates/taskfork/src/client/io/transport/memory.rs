//! A transport in the memory of this process, for tests. It splits what is sent, delays and anticipates
//! readiness, and can be cut, all by a seed. As with a socket, several processes can hold the worker's side, and
//! files accompany bytes.

use std::any::Any;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use rustix::io::Errno;

use super::Transport;
use crate::address::MemoryServer;
use crate::sync::lock;
use crate::wire::gather_frame::OutgoingFile;

/// What happens to a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// Decides what is random.
    pub(crate) seed: u64,
    /// The most bytes that one read or write moves of a short message.
    pub(crate) max_piece: usize,
    /// The most bytes of short messages that wait for the worker. For the client, an eighth of that waits.
    pub(crate) capacity: usize,
    /// Whether a side learns late that it can go on, or is woken for nothing.
    pub(crate) bad_timing: bool,
    /// How late the client's task learns that it can receive.
    pub(crate) delay: Duration,
    /// After how many bytes from the worker the connection ends.
    pub(crate) cut_after: Option<usize>,
    /// Whether files are lost on their way, as if their receivers could open no more.
    pub(crate) loses_files: bool,
}

/// A read or write can move at least this part of what is there, so that no message comes in too many pieces.
const PIECES: usize = 16;

/// How a side has ended the connection.
#[derive(Debug, Clone, Copy)]
enum End {
    Closed,
    Reset,
}

#[derive(Debug)]
struct Duplex {
    faults: Faults,
    random: u64,
    has_client_closed: bool,
    /// How many processes hold the worker's side.
    holders: usize,
    /// Which side receives nothing more, the client first.
    is_reading_shut_down: [bool; 2],
    /// What each side sends, the client first.
    directions: [Direction; 2],
}

#[derive(Debug, Default)]
struct Direction {
    bytes: BytesMut,
    /// How many bytes have been sent.
    sent: usize,
    /// Files that have not been received. Each group accompanies the byte that has this place among all.
    files: VecDeque<(usize, Vec<OwnedFd>)>,
    end: Option<End>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Who looks at the bytes without taking them.
    watcher: Option<Waker>,
}

impl Direction {
    /// Files for the next byte that is sent.
    fn attach(&mut self, files: &[OutgoingFile]) -> io::Result<()> {
        if !files.is_empty() {
            let duplicate = |file: &OutgoingFile| file.as_fd().try_clone_to_owned();
            self.files
                .push_back((self.sent, files.iter().map(duplicate).collect::<Result<_, _>>()?));
        }
        Ok(())
    }

    /// Takes the files of the next byte, and returns how many bytes can be received before those of other files.
    fn take_files(&mut self, files: &mut Vec<OwnedFd>, is_lost: bool) -> usize {
        let received = self.sent - self.bytes.len();
        let arrived = self.files.iter().take_while(|(place, _)| *place <= received).count();
        let arrived = self.files.drain(..arrived).flat_map(|(_, group)| group);
        if is_lost {
            drop(arrived)
        } else {
            files.extend(arrived)
        }
        self.files.front().map_or(usize::MAX, |(place, _)| place - received)
    }

    fn wake(&mut self, delay: Duration) {
        self.writer.take().into_iter().for_each(Waker::wake);
        self.wake_reader(delay);
    }

    fn wake_reader(&mut self, delay: Duration) {
        self.watcher.take().into_iter().for_each(Waker::wake);
        match self.reader.take() {
            Some(reader) if !delay.is_zero() => drop(tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                reader.wake();
            })),
            reader => reader.into_iter().for_each(Waker::wake),
        }
    }
}

impl Duplex {
    /// A number below `limit`, of xorshift.
    fn random(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % limit as u64) as usize
    }

    /// Draws how many of `length` bytes the next read or write moves. A long message comes in some hundred pieces:
    /// thousands would take most of a test's time, and would show nothing more.
    fn piece(&mut self, length: usize) -> usize {
        1 + self.random(self.faults.max_piece.max(length / PIECES))
    }

    /// The most bytes of short messages of a side that wait.
    fn capacity(&self, side: usize) -> usize {
        if side == CLIENT { self.faults.capacity } else { self.faults.capacity.div_ceil(8) }
    }

    /// Whether this poll comes too early. Then the task is woken once more.
    fn is_early(&mut self, context: &Context<'_>) -> bool {
        let is_early = self.faults.bad_timing && self.random(3) == 0;
        if is_early {
            context.waker().wake_by_ref();
        }
        is_early
    }

    /// Ends the connection at a side. As a socket does, it tells the other side of bytes that were not read.
    fn end(&mut self, side: usize) {
        let has_read_all = self.directions[1 - side].bytes.is_empty();
        let end = if has_read_all { End::Closed } else { End::Reset };
        self.directions[side].end.get_or_insert(end);
        let delay = self.faults.delay;
        self.directions[CLIENT].wake(Duration::ZERO);
        self.directions[WORKER].wake(delay);
    }

    /// Receives at most `limit` bytes of what `side` is sent. `None` if nothing is there.
    fn receive(
        &mut self,
        side: usize,
        limit: usize,
        inbox: &mut BytesMut,
        files: &mut Vec<OwnedFd>,
    ) -> Option<io::Result<usize>> {
        if self.directions[side].end.is_some() {
            return Some(Ok(0));
        }
        let room = limit.min(inbox.capacity() - inbox.len());
        let direction = &mut self.directions[1 - side];
        let length = room.min(direction.bytes.len());
        if length == 0 {
            if self.is_reading_shut_down[side] {
                return Some(Ok(0));
            }
            return match direction.end? {
                End::Closed => Some(Ok(0)),
                End::Reset => Some(Err(io::ErrorKind::ConnectionReset.into())),
            };
        }
        let length = length.min(direction.take_files(files, self.faults.loses_files));
        inbox.extend_from_slice(&direction.bytes.split_to(length));
        direction.writer.take().into_iter().for_each(Waker::wake);
        Some(Ok(length))
    }

    fn is_ended(&self) -> bool {
        self.directions.iter().any(|direction| direction.end.is_some())
    }

    /// Sends all of this, unless the connection has ended or ends meanwhile.
    fn send_now(&mut self, side: usize, bytes: &[u8], files: &[OutgoingFile]) -> bool {
        if self.is_ended() || self.is_reading_shut_down[1 - side] {
            return false;
        }
        let direction = &mut self.directions[side];
        if direction.attach(files).is_err() {
            return false;
        }
        let left = match (side, self.faults.cut_after) {
            (WORKER, Some(limit)) => limit.saturating_sub(direction.sent),
            _ => usize::MAX,
        };
        direction.bytes.extend_from_slice(&bytes[..bytes.len().min(left)]);
        direction.sent += bytes.len().min(left);
        direction.wake_reader(if side == WORKER { self.faults.delay } else { Duration::ZERO });
        if bytes.len() >= left {
            self.end(WORKER);
        }
        bytes.len() < left
    }

    /// Sends some bytes of `side`. `None` if there is no room.
    fn send(
        &mut self,
        side: usize,
        slices: &[IoSlice<'_>],
        files: &[OutgoingFile],
    ) -> Option<io::Result<usize>> {
        let is_shut_down = self.is_reading_shut_down[1 - side];
        if is_shut_down || self.is_ended() {
            return Some(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = slices.iter().map(|slice| slice.len()).sum::<usize>();
        let piece = self.piece(length);
        let capacity = self.capacity(side).max(length / PIECES);
        let cut_after = self.faults.cut_after;
        let direction = &mut self.directions[side];
        let left = match (side, cut_after) {
            (WORKER, Some(limit)) => limit.saturating_sub(direction.sent),
            _ => usize::MAX,
        };
        let room = piece.min(capacity.saturating_sub(direction.bytes.len())).min(left);
        let before = direction.bytes.len();
        if room > 0
            && let Err(error) = direction.attach(files)
        {
            return Some(Err(error));
        }
        for slice in slices {
            let left = room - (direction.bytes.len() - before);
            direction.bytes.extend_from_slice(&slice[..slice.len().min(left)]);
        }
        let length = direction.bytes.len() - before;
        direction.sent += length;
        direction.wake_reader(if side == WORKER { self.faults.delay } else { Duration::ZERO });
        if length == left {
            self.end(WORKER);
        }
        (length > 0).then_some(Ok(length))
    }
}

const CLIENT: usize = 0;
const WORKER: usize = 1;

/// One side of a stream. Dropping the last copy of it closes the stream.
#[derive(Debug)]
pub(crate) struct Memory {
    duplex: Arc<Mutex<Duplex>>,
    side: usize,
}

/// Tells whether the client has a stream open.
#[derive(Debug)]
pub(crate) struct Watch(Weak<Mutex<Duplex>>);

impl Watch {
    pub(crate) fn is_open(&self) -> bool {
        let duplex = self.0.upgrade();
        duplex.is_some_and(|duplex| !lock(&duplex).has_client_closed)
    }
}

impl Memory {
    /// A stream's two sides: the client's and the worker's.
    pub(crate) fn pair(faults: Faults) -> (Self, Self) {
        // xorshift never leaves 0.
        let random = faults.seed | 1 << 63;
        let duplex = Duplex {
            faults,
            random,
            has_client_closed: false,
            holders: 1,
            is_reading_shut_down: [false; 2],
            directions: Default::default(),
        };
        let duplex = Arc::new(Mutex::new(duplex));
        (Self { duplex: duplex.clone(), side: CLIENT }, Self { duplex, side: WORKER })
    }

    pub(crate) fn watch(&self) -> Watch {
        Watch(Arc::downgrade(&self.duplex))
    }

    /// The worker's side for another process.
    pub(crate) fn duplicate(&self) -> Self {
        lock(&self.duplex).holders += 1;
        Self { duplex: self.duplex.clone(), side: WORKER }
    }

    /// Ends the connection, even if other processes hold it.
    pub(crate) fn shut_down(&self) {
        lock(&self.duplex).end(self.side);
    }

    /// Receives nothing more. What has arrived can still be read.
    pub(crate) fn end_reading(&self) {
        let mut duplex = lock(&self.duplex);
        duplex.is_reading_shut_down[self.side] = true;
        duplex.directions[1 - self.side].wake(Duration::ZERO);
    }

    /// Sends all of this at once, or nothing. The kernel's own buffers have room for it.
    pub(crate) fn send_at_once(&self, bytes: &[u8]) -> bool {
        lock(&self.duplex).send_now(self.side, bytes, &[])
    }

    /// Examines the bytes that have arrived. They stay there.
    pub(crate) fn examine<T>(&self, examine: impl FnOnce(&[u8]) -> T) -> T {
        examine(&lock(&self.duplex).directions[1 - self.side].bytes)
    }

    /// Waits until the bytes that have arrived, or their end, are of use. They stay there.
    pub(crate) async fn peek<T>(
        &self,
        mut examine: impl FnMut(&[u8], bool) -> Option<T> + Send,
    ) -> T {
        poll_fn(|context| {
            let mut duplex = lock(&self.duplex);
            let is_ended = duplex.is_ended();
            let direction = &mut duplex.directions[1 - self.side];
            match examine(&direction.bytes, is_ended) {
                Some(found) => Poll::Ready(found),
                None => {
                    direction.watcher = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Receives some bytes and their files. Returns `None` at the end of the stream.
    pub(crate) async fn receive(
        &mut self,
        inbox: &mut BytesMut,
        files: &mut Vec<OwnedFd>,
    ) -> Option<usize> {
        let read = poll_fn(|context| self.poll_read(context, inbox, 4096, files)).await;
        read.ok().filter(|&length| length > 0)
    }

    /// Receives what is there, if anything is. Returns the number of bytes.
    pub(crate) fn receive_ready(
        &mut self,
        inbox: &mut BytesMut,
        files: &mut Vec<OwnedFd>,
    ) -> usize {
        // An error is found again by the next read.
        self.receive_now(inbox, 4096, files).unwrap_or(0)
    }

    /// Waits for room, and sends all of this, as the kernel does with a short message. Returns `None` if the
    /// stream has ended.
    pub(crate) async fn send_whole(&mut self, bytes: &[u8], files: &[OutgoingFile]) -> Option<()> {
        poll_fn(|context| {
            let mut duplex = lock(&self.duplex);
            if duplex.is_early(context) {
                return Poll::Pending;
            }
            let has_room = duplex.directions[self.side].bytes.len() < duplex.capacity(self.side);
            if has_room || duplex.is_ended() {
                return Poll::Ready(duplex.send_now(self.side, bytes, files).then_some(()));
            }
            duplex.directions[self.side].writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Sends all of this in pieces, the files with the first. Returns `None` if the stream has ended.
    pub(crate) async fn send(
        &mut self,
        mut bytes: &[u8],
        mut files: &[OutgoingFile],
    ) -> Option<()> {
        while !bytes.is_empty() {
            let slices = [IoSlice::new(bytes)];
            let wrote = poll_fn(|context| self.poll_write(context, &slices, files)).await.ok()?;
            (bytes, files) = (&bytes[wrote..], &[]);
        }
        Some(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut duplex = lock(&self.duplex);
        duplex.has_client_closed |= self.side == CLIENT;
        duplex.holders -= usize::from(self.side == WORKER);
        if self.side == CLIENT || duplex.holders == 0 {
            duplex.end(self.side);
        }
    }
}

impl Transport for Memory {
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        files: &[OutgoingFile],
    ) -> Poll<io::Result<usize>> {
        let mut duplex = lock(&self.duplex);
        if duplex.is_early(context) {
            return Poll::Pending;
        }
        match duplex.send(self.side, slices, files) {
            Some(sent) => Poll::Ready(sent),
            None => {
                duplex.directions[self.side].writer = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        inbox: &mut BytesMut,
        room: usize,
        files: &mut Vec<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        inbox.reserve(room);
        let mut duplex = lock(&self.duplex);
        if duplex.is_early(context) {
            return Poll::Pending;
        }
        let length = duplex.directions[1 - self.side].bytes.len();
        let limit = duplex.piece(length);
        match duplex.receive(self.side, limit, inbox, files) {
            Some(received) => Poll::Ready(received),
            None => {
                duplex.directions[1 - self.side].reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn receive_now(
        &mut self,
        inbox: &mut BytesMut,
        room: usize,
        files: &mut Vec<OwnedFd>,
    ) -> rustix::io::Result<usize> {
        inbox.reserve(room);
        // A read from a socket returns everything that has arrived, and short messages arrive whole.
        match lock(&self.duplex).receive(self.side, usize::MAX, inbox, files) {
            Some(Ok(length)) => Ok(length),
            Some(Err(_)) => Err(Errno::CONNRESET),
            None => Err(Errno::AGAIN),
        }
    }

    fn can_lose_answers(&self) -> bool {
        false
    }

    fn stop_input(&mut self, _: &mut Context<'_>) -> bool {
        self.end_reading();
        true
    }
}

/// A function that makes the stream of a connection, and returns its worker's side.
pub(crate) type Connect<'a> = &'a mut dyn FnMut(Faults) -> Memory;

/// A server: it is called for each new connection.
pub(crate) struct Server(Box<dyn Fn(Connect<'_>) + Send + Sync + UnwindSafe + RefUnwindSafe>);

impl Server {
    pub(crate) fn shared(
        serve: impl Fn(Connect<'_>) + Send + Sync + UnwindSafe + RefUnwindSafe + 'static,
    ) -> Arc<dyn MemoryServer> {
        Arc::new(Self(Box::new(serve)))
    }
}

impl MemoryServer for Server {}

/// Connects to a [`Server`].
pub(super) fn connect(server: &dyn MemoryServer) -> io::Result<super::Connected> {
    let server: &dyn Any = server;
    let server = server.downcast_ref::<Server>().expect("there is no other kind");
    let mut client: Option<Memory> = None;
    (server.0)(&mut |faults| {
        let (here, there) = Memory::pair(faults);
        client = Some(here);
        there
    });
    match client {
        Some(client) => Ok(super::Connected::new(Box::new(client), 0)),
        None => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}
