//! Descriptors: those that came with the process, many at once, and sending one to another process.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::libc;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most bytes of text on a line between two processes.
pub(crate) const MAX_CHANNEL_TEXT: usize = 4096;

/// Sends a descriptor to whoever reads from `line`, with some text of at least one byte, without waiting.
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

/// What came on a line.
#[derive(Debug)]
pub(crate) enum Received {
    Descriptor(OwnedFd),
    /// Something else, which is ignored.
    Other,
    /// The other side has closed it.
    End,
}

/// The next message that [`send_descriptor`] sent; gives how long its text is as well.
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

/// Has the reactor of the runtime in which this runs watch a descriptor.
pub(crate) fn register_with_reactor(
    descriptor: OwnedFd,
    interest: Interest,
) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: what owns a descriptor keeps it open, and its number.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    watched.map_err(|error| error.into_parts().1)
}

/// Takes over the descriptor with this number, which the process inherited open.
///
/// # Safety
/// Nobody in this process owns the descriptor of that number: it was open when the process began, and is taken over
/// once.
pub(crate) unsafe fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the borrow ends with this statement; a number that is not open answers EBADF.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: it is open, and by the caller's word nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What `owner` owns, without a word of it written, for a process that never again uses or drops it
/// there.
///
/// # Safety
/// What `owner` refers to is never used again in this process, and never dropped there.
pub(crate) unsafe fn move_out_unchecked<T>(owner: &T) -> T {
    // SAFETY: it is valid, and by the caller's word nobody else owns it from here on.
    unsafe { std::ptr::read(owner) }
}

/// Keeps a descriptor open for as long as the process lives.
pub(crate) fn leak_descriptor(descriptor: OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: it is open, and nobody owns it any more who could close it.
    unsafe { BorrowedFd::borrow_raw(descriptor.into_raw_fd()) }
}

/// Closes all of these, neighbours with one system call, whoever owns them. For a process that never
/// again uses or drops what owns them.
///
/// # Safety
/// None of what owns these descriptors is ever used again in this process, or dropped there.
pub(crate) unsafe fn close_unchecked<'a>(descriptors: impl Iterator<Item = BorrowedFd<'a>>) {
    // A bit each: a new worker has no memory yet, and the code that sorts takes longer to come than
    // this.
    let mut low = [0_u64; 16];
    for descriptor in descriptors {
        let number = descriptor.as_raw_fd().unsigned_abs();
        match low.get_mut(number as usize / 64) {
            Some(word) => *word |= 1 << (number % 64),
            // SAFETY: the caller's promise.
            None => unsafe { close_range(number..number + 1) },
        }
    }
    let is_set = |number: u32| low[number as usize / 64] >> (number % 64) & 1 == 1;
    let end = 64 * low.len() as u32;
    let mut from = 0;
    while let Some(first) = (from..end).find(|&number| is_set(number)) {
        from = (first..end).find(|&number| !is_set(number)).unwrap_or(end);
        // SAFETY: the caller's promise.
        unsafe { close_range(first..from) };
    }
}

/// Closes these.
///
/// # Safety
/// As for [`close_unchecked`].
unsafe fn close_range(numbers: Range<u32>) {
    // SAFETY: by the caller's word.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, numbers.start, numbers.end - 1, 0) };
    if closed != 0 {
        // A kernel before 5.9 has no such call.
        for number in numbers {
            // SAFETY: as above.
            unsafe { libc::close(number.cast_signed()) };
        }
    }
}

/// Closes all descriptors but these, whoever owned them, and has nothing as standard input and
/// outputs; gives those that are left. For a process that will run nothing but its caller.
///
/// # Safety
/// Nothing that owns a descriptor but `kept` is ever used again in this process, or dropped there.
pub(crate) unsafe fn close_all_except<const N: usize>(
    kept: [OwnedFd; N],
) -> io::Result<[OwnedFd; N]> {
    // None of them may stay where standard input or an output is.
    let mut moved = Vec::with_capacity(N);
    for descriptor in kept {
        moved.push(rustix::io::fcntl_dupfd_cloexec(descriptor, 3)?);
    }
    let listed = std::fs::read_dir("/proc/self/fd")?;
    let numbers: Vec<RawFd> =
        listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    let is_kept = |number: RawFd| moved.iter().any(|kept| kept.as_raw_fd() == number);
    for number in numbers.into_iter().filter(|&number| number > 2 && !is_kept(number)) {
        // SAFETY: nothing that owned it will run in this process again, by the caller's word; the
        // one of the listing itself is closed already, which the kernel refuses.
        unsafe { libc::close(number) };
    }
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    moved.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}
