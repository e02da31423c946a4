//! Setting up before there is a client.

use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags, send};

use super::notes;
use super::scoreboard::Phase;
use super::seat::Connected;
use super::serve::{Leave, Worker};
use crate::sys::{self, Received};

impl<S: 'static> Worker<'_, S> {
    /// Sets up before anybody wants it.
    pub(super) fn wait_for_client(&mut self, line: &OwnedFd) -> Result<Connected, Leave> {
        notes::expect();
        self.slot.enter(Phase::Setup)?;
        if let Err(fault) = self.set_up() {
            let text = fault.body().message;
            let text = &text[..text.floor_char_boundary(sys::LONGEST_WORD)];
            // A server that is gone needs no word.
            let _ = send(line, text.as_bytes(), SendFlags::NOSIGNAL);
            return Err(Leave::Useless);
        }
        self.slot.enter(Phase::Spare)?;
        if self.slot.is_to_retire() {
            // Told so while it set up.
            return Err(Leave::Quietly);
        }
        let mut text = vec![0; Connected::LONGEST_TEXT];
        loop {
            match sys::receive_descriptor_with(line, RecvFlags::empty(), &mut text) {
                Ok((Received::Descriptor(socket), length)) => {
                    self.slot.enter(Phase::Greeting)?;
                    return Ok(Connected::from_text(socket, &text[..length]));
                }
                Ok((Received::Nothing, _)) => {}
                Ok((Received::End, _)) | Err(_) => return Err(Leave::Quietly),
            }
        }
    }
}
