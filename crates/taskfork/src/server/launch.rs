//! Starting the process of a server: executing the program, sending the startup data, and waiting
//! until the server is ready. The output of the process before `init` is buffered, because it may
//! come from a program that does not know that it becomes a server.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitIdOptions, pidfd_open, pidfd_send_signal};

use super::control::{self, MAX_MESSAGE, ServerMessage};
use super::environment;
use super::error::ServerError;
use super::process::{describe_end, reap};
use crate::address::Address;
use crate::error::End;
use crate::sys;

/// The most bytes of output that are buffered, and the most that an error contains.
const MAX_BUFFERED: usize = 64 << 10;
const MAX_REPORTED: usize = 4 << 10;

/// How often a start checks whether it has been cancelled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Everything that is needed to start a server, and to start it again.
pub(crate) struct Launch {
    name: String,
    config: Option<Vec<u8>>,
    timeout: Option<Duration>,
    /// A replacement inherits the environment, directory and signal mask of the first start.
    variables: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    mask: Option<SigSet>,
}

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

/// Waits until a forked server is ready.
pub(crate) fn forked(pid: u32, channel: OwnedFd) -> Result<RunningServer, ServerError> {
    StartingProcess::new(pid, channel, VecDeque::new(), Vec::new())?.wait(None, None, &|| false)
}

