//! What workers write to standard error: read as fast as they write it, shown line by line with
//! their process ids, and the end of it kept for the news of a death.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use log_defer::printable_bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read};
use rustix::pipe::{PipeFlags, pipe_with};

use super::log;
use crate::log_output;

/// What becomes of what workers write to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Stderr {
    /// The server reads it and writes each line to its own standard error, with the worker's process id in front and
    /// control characters escaped (`\\x1b`), tabs excepted. It attaches the last 4 KiB, unescaped, to the worker's death.
    /// The lines go where the server's log goes if that is written by a [`LogWriter`](crate::server::LogWriter). A worker never
    /// waits for it: lines that cannot be written are dropped and counted.
    #[default]
    Capture,
    /// As [`Capture`](Self::Capture), but each line becomes an event of the crate `tracing` with the level `INFO`, the
    /// target `taskfork::stderr`, and the worker's process id in the field `pid`.
    Log,
    /// Workers have the server's. Nothing is escaped, and deaths have no standard error.
    Inherit,
}

/// How much is kept for the news of a death.
const KEPT: usize = 4096;

/// A line is cut after so many bytes.
const LONGEST: usize = 3500;

/// How much is read before others have their turn.
const TURN: usize = 64 << 10;

/// At its worker's death: descendants that have got away may go on writing for ever.
const LAST_TURNS: usize = 16;

/// What a dead worker has written to standard error.
#[derive(Debug, Default)]
pub(crate) struct StderrTail {
    /// The end of it.
    pub(crate) text: Option<String>,
    /// Rust's runtime said that there was no memory to be had. A stack that follows may have pushed
    /// that out of the end.
    pub(crate) allocation_failed: bool,
}

/// A worker's standard error as the server has it.
#[derive(Debug)]
pub(crate) struct CapturedStderr {
    /// Until the worker and all that it has started have closed the other end.
    pipe: Option<OwnedFd>,
    tail: LineBuffer,
}

