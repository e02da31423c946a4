//! The line between a program and the server that it started: a pair of sockets that carries the
//! server's first word, new connections, and, by its end, the wish for a graceful shutdown. As the
//! kernel closes it with the program, no server outlives the program that started it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown,
    socketpair,
};

use crate::address::Address;
use crate::sys::{self, LONGEST_WORD, Received};

const READY: &str = "ready ";
const FAILED: &str = "failed ";

/// Both ends of a new line: the program's and the server's.
pub(crate) fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// The server's end, which is closed when the last copy of this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Control(Arc<OwnedFd>);

/// What the program wants.
#[derive(Debug)]
pub(crate) enum Wish {
    Serve(OwnedFd),
    ShutDown,
}

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(Arc::new(socket))
    }

    /// Says why the server does not come up.
    pub(crate) fn report_failure(&self, error: &dyn fmt::Display) {
        report(&self.0, FAILED, &error.to_string());
    }

    /// Says that the server listens; without an address, that connections can be sent.
    pub(crate) fn report_ready(&self, address: Option<&Address>) {
        report(&self.0, READY, &address.map(Address::to_string).unwrap_or_default());
    }

    /// The next wish, or nothing while there is none.
    pub(crate) fn next(&self) -> io::Result<Option<Wish>> {
        match sys::receive_descriptor(&*self.0, RecvFlags::DONTWAIT) {
            Ok(Received::End) => Ok(Some(Wish::ShutDown)),
            Ok(Received::Nothing) => Ok(None),
            Ok(Received::Descriptor(connection)) => Ok(Some(Wish::Serve(connection))),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::CONNRESET) => Ok(Some(Wish::ShutDown)),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn report(socket: &OwnedFd, word: &str, text: &str) {
    let text = &text[..text.floor_char_boundary(LONGEST_WORD - word.len())];
    // A program that is gone needs no word.
    let _ = send(socket, format!("{word}{text}").as_bytes(), SendFlags::NOSIGNAL);
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The program's end, shared by the server's handle and the clients that connect through it.
#[derive(Clone)]
pub(crate) struct Link(Arc<Line>);

struct Line {
    pid: u32,
    socket: Mutex<Option<OwnedFd>>,
}

/// What a server said first.
#[derive(Debug)]
pub(crate) enum FirstWord {
    Ready(Option<String>),
    Failed(String),
    /// It ended without a word.
    Nothing,
}

static LINES: Mutex<Vec<Weak<Line>>> = Mutex::new(Vec::new());
/// There has been one. So that a worker of a server without any writes to nothing here.
static ANY_LINE: AtomicBool = AtomicBool::new(false);

/// In a forked process: closes all lines, which are its parent's, and would hide the parent's end
/// from the other side.
#[inline]
pub(crate) fn close_inherited() {
    if ANY_LINE.load(Ordering::SeqCst) {
        close_lines();
    }
}

fn close_lines() {
    for line in lock(&LINES).drain(..) {
        if let Some(line) = line.upgrade() {
            lock(&line.socket).take();
        }
    }
}

impl Link {
    pub(crate) fn new(pid: u32, socket: OwnedFd) -> Self {
        let line = Arc::new(Line { pid, socket: Mutex::new(Some(socket)) });
        ANY_LINE.store(true, Ordering::SeqCst);
        let mut lines = lock(&LINES);
        lines.retain(|line| line.strong_count() > 0);
        lines.push(Arc::downgrade(&line));
        Self(line)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Waits for the server's first word.
    pub(crate) fn first_word(&self) -> FirstWord {
        let mut text = [0; LONGEST_WORD];
        let socket = lock(&self.0.socket);
        let Some(socket) = socket.as_ref() else { return FirstWord::Nothing };
        let length = retry_on_intr(|| recv(socket, &mut text, RecvFlags::empty()));
        let text = String::from_utf8_lossy(&text[..length.map_or(0, |(_, length)| length)]);
        if let Some(address) = text.strip_prefix(READY) {
            let address = Some(address.to_owned()).filter(|address| !address.is_empty());
            return FirstWord::Ready(address);
        }
        match text.strip_prefix(FAILED) {
            Some(error) => FirstWord::Failed(error.to_owned()),
            None => FirstWord::Nothing,
        }
    }

    /// A new connection to the server.
    pub(crate) fn connect(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::io::ioctl_fionbio(&theirs, false)?;
        let socket = lock(&self.0.socket);
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the server has been shut down");
        sys::send_descriptor(socket.as_ref().ok_or_else(gone)?, theirs.as_fd())?;
        Ok(ours)
    }

    /// Asks the server to shut down gracefully.
    pub(crate) fn shut_down(&self) {
        if let Some(socket) = lock(&self.0.socket).as_ref() {
            // It may have ended already.
            let _ = shutdown(socket, Shutdown::Write);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
