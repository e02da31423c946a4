//! What the kernel tells in files.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// A file that the kernel makes anew each time that it is read from the start. It stays open, as finding it takes
/// longer than reading it.
#[derive(Debug)]
pub(crate) struct KernelFile(Option<File>);

impl KernelFile {
    /// Where there is no such file, there is nothing in it.
    pub(crate) fn open(path: &str) -> Self {
        Self(File::open(path).ok())
    }

    /// What it says now.
    pub(crate) fn read(&self) -> String {
        let Some(file) = &self.0 else { return String::new() };
        let mut text = vec![0; 8 << 10];
        let mut length = 0;
        loop {
            match file.read_at(&mut text[length..], length as u64) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(_) => return String::new(),
            }
            if length == text.len() {
                text.resize(2 * length, 0);
            }
        }
        text.truncate(length);
        String::from_utf8(text).unwrap_or_default()
    }

    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
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
}
