//! The output of a new process before it calls `init`. It is buffered, because it may come from a
//! program that does not know that it becomes a server.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

/// The most bytes of output that are buffered, and the most that an error contains.
const MAX_BUFFERED: usize = 64 << 10;
const MAX_REPORTED: usize = 4 << 10;

/// An output of a new process: the pipe that buffers it, and where it leads after `init`.
pub(super) struct Output {
    pub(super) real: File,
    pub(super) reader: OwnedFd,
    pub(super) writer: OwnedFd,
}

impl Output {
    pub(super) fn new(real: BorrowedFd<'_>) -> io::Result<Self> {
        let real = File::from(rustix::io::fcntl_dupfd_cloexec(real, 3)?);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(Self { real, reader, writer })
    }
}

/// The output of a new process before `init`.
#[derive(Debug)]
pub(super) struct BufferedOutput {
    /// `None` after the other end has been closed.
    reader: Option<File>,
    real: File,
    text: Vec<u8>,
    /// The output is no longer held back, because `init` was called or because there was too much.
    passes_through: bool,
}

impl BufferedOutput {
    pub(super) fn new(reader: OwnedFd, real: File) -> Self {
        Self { reader: Some(reader.into()), real, text: Vec::new(), passes_through: false }
    }

    /// Reads what has arrived.
    pub(super) fn read(&mut self) {
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
    pub(super) fn pass_through(&mut self) {
        if !std::mem::replace(&mut self.passes_through, true) {
            // An output that is closed or full is up to the program.
            let _ = self.real.write_all(&self.text);
        }
    }
    /// The last bytes of the output as text, for an error. There are this many outputs.
    pub(super) fn end(&self, outputs: usize) -> String {
        let from = self.text.len().saturating_sub(MAX_REPORTED / outputs.max(1));
        String::from_utf8_lossy(&self.text[from..]).trim_end().to_owned()
    }

    /// The pipe, for as long as the other end is open.
    pub(super) fn reader(&self) -> Option<&File> {
        self.reader.as_ref()
    }
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
