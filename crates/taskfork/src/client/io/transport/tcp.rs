//! Connections through TCP.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{Connected, Transport};
use crate::sys;
use crate::wire::gather_frame::OutgoingFile;

#[derive(Debug)]
struct Tcp(TcpStream);

pub(super) async fn connect(host: &str, port: u16) -> io::Result<Connected> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(Connected::new(Box::new(Tcp(stream)), 0))
}

impl Transport for Tcp {
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        _: &[OutgoingFile],
    ) -> Poll<io::Result<usize>> {
        match slices {
            [slice] => Pin::new(&mut self.0).poll_write(context, slice),
            _ => Pin::new(&mut self.0).poll_write_vectored(context, slices),
        }
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        inbox: &mut BytesMut,
        room: usize,
        _: &mut Vec<OwnedFd>,
    ) -> Poll<io::Result<usize>> {
        if sys::reads_into_inbox(inbox, room) {
            inbox.reserve(room);
            // Dropping this future loses nothing: every byte that it has received is in `inbox`.
            return pin!(self.0.read_buf(inbox)).poll(context);
        }
        let mut bytes = [MaybeUninit::uninit(); sys::SHORT_READ];
        let mut read = ReadBuf::uninit(&mut bytes[..room]);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut read))?;
        inbox.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    fn receive_now(
        &mut self,
        inbox: &mut BytesMut,
        room: usize,
        files: &mut Vec<OwnedFd>,
    ) -> rustix::io::Result<usize> {
        sys::receive_into(&self.0, inbox, room, files)
    }

    fn can_lose_answers(&self) -> bool {
        true
    }

    fn stop_input(&mut self, _: &mut Context<'_>) -> bool {
        // It fails only if the connection has ended.
        let _ = shutdown(&self.0, Shutdown::Write);
        false
    }
}
