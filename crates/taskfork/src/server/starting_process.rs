//! A process that is to become a server: sending the startup data over the control channel, and
//! waiting until the server is ready, or until it is clear why it never will be.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::process::{Pid, PidfdFlags, Signal, WaitIdOptions, pidfd_open, pidfd_send_signal};

use super::control::ServerMessage;
use super::error::ServerError;
use super::process::{describe_end, reap};
use super::startup_output::BufferedOutput;
use crate::address::Address;
use crate::error::End;
use crate::sys;

/// How often a start checks whether it has been cancelled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A server that is ready.
#[derive(Debug)]
pub(crate) struct RunningServer {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// The program's end of the control channel.
    pub(crate) channel: OwnedFd,
    /// The address that it listens at, if there is one.
    pub(crate) address: Option<Address>,
}

/// A message of the program to the new server.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptor: Option<OwnedFd>,
}

/// A process that is to become a server.
pub(super) struct StartingProcess {
    pid: u32,
    pidfd: OwnedFd,
    channel: OwnedFd,
    /// The channel may be open at the other end.
    is_open: bool,
    messages: VecDeque<Message>,
    outputs: Vec<BufferedOutput>,
    initialised: bool,
}

/// The result of a start.
enum Outcome {
    Ready(Option<String>),
    Error(ServerError),
}

impl StartingProcess {
    pub(super) fn new(
        pid: u32,
        channel: OwnedFd,
        messages: VecDeque<Message>,
        outputs: Vec<BufferedOutput>,
    ) -> Result<Self, ServerError> {
        let process = Pid::from_raw(pid.cast_signed()).ok_or(Errno::SRCH);
        let pidfd = process
            .and_then(|process| pidfd_open(process, PidfdFlags::empty()))
            .map_err(ServerError::system("cannot watch the server's process"))?;
        Ok(Self { pid, pidfd, channel, is_open: true, messages, outputs, initialised: false })
    }

    /// Waits until the server is ready. Kills the process if that takes longer than `timeout`, or if
    /// the start is cancelled.
    pub(super) fn wait(
        mut self,
        name: Option<&str>,
        timeout: Option<Duration>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<RunningServer, ServerError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.outputs.iter_mut().for_each(BufferedOutput::read);
            match self.exchange() {
                Some(Outcome::Ready(address)) => {
                    self.outputs.iter_mut().for_each(BufferedOutput::read);
                    let address = address.map(|text| text.parse()).transpose();
                    let Self { pid, pidfd, channel, .. } = self;
                    return Ok(RunningServer { pid, pidfd, channel, address: address? });
                }
                Some(Outcome::Error(error)) => {
                    self.terminate();
                    return Err(error);
                }
                None => {}
            }
            if is_cancelled() {
                self.terminate();
                return Err(ServerError::startup("it was shut down before it served"));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                let (process, after) = (describe(self.pid), timeout.unwrap_or_default());
                self.terminate();
                return Err(ServerError::StartTimedOut {
                    name: name.unwrap_or_default().to_owned(),
                    after,
                    process,
                    initialised: self.initialised,
                    output: self.output(),
                });
            }
            if self.wait_for_event(left.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL)) {
                // The process may have written or reported something right before its end.
                self.outputs.iter_mut().for_each(BufferedOutput::read);
                if let Some(Outcome::Error(error)) = self.exchange() {
                    self.terminate();
                    return Err(error);
                }
                let end = self.terminate();
                let (Some(name), false) = (name, self.initialised) else {
                    let message =
                        format!("its process {} before it called `run`", describe_end(end));
                    return Err(ServerError::startup(message));
                };
                let (name, output) = (name.to_owned(), self.output());
                return Err(ServerError::NeverInitialised { name, end, output });
            }
        }
    }

    /// Sends what the channel has room for, and reads what has arrived.
    fn exchange(&mut self) -> Option<Outcome> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        while let (true, Some(message)) = (self.is_open, self.messages.front()) {
            let sent = match &message.descriptor {
                Some(descriptor) => {
                    sys::send_descriptor(&self.channel, descriptor.as_fd(), &message.bytes)
                }
                None => {
                    send(&self.channel, &message.bytes, flags).map(drop).map_err(io::Error::from)
                }
            };
            match sent {
                Ok(()) => drop(self.messages.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The other end is closed. Messages that were sent before that are read below.
                Err(_) => self.messages.clear(),
            }
        }
        while self.is_open {
            match ServerMessage::receive(&self.channel) {
                Ok(Some(ServerMessage::Init)) => {
                    self.initialised = true;
                    self.outputs.iter_mut().for_each(BufferedOutput::read);
                    self.outputs.iter_mut().for_each(BufferedOutput::pass_through);
                }
                Ok(Some(ServerMessage::Ready(address))) => return Some(Outcome::Ready(address)),
                Ok(Some(ServerMessage::Misconfigured { expected, source })) => {
                    return Some(Outcome::Error(ServerError::Misconfigured { expected, source }));
                }
                Ok(Some(ServerMessage::Failed(source) | ServerMessage::Ended(source))) => {
                    return Some(Outcome::Error(ServerError::Startup { source }));
                }
                Ok(None) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => self.is_open = false,
            }
        }
        None
    }

    /// Waits for an event, for at most this time. Returns whether the process has ended.
    fn wait_for_event(&self, timeout: Duration) -> bool {
        let events = match self.messages.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        };
        let mut watched = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        if self.is_open {
            watched.push(PollFd::new(&self.channel, events));
        }
        let readers = self.outputs.iter().filter_map(BufferedOutput::reader);
        watched.extend(readers.map(|reader| PollFd::new(reader, PollFlags::IN)));
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        // After an interruption or an error, the caller looks at everything again.
        let _ = poll(&mut watched, Some(&timeout));
        !watched[0].revents().is_empty()
    }

    /// Kills the process if it has not ended, and reaps it.
    fn terminate(&mut self) -> End {
        // A process reports a failure a moment before it exits.
        if !self.has_exited_within(POLL_INTERVAL) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        let end = reap(&self.pidfd, WaitIdOptions::EXITED).unwrap_or_default();
        self.outputs.iter_mut().for_each(BufferedOutput::read);
        end
    }

    fn has_exited_within(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)) {
                Err(Errno::INTR) => {}
                ended => return ended != Ok(0),
            }
        }
    }

    /// The end of the output.
    fn output(&self) -> String {
        let texts = self.outputs.iter().map(|output| output.end(self.outputs.len()));
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

/// Describes a process: `process 7 (/srv/app, sleeping in do_nanosleep)`.
fn describe(pid: u32) -> String {
    let read = |what| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let command = read("cmdline");
    let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
    let stat = String::from_utf8_lossy(&read("stat")).into_owned();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    let place = String::from_utf8_lossy(&read("wchan")).into_owned();
    let sleeps = |how: &str| match &place[..] {
        "" | "0" => how.to_owned(),
        place => format!("{how} in {place}"),
    };
    let state = match state {
        Some("R") => "running".to_owned(),
        Some("S") => sleeps("sleeping"),
        Some("D") => sleeps("in an uninterruptible wait"),
        Some("T") => "stopped by a signal".to_owned(),
        Some("t") => "stopped by a debugger".to_owned(),
        _ => "ended".to_owned(),
    };
    format!("its process {pid} ({}, {state})", log_defer::printable(&command))
}
