//! The rings of a connection: when the client offers them, and how they change sending and receiving. While
//! the receiver is awake, a short message in a ring needs no system call.

use std::io::IoSlice;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::task::coop;

use super::connection::Connection;
use super::disconnect::Disconnect;
use crate::ring::{DOORBELL, Put, Rings};
use crate::wire::WireError;
use crate::wire::frame;
use crate::wire::gather_frame::OutgoingFile;
use crate::wire::native;

/// Rings are offered after this many calls. If the socket has no room then, after as many more.
pub(super) const CALLS_BEFORE_RINGS: u64 = 32;

impl Connection {
    /// Offers rings to a worker that has agreed to share memory, once it has had enough calls.
    pub(super) fn offer_rings(&mut self) {
        if self.offers_rings_after.is_none_or(|calls| self.outbox.calls < calls) {
            return;
        }
        // The rings' memory accompanies the first byte of the offer, so no other bytes may precede it.
        if self.mid_call || !matches!(self.poll_flush(), Poll::Ready(Ok(()))) {
            return;
        }
        let mut offer = Vec::new();
        let written = frame::write_control(&mut offer, native::put_rings);
        self.offers_rings_after = None;
        let (Ok(()), Ok((rings, file))) = (written, Rings::offer()) else { return };
        let (slices, files) = ([IoSlice::new(&offer)], [OutgoingFile::new(Arc::new(file))]);
        let mut context = Context::from_waker(&self.waker);
        self.outbox.mark_other_sent();
        match self.stream.poll_write(&mut context, &slices, &files) {
            Poll::Ready(Ok(sent)) if sent == offer.len() => self.rings = Some(Box::new(rings)),
            // What was sent before the rings existed would be unknown, so they are not used.
            Poll::Ready(Ok(sent)) => self.outbox.put_socket_only(&offer[sent..]),
            Poll::Pending => self.offers_rings_after = Some(self.outbox.calls + CALLS_BEFORE_RINGS),
            // The next write returns the error again.
            Poll::Ready(Err(_)) => {}
        }
    }

    /// Uses the rings from here on, because the worker has accepted them.
    pub(super) fn enable_rings(&mut self) {
        if let Some(rings) = &mut self.rings {
            rings.activate(self.inbox.len());
        }
    }

    /// Moves the outbox into the ring, if the ring may carry it. Returns whether it did.
    pub(super) fn poll_put_in_ring(&mut self) -> Poll<bool> {
        let Some(rings) = &mut self.rings else { return Poll::Ready(false) };
        if self.mid_call || self.outbox.is_socket_only() || !rings.is_peer_awake() {
            return Poll::Ready(false);
        }
        // As a write to the socket does, this charges the task's budget of the runtime.
        let turn = ready!(coop::poll_proceed(&mut Context::from_waker(&self.waker)));
        let put = rings.put(&self.outbox.bytes);
        if put == Put::Refused {
            return Poll::Ready(false);
        }
        turn.made_progress();
        if self.outbox.has_calls() {
            rings.mark();
        }
        self.outbox.mark_sent(self.outbox.bytes.len());
        self.outbox.mark_other_sent();
        if put == Put::PeerAsleep {
            self.outbox.put_socket_only(&DOORBELL);
        }
        Poll::Ready(true)
    }

    /// Takes the next received message of the native protocol.
    pub(super) fn take_native(&mut self) -> Result<Option<Bytes>, WireError> {
        if let Some(rings) = &mut self.rings
            && let Some(place) = rings.take(self.inbox.len(), self.max_receive)?
        {
            return Ok(Some(Bytes::copy_from_slice(rings.body(place))));
        }
        frame::take(&mut self.inbox, self.max_receive)
    }

    /// Whether a message has no purpose but to wake this side.
    pub(super) fn is_doorbell(&self, message: &[u8]) -> bool {
        message.is_empty() && self.rings.is_some()
    }

    /// Counts bytes received through the socket.
    pub(super) fn count_received(&mut self, bytes: usize) {
        if let Some(rings) = &mut self.rings {
            rings.record_received(bytes);
            rings.set_awake();
        }
    }

    /// Tells the worker that this side sleeps until it is woken. Returns whether it may sleep now.
    pub(super) fn prepare_sleep(&mut self) -> bool {
        match &mut self.rings {
            Some(rings) if !self.spinning => rings.prepare_sleep(self.inbox.len()),
            _ => true,
        }
    }

    /// Waits until this task may handle more messages. A worker may send without end, and other tasks must run
    /// in between.
    pub(super) fn poll_read_budget(&mut self) -> Poll<()> {
        let mut context = Context::from_waker(&self.waker);
        if self.read_budget.is_over() {
            // This makes the runtime poll its timers and sockets before it wakes the task.
            let _ = pin!(tokio::task::yield_now()).poll(&mut context);
            return Poll::Pending;
        }
        let is_batch =
            self.rings.as_ref().is_some_and(|rings| rings.has_next_in_ring(self.inbox.len()));
        if is_batch || self.read_budget.is_charge_due() {
            ready!(coop::poll_proceed(&mut context)).made_progress();
            self.read_budget.charge();
        }
        Poll::Ready(())
    }

    /// Classifies the end of the connection after the last byte was read.
    pub(super) fn end_reason(&self) -> Disconnect {
        match self.stream.has_unread() {
            true => self.unread_reason(),
            false => self.close_reason(),
        }
    }

