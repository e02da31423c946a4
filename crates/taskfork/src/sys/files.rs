//! Sending and receiving descriptors along with the bytes of a stream.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::{ptr, slice};

use bytes::{BufMut, BytesMut};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt,
};

/// The most descriptors with one message.
pub(crate) const MAX_FILES: usize = 16;

/// The most descriptors of one connection that are kept until a message tells of them.
pub(crate) const MAX_UNCLAIMED_FILES: usize = 4 * MAX_FILES;

/// The error of a read that could exceed that number. The kernel itself returns it to senders only.
pub(crate) const TOO_MANY_FILES: Errno = Errno::TOOMANYREFS;

/// Whether descriptors can be sent through this socket.
pub(crate) fn supports_descriptors(socket: &impl AsFd) -> bool {
    sockopt::socket_domain(socket).is_ok_and(|domain| domain == AddressFamily::UNIX)
}

/// Sends some of the bytes, and all of the descriptors with them.
pub(crate) fn send_files(
    socket: &impl AsFd,
    bytes: &[IoSlice<'_>],
    files: &[impl AsFd],
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
    }
    sendmsg(socket, bytes, &mut ancillary, flags | SendFlags::NOSIGNAL)
}

/// Reads of at most this many bytes go through the stack if `inbox` has no room for them.
pub(crate) const SHORT_READ: usize = 4 << 10;

/// Whether a read of `room` bytes goes to `inbox` directly. Other reads go through the stack. So `inbox` stays as small
/// as its messages if all of them are short.
pub(crate) fn reads_into_inbox(inbox: &BytesMut, room: usize) -> bool {
    room > SHORT_READ || inbox.capacity() - inbox.len() >= room
}

/// Appends received bytes and descriptors, as [`receive_files`] does, without waiting. It asks for `room` bytes, or for
/// more if `inbox` has room for them.
pub(crate) fn receive_into(
    socket: &impl AsFd,
    inbox: &mut BytesMut,
    room: usize,
    files: &mut Vec<OwnedFd>,
) -> rustix::io::Result<usize> {
    if reads_into_inbox(inbox, room) {
        inbox.reserve(room);
        return receive_files(socket, inbox, files, false);
    }
    let mut bytes = [MaybeUninit::<u8>::uninit(); SHORT_READ];
    let received = receive_files(socket, &mut &mut bytes[..room], files, false)?;
    // SAFETY: the kernel has written this number of bytes to the start of the array.
    inbox.extend_from_slice(unsafe { slice::from_raw_parts(bytes.as_ptr().cast(), received) });
    Ok(received)
}

/// Appends received bytes to `inbox`, as far as it has room, and received descriptors to `files`. Returns the
/// number of bytes. If the peer sends more than [`MAX_FILES`] descriptors at once, the kernel closes the rest,
/// and the message that refers to them is invalid.
///
/// # Errors
/// [`TOO_MANY_FILES`], without reading, if `files` could exceed [`MAX_UNCLAIMED_FILES`].
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn receive_files(
    socket: &impl AsFd,
    inbox: &mut impl BufMut,
    files: &mut Vec<OwnedFd>,
    wait: bool,
) -> rustix::io::Result<usize> {
    if files.len() + MAX_FILES > MAX_UNCLAIMED_FILES {
        return Err(TOO_MANY_FILES);
    }
    const DESCRIPTORS: u32 = (MAX_FILES * size_of::<RawFd>()) as u32;
    // SAFETY: the function only computes a length from its argument.
    const SPACE: usize = unsafe { libc::CMSG_SPACE(DESCRIPTORS) } as usize;
    #[repr(C, align(8))]
    struct Control([u8; SPACE]);

    let mut control = Control([0; SPACE]);
    let room = inbox.chunk_mut();
    let mut bytes =
        libc::iovec { iov_base: room.as_mut_ptr().cast::<libc::c_void>(), iov_len: room.len() };
    // SAFETY: all zeros are a valid `msghdr` with null pointers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut bytes;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast::<libc::c_void>();
    message.msg_controllen = SPACE as _;
    let wait = if wait { 0 } else { libc::MSG_DONTWAIT };
    let flags = libc::MSG_CMSG_CLOEXEC | wait;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the header points to `inbox` and to local buffers with the lengths that it states, and all of
    // them outlive the call.
    let received = unsafe { libc::recvmsg(socket, &raw mut message, flags) };
    let received = usize::try_from(received)
        .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))?;
    // SAFETY: the kernel has written this number of bytes to the spare capacity.
    unsafe { inbox.advance_mut(received) };
    // SAFETY: the kernel has filled in `control` and its length, and the functions stay within them.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !part.is_null() {
        // SAFETY: the functions return only pointers to complete headers within `control`.
        let header = unsafe { ptr::read(part) };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: as above; the length of the header says how many descriptors follow it.
            let (first, length) =
                unsafe { (libc::CMSG_DATA(part).cast::<RawFd>(), libc::CMSG_LEN(0) as usize) };
            let count = (header.cmsg_len as usize - length) / size_of::<RawFd>();
            files.extend((0..count).map(|place| {
                // SAFETY: the kernel has just opened the descriptor for this message, so no other value owns
                // it.
                unsafe { OwnedFd::from_raw_fd(ptr::read_unaligned(first.add(place))) }
            }));
        }
        // SAFETY: as above.
        part = unsafe { libc::CMSG_NXTHDR(&raw const message, part) };
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn receive(sent: &[u8], inbox: &mut BytesMut, room: usize) -> usize {
        let (mut there, here) = UnixStream::pair().unwrap();
        there.write_all(sent).unwrap();
        receive_into(&here, inbox, room, &mut Vec::new()).unwrap()
    }

    #[test]
    fn a_short_message_takes_little_memory() {
        let mut inbox = BytesMut::new();
        assert_eq!(receive(b"first", &mut inbox, SHORT_READ), 5);
        assert_eq!(receive(b", second", &mut inbox, SHORT_READ), 8);
        assert_eq!(&inbox[..], b"first, second");
        assert!(inbox.capacity() < 256, "{}", inbox.capacity());
    }

    #[test]
    fn a_read_returns_as_much_as_was_asked_for() {
        let sent: Vec<u8> = (0..20_000_u32).map(|place| place as u8).collect();
        for (capacity, room, received) in [
            (0, SHORT_READ, SHORT_READ),
            (100, SHORT_READ, SHORT_READ),
            (0, 10_000, 10_000),
            (5000, SHORT_READ, 5000),
        ] {
            let mut inbox = BytesMut::with_capacity(capacity);
            let length = receive(&sent, &mut inbox, room);
            assert!(length >= received, "{length} of {received}");
            assert_eq!(inbox[..], sent[..length]);
        }
    }
}
