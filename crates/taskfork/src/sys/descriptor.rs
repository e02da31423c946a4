//! Descriptors: inherited ones, closing many at once, and sending one to another process.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most bytes of text in a message between two processes.
pub(crate) const MAX_CHANNEL_TEXT: usize = 4096;

/// Sends a descriptor, with a text of at least one byte, to the process at the other end of `line`. Does not block.
pub(crate) fn send_descriptor(
    line: &OwnedFd,
    descriptor: BorrowedFd<'_>,
    text: &[u8],
) -> io::Result<()> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(line, &[IoSlice::new(text)], &mut ancillary, flags)?;
    Ok(())
}

/// A message received by [`receive_descriptor`].
#[derive(Debug)]
pub(crate) enum Received {
    Descriptor(OwnedFd),
    /// A message without a descriptor, which the callers ignore.
    Other,
    /// The other side has closed its end.
    End,
}

/// Receives the next message of [`send_descriptor`]. Also returns the length of its text.
pub(crate) fn receive_descriptor(
    line: &impl AsFd,
    flags: RecvFlags,
    text: &mut [u8],
) -> rustix::io::Result<(Received, usize)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(text)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = retry_on_intr(|| recvmsg(line, &mut buffers, &mut ancillary, flags))?;
    if message.bytes == 0 {
        return Ok((Received::End, 0));
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((descriptor.map_or(Received::Other, Received::Descriptor), message.bytes))
}

/// Takes over the descriptor with this number, which the process inherited open.
///
/// # Safety
/// No value in this process may own the descriptor: it was open when the process began, and the caller takes it over
/// only once.
pub(crate) unsafe fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the borrow ends with this statement. If the number is not open, the call only returns EBADF.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: the line above has found it open, and the caller has promised that no other value owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Moves a value out of `owner` without writing to it, for a process that neither uses nor drops `owner` again.
///
/// # Safety
/// After the call, this process must neither use `owner` nor drop it.
pub(crate) unsafe fn move_out_unchecked<T>(owner: &T) -> T {
    // SAFETY: a reference points to a valid value, and the caller has promised not to use or drop that one again.
    unsafe { std::ptr::read(owner) }
}

/// Keeps a descriptor open until the process ends.
#[taskfork_macros::startup_code]
pub(crate) fn leak_descriptor(descriptor: OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: it is open, and `into_raw_fd` has ended its ownership, so no value closes it.
    unsafe { BorrowedFd::borrow_raw(descriptor.into_raw_fd()) }
}

/// Closes descriptors, adjacent numbers with one system call. For a process that neither uses nor drops
/// the values that own them.
///
/// # Safety
/// After the call, this process must neither use nor drop a value that owns one of these descriptors.
#[taskfork_macros::startup_code]
pub(crate) unsafe fn close_unchecked(descriptors: impl Iterator<Item = RawFd>) {
    // A bitmap needs no allocation and no sorting. In a new worker, each page that is touched first costs a
    // page fault.
    let mut low = [0_u64; 16];
    for descriptor in descriptors {
        let number = descriptor.unsigned_abs();
        match low.get_mut(number as usize / 64) {
            Some(word) => *word |= 1 << (number % 64),
            // SAFETY: the caller has promised that no value uses the descriptor again.
            None => unsafe { close_range(number..number + 1) },
        }
    }
    let is_set = |number: u32| low[number as usize / 64] >> (number % 64) & 1 == 1;
    let end = 64 * low.len() as u32;
    let mut from = 0;
    while let Some(first) = (from..end).find(|&number| is_set(number)) {
        from = (first..end).find(|&number| !is_set(number)).unwrap_or(end);
        // SAFETY: as above; only numbers of the iterator are in the range.
        unsafe { close_range(first..from) };
    }
}

/// Closes the descriptors with these numbers.
///
/// # Safety
/// As for [`close_unchecked`].
unsafe fn close_range(numbers: Range<u32>) {
    // SAFETY: the call reads no memory, and the caller has promised that no value uses the descriptors again.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, numbers.start, numbers.end - 1, 0) };
    if closed != 0 {
        // Kernels before 5.9 do not have the call.
        for number in numbers {
            // SAFETY: as above.
            unsafe { libc::close(number.cast_signed()) };
        }
    }
}

/// Closes all descriptors except `kept`, and redirects the standard streams to `/dev/null`. Returns `kept`
/// under new numbers. For a forked process that runs only its caller's code from then on.
///
/// # Safety
/// After the call, this process must neither use nor drop any other value that owns a descriptor.
pub(crate) unsafe fn close_all_except<const N: usize>(
    kept: [OwnedFd; N],
) -> io::Result<[OwnedFd; N]> {
    // The numbers 0 to 2 are about to be redirected, so none of `kept` may stay there.
    let mut moved = Vec::with_capacity(N);
    for descriptor in kept {
        moved.push(rustix::io::fcntl_dupfd_cloexec(descriptor, 3)?);
    }
    let listed = std::fs::read_dir("/proc/self/fd")?;
    let numbers: Vec<RawFd> =
        listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    let is_kept = |number: RawFd| moved.iter().any(|kept| kept.as_raw_fd() == number);
    for number in numbers.into_iter().filter(|&number| number > 2 && !is_kept(number)) {
        // SAFETY: the caller has promised that no value uses the descriptor again. The descriptor of the
        // listing is closed already, and closing it again only returns EBADF.
        unsafe { libc::close(number) };
    }
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    moved.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}
