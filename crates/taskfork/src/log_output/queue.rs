//! A bounded queue of log lines, which counts the lines that are lost.

use std::collections::VecDeque;

use rustix::io::Errno;

/// The maximum number of bytes in the queue. A line that does not fit is lost.
const MAX_BYTES: usize = 256 << 10;

/// After a loss, lines are accepted again when the queue has shrunk to this size. Otherwise every
/// second line would be a notice of loss.
const RESUME_BYTES: usize = MAX_BYTES / 4;

/// A pipe takes up to this many bytes whole or not at all.
const ATOMIC_WRITE: usize = 4096;

#[derive(Debug)]
pub(super) struct Queue {
    lines: VecDeque<Line>,
    /// The bytes in the queue.
    bytes: usize,
    /// The bytes of the first line that have been written.
    written: usize,
    lost: u64,
    /// The end of the last written line is missing.
    is_torn: bool,
    /// The log consists of JSON, so notices do too.
    is_json: bool,
}

#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    /// How many lines are lost if this one is. A notice stands for the lines that it counts.
    stands_for: u64,
}

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteResult {
    /// The queue is empty.
    All,
    /// The reader takes nothing now.
    Stalled,
    /// The queue is lost.
    Failed,
}

impl Queue {
    pub(super) const fn new() -> Self {
        let lines = VecDeque::new();
        Self { lines, bytes: 0, written: 0, lost: 0, is_torn: false, is_json: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The number of lost lines that have not been reported.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Adds a line, which ends with a newline.
    pub(super) fn push(&mut self, text: Vec<u8>) {
        match text.first() {
            Some(b'{') => self.is_json = true,
            // A line of a worker's standard error, which looks the same in both formats.
            Some(b'[') => {}
            _ => self.is_json = false,
        }
        self.report();
        if self.lost > 0 || self.bytes + text.len() > MAX_BYTES {
            self.lost += 1;
        } else {
            self.add(text, 1);
        }
    }

    /// Adds a notice of lost lines, if there are any and there is room.
    pub(super) fn report(&mut self) {
        if self.lost == 0 || self.bytes > RESUME_BYTES {
            return;
        }
        let lost = std::mem::take(&mut self.lost);
        let lines = if lost == 1 { "line was" } else { "lines were" };
        let text = format!("{lost} {lines} lost, as the log could not be written");
        let text = match self.is_json {
            true => format!("{{\"level\":\"ERROR\",\"fields\":{{\"message\":\"{text}\"}}}}"),
            false => format!("taskfork: {text}"),
        };
        self.add(format!("{text}\n").into_bytes(), lost);
    }

    fn add(&mut self, mut text: Vec<u8>, stands_for: u64) {
        if std::mem::take(&mut self.is_torn) {
            text.insert(0, b'\n');
        }
        self.bytes += text.len();
        self.lines.push_back(Line { text, stands_for });
    }

    /// Writes the queue, in pieces that a pipe takes whole.
    pub(super) fn flush(
        &mut self,
        mut write: impl FnMut(&[u8]) -> rustix::io::Result<usize>,
    ) -> WriteResult {
        let mut piece = Vec::new();
        while !self.lines.is_empty() {
            self.fill(&mut piece);
            match write(&piece) {
                Ok(length @ 1..) => self.advance(length.min(piece.len())),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return WriteResult::Stalled,
                Ok(0) | Err(_) => {
                    self.lose_all();
                    return WriteResult::Failed;
                }
            }
        }
        WriteResult::All
    }

    /// Fills the piece with whole lines that fit, or with the beginning of one line.
    fn fill(&self, piece: &mut Vec<u8>) {
        piece.clear();
        let mut skip = self.written;
        for line in &self.lines {
            let rest = &line.text[skip..];
            skip = 0;
            let room = ATOMIC_WRITE - piece.len();
            if rest.len() > room && !piece.is_empty() {
                return;
            }
            piece.extend_from_slice(&rest[..rest.len().min(room)]);
        }
    }

    fn advance(&mut self, length: usize) {
        self.written += length;
        while let Some(line) = self.lines.front()
            && line.text.len() <= self.written
        {
            self.written -= line.text.len();
            self.bytes -= line.text.len();
            self.lines.pop_front();
        }
    }

    /// Counts all lines in the queue as lost.
    pub(super) fn lose_all(&mut self) {
        if let Some(first) = self.lines.front_mut() {
            // A line after a torn one begins with the missing newline.
            self.is_torn |= self.written > 0 || first.text.starts_with(b"\n");
            // Only the newline is missing.
            if self.written + 1 == first.text.len() {
                first.stands_for = 0;
            }
        }
        self.lost += self.lines.drain(..).map(|line| line.stands_for).sum::<u64>();
        (self.bytes, self.written) = (0, 0);
    }

    /// Empties the queue, because another process writes it.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The reaction of a reader to a write.
    #[derive(Debug, Clone)]
    enum Reader {
        All,
        Some(usize),
        Nothing,
        Fails(Errno),
    }

    fn reader() -> impl Strategy<Value = Reader> {
        prop_oneof![
            3 => Just(Reader::All),
            2 => (1..5000_usize).prop_map(Reader::Some),
            2 => Just(Reader::Nothing),
            1 => Just(Reader::Fails(Errno::PIPE)),
            1 => Just(Reader::Fails(Errno::NOSPC)),
        ]
    }

    fn write(queue: &mut Queue, out: &mut Vec<u8>, reader: &Reader) -> WriteResult {
        let mut rest = match reader {
            Reader::Some(most) => *most,
            _ => usize::MAX,
        };
        queue.flush(|piece| match reader {
            Reader::Fails(errno) => Err(*errno),
            Reader::Nothing => Err(Errno::AGAIN),
            Reader::All | Reader::Some(_) if rest > 0 => {
                let length = piece.len().min(rest);
                rest -= length;
                out.extend_from_slice(&piece[..length]);
                Ok(length)
            }
            _ => Err(Errno::AGAIN),
        })
    }

    proptest! {
        #[test]
        fn each_line_arrives_or_is_counted_where_it_is_missing(
            steps in prop::collection::vec((1..40_usize, 0..9000_usize, reader()), 1..60),
        ) {
            let (mut queue, mut out, mut number) = (Queue::new(), Vec::new(), 0_u64);
            for (count, length, reader) in steps {
                for _ in 0..count {
                    queue.push(format!("line {number} {}.\n", "x".repeat(length)).into_bytes());
                    number += 1;
                }
                write(&mut queue, &mut out, &reader);
                prop_assert!(queue.bytes <= MAX_BYTES + 200);
                let bytes: usize = queue.lines.iter().map(|line| line.text.len()).sum();
                prop_assert_eq!(queue.bytes, bytes);
            }
            while queue.lost() > 0 || !queue.is_empty() {
                write(&mut queue, &mut out, &Reader::All);
                queue.report();
            }
            let mut next = 0;
            for line in String::from_utf8(out).unwrap().lines() {
                let notice = line.strip_prefix("taskfork: ").filter(|it| it.ends_with("written"));
                if let Some((lost, _)) = notice.and_then(|notice| notice.split_once(' ')) {
                    next += lost.parse::<u64>().unwrap();
                }
                let whole = line.strip_prefix("line ").and_then(|it| it.strip_suffix('.'));
                if let Some((at, _)) = whole.and_then(|whole| whole.split_once(' ')) {
                    prop_assert_eq!(at.parse(), Ok(next));
                    next += 1;
                }
            }
            prop_assert_eq!(next, number);
        }
    }

    #[test]
    fn a_notice_that_is_lost_gives_its_number_to_the_next() {
        let (mut queue, mut out) = (Queue::new(), Vec::new());
        for _ in 0..3 {
            queue.push(b"a line\n".to_vec());
            assert_eq!(
                write(&mut queue, &mut out, &Reader::Fails(Errno::NOSPC)),
                WriteResult::Failed
            );
        }
        assert_eq!(queue.lost(), 3);
        queue.push(b"{\"level\":\"INFO\"}\n".to_vec());
        assert_eq!(write(&mut queue, &mut out, &Reader::All), WriteResult::All);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "{\"level\":\"ERROR\",\"fields\":{\"message\":\"3 lines were lost, as the log could not be \
             written\"}}\n{\"level\":\"INFO\"}\n"
        );
    }
}
