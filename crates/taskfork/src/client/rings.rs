//! The rings of a connection, through which short messages go without a system call while the side that gets
//! them is awake: when there are any, and what they change in how messages come and go.

use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use tokio::task::coop;

use super::connection::{Connection, Lost};
use crate::ring::{DOORBELL, Put, Rings};
use crate::wire::WireError;
use crate::wire::frame::{self, DEFAULT_LIMIT, HEADER};
use crate::wire::native;
use crate::wire::parts::Attached;

/// They are offered after so many calls, and tried again after as many more where there was no room for that.
pub(super) const CALLS_WITHOUT: u64 = 32;

impl Connection {
    /// Offers rings to a worker that takes them, once there have been enough calls.
    pub(super) fn offer_rings(&mut self) {
        if self.offers_rings_after.is_none_or(|calls| self.outbox.calls < calls) {
            return;
        }
        // Their memory goes with the first byte of the offer.
        if self.in_call || !matches!(self.poll_flush(), Poll::Ready(Ok(()))) {
            return;
        }
        let mut offer = Vec::new();
        let written = frame::write::<WireError>(&mut offer, DEFAULT_LIMIT, |out| {
            native::put_rings(out);
            Ok(())
        });
        self.offers_rings_after = None;
        let (Ok(()), Ok((rings, file))) = (written, Rings::offer()) else { return };
        let (slices, files) = ([IoSlice::new(&offer)], [Attached::new(Arc::new(file))]);
        let mut context = Context::from_waker(&self.waker);
        match self.stream.poll_write(&mut context, &slices, &files) {
            Poll::Ready(Ok(sent)) => {
                self.outbox.put_for_socket(&offer[sent..]);
                self.rings = Some(Box::new(rings));
            }
            Poll::Pending => self.offers_rings_after = Some(self.outbox.calls + CALLS_WITHOUT),
            // It comes again.
            Poll::Ready(Err(_)) => {}
        }
    }

    /// The worker has them from here on.
    pub(super) fn agree_on_rings(&mut self) {
        if let Some(rings) = &mut self.rings {
            rings.agree(self.inbox.len());
        }
    }

    /// Puts what waits in the outbox into the ring, if it may go there; tells whether it did.
    pub(super) fn poll_put_in_ring(&mut self) -> Poll<bool> {
        let Some(rings) = &mut self.rings else { return Poll::Ready(false) };
        if self.in_call || self.outbox.is_for_socket() || !rings.is_other_awake() {
            return Poll::Ready(false);
        }
        // It counts against the task's share of the runtime, as what goes through the socket does.
        let turn = ready!(coop::poll_proceed(&mut Context::from_waker(&self.waker)));
        let put = rings.put(&self.outbox.bytes);
        if put == Put::Refused {
            return Poll::Ready(false);
        }
        turn.made_progress();
        if self.outbox.has_calls() {
            rings.mark();
        }
        self.outbox.sent(self.outbox.bytes.len());
        if put == Put::Unseen {
            self.outbox.put_for_socket(&DOORBELL);
        }
        Poll::Ready(true)
    }

    /// Takes the next message of the native protocol off what has been received.
    pub(super) fn take_native(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some(rings) = &mut self.rings else {
            return frame::take(&mut self.inbox, self.max_receive);
        };
        loop {
            let arrived = rings.take(self.inbox.len())?;
            if !arrived.is_empty() {
                let behind = self.inbox.split();
                self.inbox.reserve(arrived.len() + behind.len());
                self.inbox.put_slice(arrived);
                self.inbox.put_slice(&behind);
            }
            let Some(body) = frame::take(&mut self.inbox, self.max_receive)? else {
                return Ok(None);
            };
            rings.read(HEADER + body.len());
            if !body.is_empty() {
                return Ok(Some(body));
            }
        }
    }

    /// So many bytes have come through the socket.
    pub(super) fn received(&mut self, bytes: usize) {
        if let Some(rings) = &mut self.rings {
            rings.received(bytes);
            rings.wake();
        }
    }

    /// Nobody looks for a while unless woken; tells whether that may be.
    pub(super) fn may_sleep(&mut self) -> bool {
        match &mut self.rings {
            Some(rings) if !self.looks => rings.sleep(self.inbox.len()),
            _ => true,
        }
    }

    /// The other side has closed the connection.
    pub(super) fn closed(&self) -> Lost {
        match &self.rings {
            Some(rings) if rings.is_mark_unseen() => Lost::Unread,
            _ => Lost::Closed,
        }
    }

    /// Somebody looks for the next message again and again.
    pub(super) fn begin_looking(&mut self) {
        self.looks = true;
        self.rings.iter_mut().for_each(|rings| rings.wake());
    }

    /// Nobody does any more: whoever waits is to look once more, and is woken after that.
    pub(crate) fn end_looking(&mut self) {
        self.looks = false;
    }

    /// Whether something has come through the ring.
    pub(super) fn is_in_ring(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| rings.is_due(self.inbox.len()))
    }
}
