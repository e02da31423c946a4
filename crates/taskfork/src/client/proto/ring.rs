//! The rings of a connection: when the client offers them, and how they change sending and receiving. While
//! the receiver is awake, a short message in a ring needs no system call.

use std::sync::Arc;

use bytes::Bytes;

use super::connection::Connection;
use super::ring_offer::{CALLS_BEFORE_RINGS, Offer, RingOffer};
use crate::ring::{DOORBELL, Put, Rings};
use crate::wire::WireError;
use crate::wire::frame;
use crate::wire::gather_frame::OutgoingFile;
use crate::wire::native;

impl Connection {
    /// Whether rings are to be offered before the next call. [`offer_rings`](Self::offer_rings) does so once the
    /// outbox is empty.
    #[inline]
    pub(crate) fn wants_rings(&self) -> bool {
        matches!(self.ring_offer, RingOffer::After(calls) if calls <= self.calls.sent())
            && self.calls.partial() == 0
    }

    /// Offers rings to the worker, which has agreed to share memory. The outbox must be empty.
    pub(crate) fn offer_rings(&mut self) {
        self.ring_offer = RingOffer::Never;
        let mut bytes = Vec::new();
        let written = frame::write_control(&mut bytes, native::put_rings);
        if let (Ok(()), Ok((rings, file))) = (written, make_rings()) {
            let files = [OutgoingFile::new(Arc::new(file))];
            self.ring_offer = RingOffer::Due(Box::new(Offer { bytes, files, rings }));
        }
    }

    /// Records that `sent` bytes of the offer were sent.
    pub(super) fn handle_ring_offer_sent(&mut self, sent: usize) {
        let offer = std::mem::replace(&mut self.ring_offer, RingOffer::Sent);
        let RingOffer::Due(offer) = offer else { return };
        self.outbox.mark_other_sent();
        match offer.bytes.get(sent..) {
            // What was sent before the rings existed would be unknown, so they are not used.
            Some(rest) if !rest.is_empty() => self.outbox.put_socket_only(rest),
            _ => self.rings = Some(Box::new(offer.rings)),
        }
    }

    /// The socket has no room. An offer is made again after further calls.
    pub(super) fn postpone_ring_offer(&mut self) {
        if let RingOffer::Due(_) = self.ring_offer {
            self.ring_offer = RingOffer::After(self.calls.sent() + CALLS_BEFORE_RINGS);
        }
    }

    /// The worker has accepted the rings.
    ///
    /// # Errors
    /// If they were not offered, or were accepted before.
    pub(super) fn handle_rings_accepted(&mut self) -> Result<(), WireError> {
        match std::mem::replace(&mut self.ring_offer, RingOffer::Never) {
            RingOffer::Sent => self.enable_rings(),
            _ => {
                return Err(WireError::malformed(
                    "the worker accepted rings that were not offered",
                ));
            }
        }
        Ok(())
    }

    /// Uses the rings from here on, if there are any.
    fn enable_rings(&mut self) {
        if let Some(rings) = &mut self.rings {
            rings.activate(self.inbox.len());
        }
    }

    /// Whether the ring may carry the outbox.
    #[inline]
    pub(super) fn can_use_ring(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| rings.is_peer_awake())
            && self.calls.partial() == 0
            && !self.outbox.is_socket_only()
    }

    /// Moves the outbox into the ring, if there is room. Otherwise it must go through the socket.
    pub(crate) fn put_in_ring(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let put = rings.put(self.outbox.unsent());
        if put == Put::Refused {
            return self.outbox.put_socket_only(&[]);
        }
        if self.outbox.has_calls() {
            rings.mark();
        }
        let (_, calls) = self.outbox.mark_sent(self.outbox.unsent().len());
        self.calls.record_sent(calls);
        self.outbox.mark_other_sent();
        if put == Put::PeerAsleep {
            self.outbox.put_socket_only(&DOORBELL);
        }
    }

    /// Takes the next received message of the native protocol.
    #[inline]
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
        message.is_empty() && self.rings.as_ref().is_some_and(|rings| rings.is_active())
    }

    /// Tells the worker that this side sleeps until it is woken. Returns whether it may sleep now.
    #[inline]
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        match &mut self.rings {
            Some(rings) => rings.prepare_sleep(self.inbox.len()),
            None => true,
        }
    }

    /// Tells the worker that this side looks for messages, so that it need not be woken.
    pub(crate) fn set_awake(&mut self) {
        self.rings.iter_mut().for_each(|rings| rings.set_awake());
    }

    /// The same, and that it will look again without being woken.
    pub(crate) fn set_looking(&mut self) {
        self.rings.iter_mut().for_each(|rings| rings.set_looking());
    }

    pub(crate) fn has_rings(&self) -> bool {
        self.rings.is_some()
    }

    /// Whether the ring has a message.
    pub(crate) fn has_ring_message(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| rings.has_next(self.inbox.len()))
    }

    /// Whether the next message is in the ring, and so costs no system call.
    #[inline]
    pub(crate) fn is_next_in_ring(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| rings.has_next_in_ring(self.inbox.len()))
    }
}

#[cfg(not(test))]
fn make_rings() -> std::io::Result<(Rings, std::os::fd::OwnedFd)> {
    Rings::offer()
}

#[cfg(test)]
use without_memory::make_rings;

#[cfg(test)]
impl Connection {
    /// Uses these rings.
    pub(crate) fn activate_rings(&mut self, rings: Rings) {
        self.rings = Some(Box::new(rings));
        self.enable_rings();
    }

    pub(crate) fn inbox(&mut self) -> &mut bytes::BytesMut {
        &mut self.inbox
    }

    /// Puts a call into the outbox that must go through the socket.
    pub(crate) fn put_socket_call(&mut self, frame: &[u8]) {
        self.put_call(frame);
        self.outbox.put_socket_only(&[]);
    }
}

/// A system that has no memory or descriptor for rings.
#[cfg(test)]
pub(crate) mod without_memory {
    use std::cell::Cell;
    use std::io;
    use std::os::fd::OwnedFd;

    use crate::ring::Rings;

    thread_local! {
        static HAS_NONE: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn make_rings() -> io::Result<(Rings, OwnedFd)> {
        match HAS_NONE.get() {
            true => Err(rustix::io::Errno::MFILE.into()),
            false => Rings::offer(),
        }
    }

    pub(crate) fn run<T>(test: impl FnOnce() -> T) -> T {
        HAS_NONE.set(true);
        let result = test();
        HAS_NONE.set(false);
        result
    }
}
