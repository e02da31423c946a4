//! Memory that a forked process does not get.

use std::fmt;
use std::io;

use crate::sys::WipedPages;

/// A value that forked processes cannot read, such as a key or a password.
///
/// A forked worker is a copy of its server and can read what the server has in memory. The kernel fills
/// the memory of a `Secret` with zeros in each forked process (`MADV_WIPEONFORK`), and leaves it out of
/// core dumps. It stays readable in the process that made it.
///
/// Only this copy is protected: wipe the buffer that the value came from, and do not copy the value.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let key = taskfork_sandbox::Secret::new(b"correct horse")?;
/// assert_eq!(key.expose(), Some(&b"correct horse"[..]));
/// assert_eq!(format!("{key:?}"), "Secret { .. }");
/// # Ok(())
/// # }
/// ```
pub struct Secret {
    pages: WipedPages,
    length: usize,
}

/// The first byte of the pages, which is 0 in a forked process.
const PRESENT: u8 = 1;

impl Secret {
    /// Copies a value into memory that forked processes do not get.
    ///
    /// # Errors
    ///
    /// The kernel has no memory left, or is older than Linux 4.14.
    pub fn new(value: &[u8]) -> io::Result<Self> {
        let mut pages = WipedPages::new(value.len() + 1)?;
        let bytes = pages.bytes_mut();
        bytes[1..=value.len()].copy_from_slice(value);
        bytes[0] = PRESENT;
        Ok(Self { pages, length: value.len() })
    }

    /// Returns the value, or `None` in a process that was forked after the value was made.
    pub fn expose(&self) -> Option<&[u8]> {
        let bytes = self.pages.bytes();
        (bytes[0] == PRESENT).then(|| &bytes[1..=self.length])
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}
