//! What a case is: steps on one connection, and what is expected of the other side.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// One connection of a peer that lies.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) expected: Expected,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// With descriptors at the first byte.
    SendWith(Vec<u8>, Vec<Kind>),
    /// One byte at a time.
    SendByteByByte(Vec<u8>),
    /// The same bytes again and again, until this many have been sent or the other side is gone.
    Flood(Vec<u8>, usize),
    /// The same, until the other side has not read for [`BLOCKED`].
    FloodUntilBlocked(Vec<u8>, usize),
    /// Reads the preamble.
    ReceivePreamble,
    /// Reads a frame.
    Receive,
    /// Reads until a JSON message is there.
    ReceiveJson,
    StopSending,
    StopReading,
    /// Closes with bytes unread, so that the other side is reset.
    Reset,
}

/// What the other side does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// A server closes the connection; a client's call fails.
    Refused,
    /// A client's call fails with an error whose report has this text.
    Fails(&'static str),
    /// The connection goes on: a call of a client is answered. A client's call gets the result that good workers send;
    /// if this worker was refused before the call began, from the next one.
    Served,
    /// A client's call gets another result.
    Answered,
    /// Any of these, because it depends on timing.
    Harmless,
}

/// A descriptor that is passed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Socket,
    DevZero,
    Folder,
    /// Memory of this length with these seals.
    Memory(u64, SealFlags),
}

/// The seals of memory that is handed over, that is lent, and of rings.
pub(crate) const BLOB_SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);
pub(crate) const BUFFER_SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);
pub(crate) const RING_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

impl Kind {
    fn open(self) -> OwnedFd {
        match self {
            Self::Socket => UnixStream::pair().unwrap().0.into(),
            Self::DevZero => std::fs::File::open("/dev/zero").unwrap().into(),
            Self::Folder => std::fs::File::open("/").unwrap().into(),
            Self::Memory(length, seals) => {
                let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
                let file = memfd_create("hostile", flags).unwrap();
                ftruncate(&file, length).unwrap();
                fcntl_add_seals(&file, seals).unwrap();
                file
            }
        }
    }
}

pub(crate) fn case(name: impl Into<String>, steps: Vec<Step>, expected: Expected) -> Case {
    Case { name: name.into(), steps, expected }
}

/// No step waits longer, and no peer is given longer to end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// For how long a side does not read that waits for this one to read.
pub(crate) const BLOCKED: Duration = Duration::from_secs(5);

/// Carries out the steps, as far as the other side lets the peer.
pub(crate) fn take_steps(stream: &mut UnixStream, steps: &[Step]) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    for step in steps {
        if take_step(stream, step).is_err() {
            return;
        }
    }
}

fn take_step(stream: &mut UnixStream, step: &Step) -> std::io::Result<()> {
    match step {
        Step::Send(bytes) => stream.write_all(bytes),
        Step::SendWith(bytes, kinds) => {
            let files: Vec<OwnedFd> = kinds.iter().map(|kind| kind.open()).collect();
            send_with(stream, bytes, &files)
        }
        Step::SendByteByByte(bytes) => bytes.iter().try_for_each(|byte| {
            stream.write_all(&[*byte])?;
            // The other side is to see each byte alone.
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        }),
        Step::FloodUntilBlocked(bytes, total) => {
            stream.set_write_timeout(Some(BLOCKED))?;
            let flooded = take_step(stream, &Step::Flood(bytes.clone(), *total));
            stream.set_write_timeout(Some(PATIENCE))?;
            match flooded {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
                flooded => flooded,
            }
        }
        Step::Flood(bytes, total) => {
            let start = Instant::now();
            let mut left = *total;
            while left > 0 && start.elapsed() < PATIENCE {
                let length = left.min(bytes.len());
                stream.write_all(&bytes[..length])?;
                left -= length;
            }
            Ok(())
        }
        Step::ReceivePreamble => stream.read_exact(&mut [0; 8]),
        Step::Receive => {
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let mut body = vec![0; u32::from_le_bytes(length) as usize];
            stream.read_exact(&mut body)
        }
        Step::ReceiveJson => {
            let mut byte = [0];
            while byte != *b"]" {
                stream.read_exact(&mut byte)?;
            }
            Ok(())
        }
        Step::StopSending => stream.shutdown(Shutdown::Write),
        Step::StopReading => stream.shutdown(Shutdown::Read),
        Step::Reset => {
            stream.shutdown(Shutdown::Both)?;
            Err(ErrorKind::ConnectionReset.into())
        }
    }
}

/// Descriptors go in several messages if the kernel takes no more in one.
fn send_with(stream: &UnixStream, bytes: &[u8], files: &[OwnedFd]) -> std::io::Result<()> {
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut rest = bytes;
    for (place, some) in files.chunks(250).enumerate() {
        let mut space = vec![std::mem::MaybeUninit::uninit(); 4096];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(some)));
        let is_last = (place + 1) * 250 >= files.len();
        let now = if is_last { rest } else { &rest[..1.min(rest.len())] };
        let sent = sendmsg(stream, &[IoSlice::new(now)], &mut ancillary, SendFlags::NOSIGNAL)?;
        rest = &rest[sent..];
    }
    (&*stream).write_all(rest)
}

/// Waits for the end of the connection; tells whether it came.
pub(crate) fn is_ended(stream: &mut UnixStream) -> bool {
    let start = Instant::now();
    let mut piece = [0; 4096];
    while start.elapsed() < PATIENCE {
        match stream.read(&mut piece) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
    false
}
