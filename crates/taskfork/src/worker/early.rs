//! Setting up before there is a first message: for whoever will come, or for a client that says
//! nothing before its first call.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, send};

use super::notes;
use super::scoreboard::Phase;
use super::serve::{Leave, Worker};
use crate::sys::{self, Received};

/// A native client has said its hello by then.
pub(super) const QUIET: Duration = Duration::from_millis(50);

impl<S: 'static> Worker<'_, S> {
    /// A client that says nothing speaks the protocol in which nothing is said before the first call,
    /// for which the worker is to be ready.
    pub(super) fn set_up_for_a_quiet_client(&mut self) -> Result<(), Leave> {
        notes::expect();
        self.slot.leaves_told(false);
        self.slot.enter(Phase::Setup)?;
        self.setup_fault = self.set_up().err();
        self.slot.leaves_told(true);
        self.slot.enter(Phase::Greeting)?;
        Ok(())
    }

    /// Sets up before anybody wants it.
    pub(super) fn wait_for_client(&mut self, line: &OwnedFd) -> Result<OwnedFd, Leave> {
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
        loop {
            match sys::receive_descriptor(line, RecvFlags::empty()) {
                Ok(Received::Descriptor(socket)) => {
                    self.slot.enter(Phase::Greeting)?;
                    return Ok(socket);
                }
                Ok(Received::Nothing) => {}
                Ok(Received::End) | Err(_) => return Err(Leave::Quietly),
            }
        }
    }
}