impl CapturedStderr {
    /// With it comes the end for the worker.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (pipe, worker) = pipe_with(PipeFlags::CLOEXEC)?;
        // Of the two ends the server's only must not wait.
        ioctl_fionbio(&pipe, true)?;
        Ok((Self { pipe: Some(pipe), tail: LineBuffer::default() }, worker))
    }

    /// What is to be watched, if there may be more to read.
    pub(crate) fn pipe(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref()
    }

    /// Reads what is there, up to a turn's worth, and shows it as lines of process `pid`. Gives the
    /// pipe back once it has ended.
    pub(crate) fn pass_on(&mut self, pid: u32, shown: &mut StderrOutput) -> Option<OwnedFd> {
        let ended = self.read(|line| shown.line(pid, line));
        shown.flush();
        self.pipe.take_if(|_| ended)
    }

    /// All that is left when the worker has died; gives the end of what it wrote.
    pub(crate) fn finish(mut self, pid: u32, shown: &mut StderrOutput) -> StderrTail {
        for _ in 0..LAST_TURNS {
            let more = self.pipe.as_ref().is_some_and(|pipe| is_ready(pipe.as_fd(), PollFlags::IN));
            if !more || self.pass_on(pid, shown).is_some() {
                break;
            }
        }
        self.tail.end(|line| shown.line(pid, line));
        shown.flush();
        StderrTail { text: self.tail.text(), allocation_failed: self.tail.allocation_failed }
    }

    /// Reads a turn's worth; tells whether it was the last.
    fn read(&mut self, mut show: impl FnMut(&[u8])) -> bool {
        let Some(pipe) = &self.pipe else { return true };
        let mut piece = [0; 4 << 10];
        let mut total = 0;
        while total < TURN {
            match read(pipe, &mut piece) {
                Ok(0) => return true,
                Ok(length) => {
                    total += length;
                    self.tail.take(&piece[..length], &mut show);
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        false
    }
}

/// The last place up to `most` where no character of UTF-8 is cut, if it is UTF-8.
fn boundary(bytes: &[u8], most: usize) -> usize {
    let is_boundary = |&at: &usize| bytes.get(at).is_none_or(|byte| byte & 0xc0 != 0x80);
    (most.saturating_sub(3)..=most).rev().find(is_boundary).unwrap_or(most)
}

fn is_ready(descriptor: BorrowedFd<'_>, event: PollFlags) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut watched = [PollFd::from_borrowed_fd(descriptor, event)];
    poll(&mut watched, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// The end of a stream of bytes, and the line that it is in.
#[derive(Debug, Default)]
struct LineBuffer {
    kept: Vec<u8>,
    line: Vec<u8>,
    allocation_failed: bool,
}

impl LineBuffer {
    fn take(&mut self, bytes: &[u8], mut show: impl FnMut(&[u8])) {
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > 2 * KEPT {
            self.kept.drain(..self.kept.len() - KEPT);
        }
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            while self.line.len() > LONGEST {
                let rest = self.line.split_off(boundary(&self.line, LONGEST));
                show(&self.line);
                self.line = rest;
            }
            if self.line.last() == Some(&b'\n') {
                self.line.pop();
                self.allocation_failed |= self.line.starts_with(b"memory allocation of ");
                show(&self.line);
                self.line.clear();
            }
        }
    }

    /// Shows the last line even if nothing ended it.
    fn end(&mut self, show: impl FnOnce(&[u8])) {
        if !self.line.is_empty() {
            show(&std::mem::take(&mut self.line));
        }
    }

    /// The last of it as text.
    fn text(&self) -> Option<String> {
        let kept = &self.kept[self.kept.len().saturating_sub(KEPT)..];
        let text = String::from_utf8_lossy(kept);
        // What could not be read as text takes more room than it did.
        let start = text.ceil_char_boundary(text.len().saturating_sub(KEPT));
        let text = text[start..].trim_end();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// The server's log, to which workers' lines are added.
#[derive(Debug, Default)]
pub(crate) struct StderrOutput {
    /// Lines are events, and not written here.
    is_logged: bool,
}

impl StderrOutput {
    pub(crate) fn new(stderr: Stderr) -> Self {
        Self { is_logged: stderr == Stderr::Log }
    }

    /// Shows a line.
    fn line(&mut self, pid: u32, line: &[u8]) {
        if self.is_logged {
            let line = printable_bytes(line.strip_suffix(b"\r").unwrap_or(line));
            log::info!(target: "taskfork::stderr", pid, "{line}");
            return;
        }
        let mut log = log_output::lock();
        lines(pid, line, |line| log.push(line));
    }

    fn flush(&mut self) {
        log_output::lock().flush();
    }
}

/// A line with what a terminal would handle_control escaped. One that becomes too long by that is cut.
fn lines(pid: u32, line: &[u8], mut show: impl FnMut(Vec<u8>)) {
    let line = printable_bytes(line.strip_suffix(b"\r").unwrap_or(line));
    let mut rest = &*line;
    loop {
        let (piece, more) = rest.split_at(rest.floor_char_boundary(LONGEST));
        show(format!("[{pid}] {piece}\n").into_bytes());
        rest = more;
        if rest.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_and_the_end_are_the_same_however_they_are_cut(
            text in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()], 0..9000),
            cuts in prop::collection::vec(1..500usize, 1..20),
        ) {
            let mut tail = LineBuffer::default();
            let mut lines: Vec<Vec<u8>> = Vec::new();
            let (mut rest, mut cuts) = (&text[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let cut = cuts.next().map_or(1, |cut| cut.min(rest.len()));
                let (now, later) = rest.split_at(cut);
                tail.take(now, |line| lines.push(line.to_owned()));
                rest = later;
            }
            tail.end(|line| lines.push(line.to_owned()));
            let expected: Vec<&[u8]> = text
                .split_inclusive(|&byte| byte == b'\n')
                .map(|line| line.strip_suffix(b"\n").unwrap_or(line))
                .collect();
            prop_assert_eq!(&lines, &expected);
            let kept = tail.text().unwrap_or_default();
            prop_assert!(kept.len() <= KEPT);
            prop_assert!(String::from_utf8_lossy(&text).trim_end().ends_with(&kept));
        }
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let mut tail = LineBuffer::default();
        let mut lines = Vec::new();
        tail.take(&[b'x'; 8000], |line| lines.push(line.len()));
        tail.end(|line| lines.push(line.len()));
        assert_eq!(lines, [3500, 3500, 1000]);
    }
    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        let shown = |line: &[u8]| {
            let mut shown = Vec::new();
            lines(7, line, |line| shown.push(line));
            shown
        };
        let line = shown(b"\x1b[2J\tgr\xc3\xbcn \xff\xe2\x80\xae\r");
        assert_eq!(line, ["[7] \\x1b[2J\tgrün \\xff\\u{202e}\n".as_bytes()]);
        // What becomes too long by that is cut, as each piece has to be written whole.
        let lengths: Vec<usize> = shown(&[0x1b; 900]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [4 + 3500 + 1, 4 + 100 + 1]);
    }

    #[test]
    fn no_character_is_cut_in_two() {
        let mut tail = LineBuffer::default();
        let mut lines = Vec::new();
        tail.take("é".repeat(2000).as_bytes(), |line| lines.push(line.to_owned()));
        tail.take("a\n".as_bytes(), |line| lines.push(line.to_owned()));
        assert!(lines.iter().all(|line| std::str::from_utf8(line).is_ok()));
        let mut tail = LineBuffer::default();
        let mut lengths = Vec::new();
        tail.take(format!("x{}", "é".repeat(2000)).as_bytes(), |line| lengths.push(line.len()));
        assert_eq!(lengths, [3499]);
    }
}
