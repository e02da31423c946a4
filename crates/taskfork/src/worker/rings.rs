//! A worker's part in the rings of its connection: it takes what the client has made, and uses it for as long as
//! the client is awake and the worker itself is not about to sleep.

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
    /// Takes the rings that the client has made, whose memory has just come; without `takes` the memory is closed,
    /// and the client goes on without rings.
    pub(super) fn accept_rings(&mut self, takes: bool) -> Result<(), ConnectionError> {
        let files = self.take_files(1)?;
        let unusable = |what: String| {
            ConnectionError::from(WireError::malformed(format!("the memory of the rings: {what}")))
        };
        let (Some(file), None) = (files.first(), &self.rings) else {
            return Err(unusable("there is some already".to_owned()));
        };
        if !takes {
            return Ok(());
        }
        let mut rings = match Rings::accept(file) {
            Ok(rings) => rings,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(unusable(error.to_string()));
            }
            // It can do without.
            Err(_) => return Ok(()),
        };
        let mut out = GatherFrame::default();
        frame::write_control(&mut out.bytes, native::put_rings)?;
        self.write(&out)?;
        // What was sent before does not count.
        telemetry::take_sent_bytes();
        rings.activate(self.inbox.len() - self.consumed);
        rings.set_awake();
        self.rings = Some(Box::new(rings));
        Ok(())
    }

    /// The next frame that has come through the ring, if its turn has come.
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

    /// Sends a message through the ring, if it may go there; tells whether it did.
    pub(super) fn try_send_in_ring(&mut self, message: &GatherFrame) -> bool {
        let Some(rings) = &self.rings else { return false };
        let is_plain = message.segments.is_empty() && message.files.is_empty();
        // It would have to wake the client as soon as it sleeps.
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

    /// Whether it may sleep, as nothing has come. The client sees then what it has not seen.
    pub(super) fn try_sleep(&mut self) -> bool {
        let Some(rings) = &mut self.rings else { return true };
        if !rings.prepare_sleep(self.inbox.len() - self.consumed) {
            return false;
        }
        if rings.has_unread() {
            self.wake_client();
        }
        true
    }

    fn wake_client(&mut self) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // Where there is no room for it the client has something to read, which wakes it as well; and that it is
        // gone is found out by the next who reads.
        if let (Ok(sent), Some(rings)) = (send(self.socket, &DOORBELL, flags), &mut self.rings) {
            rings.record_sent(sent);
        }
    }
}
