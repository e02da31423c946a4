//! The standard error of workers. The server reads it, writes it to the log line by line with the
//! workers' process ids, and keeps the end for death notices. Reading and logging are bounded, so a
//! worker can neither keep the server busy nor fill its log.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use log_defer::printable_bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read};
use rustix::pipe::{PipeFlags, pipe_with};

use super::log;
use super::log_limit::{LogLimit, WINDOW};
use crate::log_output;

/// What happens to the standard error of workers.
///
/// ```
/// use taskfork::Server;
/// use taskfork::server::Stderr;
///
/// let builder = Server::builder().stderr(Stderr::Inherit);
/// # let _ = builder;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Stderr {
    /// The server reads it and writes each line to its own standard error, with the worker's
    /// process id in front; for a worker that is a program, with that of the program behind it: `[4711/4712]`. Control characters except tabs are escaped (`\\x1b`). The last 4 KiB,
    /// unescaped, are part of the error of a call whose worker dies.
    ///
    /// The lines go to the server's log if that is written by a
    /// [`LogWriter`](crate::server::LogWriter). A worker never waits for the log: lines that cannot
    /// be written are dropped and counted.
    ///
    /// The cost of a worker's output is limited:
    ///
    /// * The server reads at most 256 KiB of a worker in 20 milliseconds, and each line counts as
    ///   100 bytes more. Workers that write more at the same time share this limit. A worker that
    ///   writes faster blocks in `write`.
    /// * The server shows at most 10,000 lines of a worker in 10 seconds, and each 512 bytes of a
    ///   longer line count as a line. It counts further lines and shows their number. When the
    ///   worker ends, the server shows the last 4 KiB in any case.
    #[default]
    Capture,
    /// As [`Capture`](Self::Capture), with the same limits. But each line becomes an event of the
    /// crate `tracing` with the level `INFO`, the target `taskfork::stderr`, and the worker's
    /// process id in the field `pid`, and that of its program, if it is one, in the field `program`.
    Log,
    /// As [`Capture`](Self::Capture), with the same limits, but no line is shown. The last 4 KiB are still part of the
    /// error of a call whose worker dies, and of the status.
    Hide,
    /// Workers inherit the server's standard error. Nothing is escaped, and deaths have no standard
    /// error. If it is a file, workers can truncate and lock it, also in a
    /// [`sandbox`](crate::ServerBuilder::sandbox).
    Inherit,
}

/// How many bytes are kept for a death notice.
const TAIL_SIZE: usize = 4096;

/// The maximum length of a line. Longer lines are split.
const MAX_LINE: usize = 3500;

/// How many bytes are read before other events get their turn.
const READ_SIZE: usize = 64 << 10;

/// How many bytes of a worker are read in a [`TIME_SLICE`], and how many bytes each line counts in
/// addition.
pub(super) const MAX_BYTES_PER_SLICE: usize = 256 << 10;
const TIME_SLICE: Duration = Duration::from_millis(20);
const LINE_COST: usize = 100;
/// How many bytes a read counts as at least. A worker may write its bytes one by one.
const READ_COST: usize = 1 << 10;

/// The least that is read of a worker if others write too much as well.
pub(super) const MIN_BYTES_PER_SLICE: usize = 8 << 10;

/// How many lines of a worker are shown in a [`WINDOW`]. Each piece of this many bytes of a longer
/// line counts as one.
const MAX_LINES: u32 = 10_000;
const BYTES_PER_LINE: usize = 512;

/// The limit at a worker's death. Descendants that have got away may keep writing.
const MAX_FINAL_READS: usize = 16;

/// Whose lines they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer {
    pub(crate) pid: u32,
    /// The process id of the program that is the worker.
    pub(crate) program: Option<u32>,
}

impl fmt::Display for Writer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.program {
            Some(program) => write!(out, "{}/{program}", self.pid),
            None => self.pid.fmt(out),
        }
    }
}

/// The end of what a dead worker has written.
#[derive(Debug, Default)]
pub(crate) struct StderrTail {
    /// The last bytes as text.
    pub(crate) text: Option<String>,
    /// The standard library has reported a failed allocation. The stack that follows may have
    /// pushed that message out of the text.
    pub(crate) allocation_failed: bool,
}

