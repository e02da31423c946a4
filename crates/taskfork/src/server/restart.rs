//! The two sides of a restart: what a new server inherits from the one before it, and the process of a
//! new server that is not ready yet.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::listener::Listener;
use super::parent::Parent;
use super::socket_file::Identity;
use super::{environment, process, program_file};
use crate::error::End;
use crate::sys;

/// The first byte of a new server's message: it has taken over with the inherited listener, or with one
/// of its own, or it cannot start.
const READY: u8 = b'r';
const READY_ELSEWHERE: u8 = b'e';
const FAILED: u8 = b'n';

/// The kernel writes messages up to this length to a pipe as a whole.
const MAX_MESSAGE: usize = 4096;

/// How long a new server that has closed its pipe may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_millis(100);

/// What a server inherits from its predecessor.
#[derive(Debug)]
pub(crate) struct Inherited {
    listener: OwnedFd,
    /// The listener's file, if it has one.
    file: Option<Identity>,
    predecessor: Predecessor,
}

impl Inherited {
    /// Takes over what the environment names. `None` if there is no server before this one.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(crate) fn take() -> Option<Self> {
        let numbers = sys::take_variable(environment::RESTART)?;
        let mut numbers = numbers.split(' ');
        let (listener, pipe) = (numbers.next()?, numbers.next()?);
        let file = numbers.next().and_then(Identity::from_text);
        // SAFETY: the server before this one left them open for this process, named by a variable that
        // has been removed now.
        let take = |number: &str| unsafe { sys::take_inherited(number.parse().ok()?) }.ok();
        let (listener, pipe) = (take(listener)?, take(pipe)?);
        for descriptor in [&listener, &pipe] {
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC).ok()?;
        }
        Some(Self { listener, file, predecessor: Predecessor { pipe: pipe.into() } })
    }

    /// The listener with its file, and the server that it comes from.
    pub(crate) fn into_parts(self) -> ((OwnedFd, Option<Identity>), Predecessor) {
        ((self.listener, self.file), self.predecessor)
    }
}

/// The server that started this one to take over from it.
#[derive(Debug)]
pub(crate) struct Predecessor {
    pipe: File,
}

impl Predecessor {
    /// Reports that this server is ready. The predecessor then shuts down.
    pub(crate) fn take_over(self, is_listener_inherited: bool) {
        self.send(&[if is_listener_inherited { READY } else { READY_ELSEWHERE }]);
    }

    /// Reports that this server cannot start. The predecessor then keeps serving.
    pub(crate) fn refuse(self, error: &dyn fmt::Display) {
        let text = error.to_string();
        let mut message = vec![FAILED];
        message.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(MAX_MESSAGE - 1)]);
        self.send(&message);
    }

    fn send(mut self, message: &[u8]) {
        // The predecessor may have ended.
        let _ = self.pipe.write_all(message);
    }
}

/// A new server that has been started and is not ready yet.
#[derive(Debug)]
pub(crate) struct Successor {
    pid: Pid,
    pipe: File,
}

/// What a new server has reported.
pub(super) enum Outcome {
    /// It has taken over, with the inherited listener or with one of its own.
    Ready { is_listener_inherited: bool },
    /// It could not start, for this reason.
    Failed(String),
}

impl Successor {
    /// Starts this program again as a new server that inherits `listener`.
    pub(super) fn start(listener: &Listener, parent: Option<&Parent>) -> Result<Self, String> {
        let program = program_file::path();
        let start = || {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            let file = listener.file().map(|file| format!(" {file}")).unwrap_or_default();
            let listener = listener.as_fd();
            let numbers = format!("{} {}{file}", listener.as_raw_fd(), writer.as_raw_fd());
            let set = [Some((environment::RESTART, numbers)), parent.and_then(Parent::variable)];
            let set: Vec<_> = set.into_iter().flatten().collect();
            let keep = [Some(listener), Some(writer.as_fd()), parent.and_then(Parent::channel)];
            let keep: Vec<_> = keep.into_iter().flatten().collect();
            let remove = &environment::NOT_FOR_SUCCESSORS;
            let child = sys::spawn_with_own_arguments(program, &set, remove, &keep)?;
            let pid = Pid::from_raw(child.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
            Ok(Self { pid, pipe: reader.into() })
        };
        start().map_err(|error: io::Error| format!("cannot start {}: {error}", program.display()))
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has reported something, or has closed its pipe.
    pub(super) fn is_readable(&self) -> bool {
        is_readable(&self.pipe, Duration::ZERO)
    }

    /// Reads its report. The pipe must be readable.
    pub(super) fn outcome(&mut self) -> Outcome {
        let mut message = [0; MAX_MESSAGE];
        let length = self.pipe.read(&mut message).unwrap_or(0);
        match message[..length].split_first() {
            Some((&READY, _)) => Outcome::Ready { is_listener_inherited: true },
            Some((&READY_ELSEWHERE, _)) => Outcome::Ready { is_listener_inherited: false },
            Some((_, reason)) => Outcome::Failed(String::from_utf8_lossy(reason).into_owned()),
            None => Outcome::Failed(self.end()),
        }
    }

    /// How it ended without a report. A process closes its descriptors a moment before it can be
    /// reaped.
    fn end(&self) -> String {
        let ended = pidfd_open(self.pid, PidfdFlags::empty()).and_then(|pidfd| {
            is_readable(&pidfd, EXIT_TIMEOUT);
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            waitid(WaitId::PidFd(pidfd.as_fd()), options)
        });
        match ended.ok().flatten().as_ref().map(process::end_of).unwrap_or_default() {
            End::Unknown => "closed its pipe to this server".to_owned(),
            end => end.to_string(),
        }
    }
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

fn is_readable(descriptor: &impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).ok();
    let mut watched = [PollFd::new(descriptor, PollFlags::IN)];
    poll(&mut watched, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}
