//! A worker's use of the rings that its client has created. A message goes through a ring while the client
//! is awake and the worker does not have to sleep.

use std::io;

use rustix::net::{SendFlags, send};

use super::connection::{Connection, ConnectionError, Frame};
use super::telemetry;
use crate::ring::{DOORBELL, Put, Rings};
use crate::wire::WireError;
use crate::wire::frame;
use crate::wire::gather_frame::GatherFrame;
use crate::wire::native;

impl Connection {
    /// Maps the rings that the client has created and whose memory has arrived. If `accepts` is not set,
    /// closes the memory, and the client goes on without rings.
    pub(super) fn accept_rings(&mut self, accepts: bool) -> Result<(), ConnectionError> {
        let files = self.take_files(1)?;
        let unusable = |what: String| {
            ConnectionError::from(WireError::malformed(format!("the memory of the rings: {what}")))
        };
        let (Some(file), None) = (files.first(), &self.rings) else {
            return Err(unusable("there is some already".to_owned()));
        };
        if !accepts {
            return Ok(());
        }
        let mut rings = match Rings::accept(file) {
            Ok(rings) => rings,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(unusable(error.to_string()));
            }
            // The connection works without rings.
            Err(_) => return Ok(()),
        };
        let mut out = GatherFrame::default();
        frame::write_control(&mut out.bytes, native::put_rings)?;
        self.write(&out)?;
        // The rings count bytes of the socket from here on.
        telemetry::take_sent_bytes();
        rings.activate(self.inbox.len() - self.consumed);
        rings.set_awake();
        self.rings = Some(Box::new(rings));
        Ok(())
    }

    /// Reads the next frame from the ring. `None` if there is none, or if bytes of the socket precede it.
    pub(super) fn take_from_ring(&mut self) -> Result<Option<Frame>, WireError> {
        let Some(rings) = &mut self.rings else { return Ok(None) };
        let unread = self.inbox.len() - self.consumed;
        while let Some(place) = rings.take(unread, self.max_frame)? {
            if !place.is_empty() {
                return Ok(Some(Frame { place, is_in_ring: true }));
            }
        }
        Ok(None)
    }

    /// Sends a message through the ring, if it may. Returns whether it did.
    pub(super) fn try_send_in_ring(&mut self, message: &GatherFrame) -> bool {
        let Some(rings) = &self.rings else { return false };
        let is_plain = message.segments.is_empty() && message.files.is_empty();
        // On one core, a worker that sleeps right after this would have to wake the client by the socket.
        let stays_awake =
            || self.consumed < self.inbox.len() || rings.has_records() || self.is_spinning();
        if !is_plain || !rings.is_peer_awake() || self.cores < 2 && !stays_awake() {
            return false;
        }
        let Some(rings) = &mut self.rings else { return false };
        match rings.put(&message.bytes) {
            Put::Refused => return false,
            Put::PeerAsleep => self.wake_client(),
            Put::Done => {}
        }
        true
    }

    /// Prepares the worker to sleep. Returns false if a message has arrived. Wakes the client if it has
    /// not read all messages and does not look for them by itself.
    pub(super) fn try_sleep(&mut self) -> bool {
        let Some(rings) = &mut self.rings else { return true };
        if !rings.prepare_sleep(self.inbox.len() - self.consumed) {
            return false;
        }
        if rings.has_unread() && !rings.is_peer_looking() {
            self.wake_client();
        }
        true
    }

    fn wake_client(&mut self) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // If the socket is full, its bytes wake the client as well. If the client has left, the next read
        // shows that.
        if let (Ok(sent), Some(rings)) = (send(self.socket, &DOORBELL, flags), &mut self.rings) {
            rings.record_sent(sent);
        }
    }
}