/// The server's side of a worker's standard error.
#[derive(Debug)]
pub(crate) struct CapturedStderr {
    /// `None` after the worker and its descendants have closed the other end.
    pipe: Option<OwnedFd>,
    tail: LineBuffer,
    rate: ReadRate,
    /// The limit of lines that are shown.
    lines: LogLimit,
}

/// The result of a read.
#[derive(Debug)]
pub(crate) enum ReadOutcome {
    /// There may be more to read.
    MayHaveMore,
    /// There may be more, which is not read before this time.
    Paused(Instant),
    /// The worker and its descendants have closed the other end.
    Ended(OwnedFd),
}

/// How much has been read in the current time slice.
#[derive(Debug, Default)]
struct ReadRate {
    since: Option<Instant>,
    cost: usize,
}

impl ReadRate {
    /// Counts what has been read. Returns until when reading is paused, if that was `most` bytes in
    /// a slice.
    fn count(&mut self, cost: usize, most: usize, now: Instant) -> Option<Instant> {
        let since = self.since.filter(|since| now.saturating_duration_since(*since) < TIME_SLICE);
        if since.is_none() {
            self.cost = 0;
        }
        let since = *self.since.insert(since.unwrap_or(now));
        self.cost += cost;
        // A piece may be more than one slice's worth.
        let slices = self.cost as f64 / most as f64;
        (slices >= 1.0).then(|| since + TIME_SLICE.mul_f64(slices))
    }
}

