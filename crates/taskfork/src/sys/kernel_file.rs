//! Files whose contents the kernel makes when they are read, such as those in `/proc`.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// A file whose contents are new at each read from the start. It stays open, because opening it takes longer
/// than reading it.
#[derive(Debug)]
pub(crate) struct KernelFile {
    file: Option<File>,
    /// Where the line of the last number ended.
    number_end: Cell<usize>,
}

impl KernelFile {
    /// Opens the file. A file that does not exist reads as empty.
    pub(crate) fn open(path: &str) -> Self {
        Self { file: File::open(path).ok(), number_end: Cell::new(0) }
    }

    /// A file that is open already.
    pub(crate) fn of(file: OwnedFd) -> Self {
        Self { file: Some(file.into()), number_end: Cell::new(0) }
    }

    /// Returns the present contents.
    pub(crate) fn read(&self) -> String {
        let Some(file) = &self.file else { return String::new() };
        let mut text = Vec::new();
        // The kernel writes at most 4 KiB at a time, and looks for the place to continue from the start of a list
        // each time. A buffer on the heap would have pages that are copied after each fork.
        let mut piece = [0; 4 << 10];
        loop {
            match file.read_at(&mut piece, text.len() as u64) {
                Ok(0) => break,
                Ok(read) => text.extend_from_slice(&piece[..read]),
                Err(_) => return String::new(),
            }
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// Returns the number after `key` at the start of a line, or `None` without such a line. It reads little
    /// more than up to the line where it found the last number: the kernel takes 22 µs to write all of
    /// `/proc/vmstat`, and 14 µs to write what precedes `oom_kill`.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        /// Numbers in front of the line may have become longer.
        const MARGIN: usize = 64;
        let file = self.file.as_ref()?;
        let mut piece = [0; 4 << 10];
        let mut wanted = match self.number_end.get() {
            0 => piece.len(),
            end => (end + MARGIN).min(piece.len()),
        };
        // The start of a line whose end has not been read is kept for the next piece.
        let (mut kept, mut offset) = (0, 0);
        // The piece begins within a line that is longer than a piece. Such a line has no number.
        let mut is_cut = false;
        loop {
            let read = file.read_at(&mut piece[kept..wanted], offset).ok()?;
            wanted = piece.len();
            let text = &piece[..kept + read];
            let end = match text.iter().rposition(|&byte| byte == b'\n') {
                Some(newline) => newline + 1,
                // The last line has no newline.
                None if read == 0 || text.len() == piece.len() => text.len(),
                None => 0,
            };
            let mut lines = text[..end].split(|&byte| byte == b'\n').skip(usize::from(is_cut));
            let value = lines.find_map(|line| line.strip_prefix(key.as_bytes()));
            if let Some(value) = value {
                let end = value.as_ptr_range().end as usize - text.as_ptr() as usize;
                self.number_end.set(offset as usize - kept + end);
                return std::str::from_utf8(value).ok()?.trim().parse().ok();
            }
            if read == 0 {
                return None;
            }
            is_cut = text[..end].last().map_or(is_cut, |&byte| byte != b'\n');
            (kept, offset) = (text.len() - end, offset + read as u64);
            piece.copy_within(end..end + kept, 0);
        }
    }

    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_anew_each_time_however_long_it_is() {
        let maps = KernelFile::open("/proc/self/smaps").read();
        assert!(maps.len() > 8 << 10, "{}", maps.len());
        assert!(maps.ends_with('\n'));
        // The name of this thread, which no other test changes.
        let path = "/proc/thread-self/comm";
        let name = KernelFile::open(path);
        for text in ["first", "second"] {
            std::fs::write(path, text).unwrap();
            assert_eq!(name.read(), format!("{text}\n"));
        }
        assert_eq!(KernelFile::open("/proc/no such file").read(), "");
    }

    #[test]
    fn a_number_is_found_in_any_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counters");
        let long = format!("x{}", "last 4 ".repeat(2 << 10));
        for lines in [0, 1, 300, 700] {
            let many: String = (0..lines).map(|line| format!("counter_{line} {line}\n")).collect();
            let text = format!(
                "{long}\nfirst 1\n{many}middle 18446744073709551615\n{many}kept -1\nlast 3"
            );
            std::fs::write(&path, text).unwrap();
            let file = KernelFile::open(path.to_str().unwrap());
            // The end of one number is where the search of the next one begins.
            for _ in 0..2 {
                let numbers = ["first ", "middle ", "last ", "kept ", "iddle ", "absent "]
                    .map(|key| file.number(key));
                assert_eq!(numbers, [Some(1), Some(u64::MAX), Some(3), None, None, None]);
            }
        }
        assert_eq!(KernelFile::open("/proc/no such file").number("first "), None);
        assert!(KernelFile::open("/proc/vmstat").number("nr_free_pages ").is_some_and(|it| it > 0));
    }
}