    /// Classifies the end of a connection whose worker left bytes in the socket unread. They are those of the
    /// last call only if nothing was sent behind it, not even a part of another call.
    pub(super) fn unread_reason(&self) -> Disconnect {
        match self.outbox.ends_with_call() && !self.mid_call {
            true => Disconnect::Unread,
            false => self.close_reason(),
        }
    }

    /// Classifies the end of a connection that the worker has closed.
    pub(super) fn close_reason(&self) -> Disconnect {
        match &self.rings {
            Some(rings) if rings.is_mark_unread() => Disconnect::Unread,
            _ => Disconnect::Closed,
        }
    }

    /// Records that a task spins for the next message, so the worker need not wake this side.
    pub(super) fn set_spinning(&mut self) {
        self.spinning = true;
        self.rings.iter_mut().for_each(|rings| rings.set_awake());
    }

    /// Records that no task spins any more. A task that waits must poll once more before it sleeps.
    pub(crate) fn clear_spinning(&mut self) {
        self.spinning = false;
    }

    /// Whether the ring has a message.
    pub(super) fn has_ring_message(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| rings.has_next(self.inbox.len()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use bytes::BytesMut;

    use super::*;
    use crate::busy_poll::BusyPoll;
    use crate::client::connection::NewConnection;
    use crate::client::handshake::PeerLimits;
    use crate::client::io::driver_queue::DriverQueue;
    use crate::client::io::spin::ReplySpin;
    use crate::client::io::transport::Unix;
    use crate::client::io::waker::ConnectionWaker;
    use crate::ring::tests::frame;
    use crate::wire::Protocol;

    /// A connection with rings, and the worker's side of them.
    pub(crate) fn connect(socket: UnixStream) -> (Connection, Rings) {
        socket.set_nonblocking(true).unwrap();
        let limits = PeerLimits { max_send: 1000, max_blob: 1000, pipeline_window: 0, files: 16 };
        let mut connection = Connection::new(
            NewConnection {
                stream: Box::new(Unix::new(socket.into()).unwrap()),
                protocol: Protocol::Native,
                inbox: BytesMut::new(),
                pid: 1,
                limits,
                max_receive: 1000,
                max_blob: 1000,
                max_shared: 0,
                copy_shared_memory: false,
                spin: ReplySpin::new(BusyPoll::Off, 2),
            },
            ConnectionWaker::new(Arc::new(DriverQueue::default())),
        );
        let (rings, file) = Rings::offer().unwrap();
        connection.rings = Some(Box::new(rings));
        connection.enable_rings();
        connection.set_spinning();
        let mut worker = Rings::accept(&file).unwrap();
        worker.activate(0);
        worker.set_awake();
        (connection, worker)
    }

    pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test)
    }

    #[test]
    fn a_message_behind_a_doorbell_waits_for_those_in_the_ring() {
        run(async {
            let (here, mut there) = UnixStream::pair().unwrap();
            let (mut connection, mut worker) = connect(here);
            worker.record_sent(DOORBELL.len());
            assert_eq!(worker.put(&frame(b"first")), Put::Done);
            there.write_all(&[&DOORBELL[..], &frame(b"second")].concat()).unwrap();
            for expected in ["first", "second"] {
                let received = poll_fn(|context| {
                    connection.notifier.set_task(Some(context.waker()), false);
                    connection.poll_message()
                });
                assert_eq!(received.await.unwrap(), expected);
            }
        });
    }

    #[test]
    fn unread_bytes_at_the_end_are_found_while_another_process_has_the_socket() {
        run(async {
            for reads in [true, false] {
                let (here, there) = UnixStream::pair().unwrap();
                let (mut connection, _worker) = connect(here);
                connection.clear_spinning();
                connection.outbox.put_call(b"call");
                connection.outbox.put_socket_only(&[]);
                connection.flush().unwrap();
                if reads {
                    (&there).read_exact(&mut [0; 4]).unwrap();
                }
                let _holder = there.try_clone().unwrap();
                there.shutdown(std::net::Shutdown::Both).unwrap();
                drop(there);
                let ended = poll_fn(|context| {
                    connection.notifier.set_task(Some(context.waker()), false);
                    connection.poll_message()
                });
                let ended = ended.await.unwrap_err();
                assert_eq!(matches!(ended, Disconnect::Unread), !reads, "{ended:?}");
            }
        });
    }

    #[test]
    fn a_message_in_the_ring_leaves_an_unfinished_frame_alone() {
        run(async {
            let (here, _there) = UnixStream::pair().unwrap();
            let (mut connection, mut worker) = connect(here);
            connection.inbox.extend_from_slice(&[255; 900]);
            connection.inbox[..4].copy_from_slice(&900_u32.to_le_bytes());
            connection.rings.as_mut().unwrap().record_received(900);
            let before = connection.inbox.as_ptr();
            for _ in 0..100 {
                assert_eq!(worker.put(&frame(b"more")), Put::Done);
                assert_eq!(connection.take_native().unwrap().unwrap(), "more");
            }
            assert_eq!((connection.inbox.as_ptr(), connection.inbox.len()), (before, 900));
        });
    }

    #[test]
    fn messages_without_end_are_read_in_turns() {
        let taken = run(async {
            let (here, _there) = UnixStream::pair().unwrap();
            let (mut connection, mut worker) = connect(here);
            let message = frame(b"more");
            poll_fn(|_| {
                for taken in 0..10_000 {
                    assert_eq!(worker.put(&message), Put::Done);
                    if connection.poll_message().is_pending() {
                        return Poll::Ready(taken);
                    }
                }
                panic!("other tasks never run");
            })
            .await
        });
        assert!(taken > 0);
    }
}