impl CapturedStderr {
    /// Creates the pipe. Returns the end for the worker too.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (pipe, worker) = pipe_with(PipeFlags::CLOEXEC)?;
        // Only the server's end must not block.
        ioctl_fionbio(&pipe, true)?;
        let (tail, rate, lines) =
            (LineBuffer::default(), ReadRate::default(), LogLimit::new(MAX_LINES));
        Ok((Self { pipe: Some(pipe), tail, rate, lines }, worker))
    }

    /// The pipe, if there may be more to read.
    pub(crate) fn pipe(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref()
    }

    pub(crate) fn pipe_mut(&mut self) -> Option<&mut OwnedFd> {
        self.pipe.as_mut()
    }

    /// Reads what has arrived, within the limits, and shows it as lines of `writer`.
    pub(crate) fn forward(
        &mut self,
        writer: Writer,
        output: &mut StderrOutput,
        most: usize,
    ) -> ReadOutcome {
        let now = Instant::now();
        self.report_omitted(writer, output, now);
        let (is_over, paused) = self.read(writer, output, most, now);
        output.flush();
        match (self.pipe.take_if(|_| is_over), paused) {
            (Some(ended), _) => ReadOutcome::Ended(ended),
            (None, Some(until)) => ReadOutcome::Paused(until),
            (None, None) => ReadOutcome::MayHaveMore,
        }
    }

    /// Reads the rest after the worker's death. Returns the end of what it wrote.
    pub(crate) fn finish(mut self, writer: Writer, output: &mut StderrOutput) -> StderrTail {
        for _ in 0..MAX_FINAL_READS {
            let more = self.pipe.as_ref().is_some_and(|pipe| is_ready(pipe.as_fd(), PollFlags::IN));
            if !more || matches!(self.forward(writer, output, usize::MAX), ReadOutcome::Ended(_)) {
                break;
            }
        }
        let Self { tail, lines, .. } = &mut self;
        tail.end(|line| show(writer, line, output, lines, Instant::now()));
        let text = tail.text();
        if let Some(omitted) = lines.take_all_omitted() {
            output.omitted(writer, omitted, "; the end of it follows");
            text.iter()
                .flat_map(|text| text.lines())
                .for_each(|line| output.line(writer, line.as_bytes()));
        }
        output.flush();
        StderrTail { text, allocation_failed: self.tail.allocation_failed }
    }

    /// Shows how many lines were omitted if it is time. Returns the time until it is.
    pub(crate) fn report_omitted(
        &mut self,
        writer: Writer,
        output: &mut StderrOutput,
        now: Instant,
    ) -> Option<Duration> {
        if let Some(omitted) = self.lines.take_omitted(now) {
            output.omitted(writer, omitted, "");
            output.flush();
        }
        self.lines.time_until_report(now)
    }

    /// Reads within the limits. Returns whether the end has been reached, and until when reading is
    /// paused.
    fn read(
        &mut self,
        writer: Writer,
        output: &mut StderrOutput,
        most: usize,
        now: Instant,
    ) -> (bool, Option<Instant>) {
        let Self { pipe, tail, rate, lines } = self;
        let Some(pipe) = pipe else { return (true, None) };
        let mut piece = [0; 4 << 10];
        let mut total = 0;
        while total < READ_SIZE {
            match read(&*pipe, &mut piece) {
                Ok(0) => return (true, None),
                Ok(length) => {
                    let mut cost = length.max(READ_COST);
                    tail.push(&piece[..length], |line| {
                        cost += LINE_COST;
                        show(writer, line, output, lines, now);
                    });
                    total += length;
                    let paused = rate.count(cost, most, now);
                    if paused.is_some() {
                        return (false, paused);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return (false, rate.count(READ_COST, most, now)),
            }
        }
        (false, None)
    }
}

/// Shows a line, or counts it.
fn show(
    writer: Writer,
    line: &[u8],
    output: &mut StderrOutput,
    lines: &mut LogLimit,
    now: Instant,
) {
    let weight = u32::try_from(line.len() / BYTES_PER_LINE).unwrap_or(MAX_LINES).max(1);
    if lines.acquire_weighted(weight, now) {
        output.line(writer, line);
    }
}

/// The last position up to `most` that does not split a character of UTF-8.
fn boundary(bytes: &[u8], most: usize) -> usize {
    let is_boundary = |&at: &usize| bytes.get(at).is_none_or(|byte| byte & 0xc0 != 0x80);
    (most.saturating_sub(3)..=most).rev().find(is_boundary).unwrap_or(most)
}

fn is_ready(descriptor: BorrowedFd<'_>, event: PollFlags) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut watched = [PollFd::from_borrowed_fd(descriptor, event)];
    poll(&mut watched, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// The end of a stream of bytes, and the current line.
#[derive(Debug, Default)]
struct LineBuffer {
    kept: Vec<u8>,
    line: Vec<u8>,
    allocation_failed: bool,
}

impl LineBuffer {
    fn push(&mut self, bytes: &[u8], mut show: impl FnMut(&[u8])) {
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > 2 * TAIL_SIZE {
            self.kept.drain(..self.kept.len() - TAIL_SIZE);
        }
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            while self.line.len() > MAX_LINE {
                let rest = self.line.split_off(boundary(&self.line, MAX_LINE));
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

    /// Shows the last line even without a newline.
    fn end(&mut self, show: impl FnOnce(&[u8])) {
        if !self.line.is_empty() {
            show(&std::mem::take(&mut self.line));
        }
    }

    /// The kept bytes as text.
    fn text(&self) -> Option<String> {
        let kept = &self.kept[self.kept.len().saturating_sub(TAIL_SIZE)..];
        let text = String::from_utf8_lossy(kept);
        // Invalid bytes become longer when they are replaced.
        let start = text.ceil_char_boundary(text.len().saturating_sub(TAIL_SIZE));
        let text = text[start..].trim_end();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// The destination of workers' lines: the server's log, or events.
#[derive(Debug, Default)]
pub(crate) struct StderrOutput {
    /// What becomes of lines.
    shown: Stderr,
}

impl StderrOutput {
    pub(crate) fn new(stderr: Stderr) -> Self {
        Self { shown: stderr }
    }

    /// Shows a line.
    fn line(&mut self, writer: Writer, line: &[u8]) {
        if self.shown == Stderr::Hide {
            return;
        }
        if self.shown == Stderr::Log {
            let line = printable_bytes(line.strip_suffix(b"\r").unwrap_or(line));
            let Writer { pid, program } = writer;
            log::info!(target: "taskfork::stderr", pid, program, "{line}");
            return;
        }
        let mut log = log_output::lock();
        lines(writer, line, |line| log.push(line));
    }

    /// Shows how many lines were omitted.
    fn omitted(&mut self, writer: Writer, lines: u64, then: &str) {
        let seconds = WINDOW.as_secs();
        let text = format!(
            "{lines} lines of its standard error are left out, as there were more than {MAX_LINES} in {seconds} s{then}"
        );
        match self.shown {
            Stderr::Log => {
                let Writer { pid, program } = writer;
                log::warn!(target: "taskfork::stderr", pid, program, "{text}");
            }
            _ => self.line(writer, text.as_bytes()),
        }
    }

    fn flush(&mut self) {
        log_output::flush();
    }
}

/// Formats a line with control characters escaped. A line that becomes too long by that is split.
fn lines(writer: Writer, line: &[u8], mut show: impl FnMut(Vec<u8>)) {
    let line = printable_bytes(line.strip_suffix(b"\r").unwrap_or(line));
    let mut rest = &*line;
    loop {
        let (piece, more) = rest.split_at(rest.floor_char_boundary(MAX_LINE));
        show(format!("[{writer}] {piece}\n").into_bytes());
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
                tail.push(now, |line| lines.push(line.to_owned()));
                rest = later;
            }
            tail.end(|line| lines.push(line.to_owned()));
            let expected: Vec<&[u8]> = text
                .split_inclusive(|&byte| byte == b'\n')
                .map(|line| line.strip_suffix(b"\n").unwrap_or(line))
                .collect();
            prop_assert_eq!(&lines, &expected);
            let kept = tail.text().unwrap_or_default();
            prop_assert!(kept.len() <= TAIL_SIZE);
            prop_assert!(String::from_utf8_lossy(&text).trim_end().ends_with(&kept));
        }
    }

    #[test]
    fn what_is_read_in_a_time_slice_is_bounded() {
        let (mut rate, start) = (ReadRate::default(), Instant::now());
        assert_eq!(rate.count(999, 1000, start), None);
        assert_eq!(rate.count(1, 1000, start + TIME_SLICE / 2), Some(start + TIME_SLICE));
        // What exceeds a slice counts in the next ones.
        let later = start + TIME_SLICE;
        assert_eq!(rate.count(2500, 1000, later), Some(later + TIME_SLICE * 5 / 2));
        let later = later + TIME_SLICE * 3;
        assert_eq!(rate.count(999, 1000, later), None);
        assert_eq!(rate.count(999, 1000, later + TIME_SLICE), None);
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let mut tail = LineBuffer::default();
        let mut lines = Vec::new();
        tail.push(&[b'x'; 8000], |line| lines.push(line.len()));
        tail.end(|line| lines.push(line.len()));
        assert_eq!(lines, [3500, 3500, 1000]);
    }
    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        let shown = |line: &[u8]| {
            let mut shown = Vec::new();
            lines(Writer { pid: 7, program: None }, line, |line| shown.push(line));
            shown
        };
        let line = shown(b"\x1b[2J\tgr\xc3\xbcn \xff\xe2\x80\xae\r");
        assert_eq!(line, ["[7] \\x1b[2J\tgrün \\xff\\u{202e}\n".as_bytes()]);
        // Each piece is written whole, so a line that becomes too long is split.
        let lengths: Vec<usize> = shown(&[0x1b; 900]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [4 + 3500 + 1, 4 + 100 + 1]);
    }

    #[test]
    fn no_character_is_cut_in_two() {
        let mut tail = LineBuffer::default();
        let mut lines = Vec::new();
        tail.push("é".repeat(2000).as_bytes(), |line| lines.push(line.to_owned()));
        tail.push("a\n".as_bytes(), |line| lines.push(line.to_owned()));
        assert!(lines.iter().all(|line| std::str::from_utf8(line).is_ok()));
        let mut tail = LineBuffer::default();
        let mut lengths = Vec::new();
        tail.push(format!("x{}", "é".repeat(2000)).as_bytes(), |line| lengths.push(line.len()));
        assert_eq!(lengths, [3499]);
    }
}