impl Launch {
    /// Describes a server that inherits the state of this process as it is now.
    pub(crate) fn new(name: String, config: Option<Vec<u8>>, timeout: Option<Duration>) -> Self {
        Self {
            name,
            config,
            timeout,
            variables: std::env::vars_os().collect(),
            directory: std::env::current_dir().ok(),
            mask: SigSet::thread_get_mask().ok(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts a process and waits until the server is ready. `previous` is the address of the
    /// server that it replaces. Kills the process if the start is cancelled.
    pub(crate) fn start(
        &self,
        previous: Option<&Address>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<RunningServer, ServerError> {
        let cannot = "cannot make a channel to the server";
        let (channel, theirs) = control::pair().map_err(ServerError::system(cannot))?;
        let pipes = [
            (control::STDOUT, Output::new(rustix::stdio::stdout())),
            (control::STDERR, Output::new(rustix::stdio::stderr())),
        ];
        let mut command = Command::new("/proc/self/exe");
        command.stdin(Stdio::from(theirs)).env_clear();
        if let Some(own) = std::env::args_os().next() {
            command.arg0(own);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.env(environment::SERVER, &self.name);
        if let Some(directory) = self.directory.as_ref().filter(|directory| directory.is_dir()) {
            command.current_dir(directory);
        }
        let (mut messages, mut outputs) = (VecDeque::new(), Vec::new());
        for (kind, output) in pipes {
            // Without a pipe, the process inherits the output.
            let Ok(Output { real, reader, writer }) = output else { continue };
            let Ok(for_child) = real.try_clone() else { continue };
            match kind {
                control::STDOUT => command.stdout(writer),
                _ => command.stderr(writer),
            };
            messages.push_back(Message { bytes: vec![kind], descriptor: Some(for_child.into()) });
            outputs.push(BufferedOutput::new(reader, real));
        }
        let plain = |bytes| Message { bytes, descriptor: None };
        // An empty configuration is sent too, because it differs from none.
        let config = self.config.iter().flat_map(|config| match config[..] {
            [] => vec![vec![control::CONFIG]],
            _ => config.chunks(MAX_MESSAGE - 1).map(|c| [&[control::CONFIG], c].concat()).collect(),
        });
        messages.extend(config.map(plain));
        let previous = previous.map(|address| format!("{}{address}", char::from(control::ADDRESS)));
        messages.extend(previous.map(|text| plain(text.into_bytes())));
        messages.push_back(plain(vec![control::BEGIN]));

        let mut child = sys::with_mask(self.mask.as_ref(), || command.spawn())
            .map_err(ServerError::system("cannot execute this program again"))?;
        // It holds the other ends of the channel and the pipes.
        drop(command);
        let starting =
            StartingProcess::new(child.id(), channel, messages, outputs).inspect_err(|_| {
                // No other code would wait for the process. It may have ended already.
                let _ = child.kill().and_then(|()| child.wait());
            })?;
        starting.wait(Some(&self.name), self.timeout, is_cancelled)
    }
}

/// A message of the program to the new server.
struct Message {
    bytes: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

/// An output of a new process: the pipe that buffers it, and where it leads after `init`.
struct Output {
    real: File,
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Output {
    fn new(real: BorrowedFd<'_>) -> io::Result<Self> {
        let real = File::from(rustix::io::fcntl_dupfd_cloexec(real, 3)?);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(Self { real, reader, writer })
    }
}

/// The output of a new process before `init`.
#[derive(Debug)]
struct BufferedOutput {
    /// `None` after the other end has been closed.
    reader: Option<File>,
    real: File,
    text: Vec<u8>,
    /// The output is no longer held back, because `init` was called or because there was too much.
    passes_through: bool,
}

impl BufferedOutput {
    fn new(reader: OwnedFd, real: File) -> Self {
        Self { reader: Some(reader.into()), real, text: Vec::new(), passes_through: false }
    }

    /// Reads what has arrived.
    fn read(&mut self) {
        let mut piece = [0; 4096];
        while let Some(reader) = &mut self.reader {
            match reader.read(&mut piece) {
                Ok(0) => self.reader = None,
                Ok(length) => self.add(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.reader = None,
            }
        }
    }

    fn add(&mut self, piece: &[u8]) {
        self.text.extend_from_slice(piece);
        if self.passes_through {
            let _ = self.real.write_all(piece);
        } else if self.text.len() > MAX_BUFFERED {
            self.pass_through();
        }
        if self.passes_through && self.text.len() > 2 * MAX_REPORTED {
            self.text.drain(..self.text.len() - MAX_REPORTED);
        }
    }

    /// Writes the buffered output to its destination, and passes on what follows.
    fn pass_through(&mut self) {
        if !std::mem::replace(&mut self.passes_through, true) {
            // An output that is closed or full is up to the program.
            let _ = self.real.write_all(&self.text);
        }
    }
}

/// A process that is to become a server.
struct StartingProcess {
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
    fn new(
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

    fn wait(
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
                let message = "it was told to shut down before it served".to_owned();
                return Err(ServerError::Startup { message });
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
                    return Err(ServerError::Startup { message });
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
                Ok(Some(ServerMessage::Misconfigured { expected, reason })) => {
                    return Some(Outcome::Error(ServerError::Misconfigured { expected, reason }));
                }
                Ok(Some(ServerMessage::Failed(message) | ServerMessage::Ended(message))) => {
                    return Some(Outcome::Error(ServerError::Startup { message }));
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
        let readers = self.outputs.iter().filter_map(|outputs| outputs.reader.as_ref());
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
        let texts = self.outputs.iter().map(|outputs| {
            let from = outputs.text.len().saturating_sub(MAX_REPORTED / self.outputs.len());
            String::from_utf8_lossy(&outputs.text[from..]).trim_end().to_owned()
        });
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

/// Describes a process: `process 7 (/srv/app, sleeping in do_nanosleep)`.
fn describe(pid: u32) -> String {
    let read = |what| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let channel = read("cmdline");
    let channel = String::from_utf8_lossy(&channel).trim_end_matches('\0').replace('\0', " ");
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
    format!("its process {pid} ({}, {state})", log_defer::printable(&channel))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs() -> (BufferedOutput, File, File) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let (shown, real) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        // With room for everything that is written at once.
        rustix::pipe::fcntl_setpipe_size(&real, 4 * MAX_BUFFERED).unwrap();
        rustix::io::ioctl_fionbio(&shown, true).unwrap();
        (BufferedOutput::new(reader, real.into()), writer.into(), shown.into())
    }

    fn all(shown: &mut File) -> Vec<u8> {
        let (mut text, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(length) = shown.read(&mut piece) {
            text.extend_from_slice(&piece[..length]);
        }
        text
    }

    #[test]
    fn output_is_buffered_until_it_passes_through_and_nothing_is_lost() {
        let (mut outputs, mut writer, mut shown) = outputs();
        writer.write_all(b"before").unwrap();
        outputs.read();
        assert_eq!(all(&mut shown), b"");
        outputs.pass_through();
        writer.write_all(b", after").unwrap();
        outputs.read();
        assert_eq!(all(&mut shown), b"before, after");
    }

    #[test]
    fn the_buffered_output_is_bounded() {
        let (mut outputs, mut writer, mut shown) = outputs();
        let mut seen = Vec::new();
        for _ in 0..100 {
            writer.write_all(&[b'x'; 4000]).unwrap();
            outputs.read();
            seen.extend(all(&mut shown));
        }
        assert!(outputs.text.len() <= 2 * MAX_REPORTED);
        assert_eq!(seen.len(), 100 * 4000);
    }
}
