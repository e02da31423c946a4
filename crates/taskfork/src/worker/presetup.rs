//! A spare worker runs `setup` before it has a client.

use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags, send};

use super::init::AcceptedClient;
use super::scoreboard::Phase;
use super::state::{ExitReason, Worker};
use super::telemetry;
use crate::sys::{self, Received};

impl<S: 'static> Worker<'_, S> {
    /// Runs `setup`, then waits on `channel` for a client. Reports a failed `setup` to the server.
    pub(super) fn wait_for_client(
        &mut self,
        channel: &OwnedFd,
    ) -> Result<AcceptedClient, ExitReason> {
        telemetry::record_for_first_call();
        self.slot.enter(Phase::Setup)?;
        if let Some(successor) = &mut self.successor {
            successor.set_channel(channel);
        }
        match self.set_up() {
            Ok(state) => self.state = Some(state),
            Err(error) => {
                let text = error.body().message;
                let text = &text[..text.floor_char_boundary(sys::MAX_CHANNEL_TEXT)];
                // This fails only if the server has exited, which then needs no report.
                let _ = send(channel, text.as_bytes(), SendFlags::NOSIGNAL);
                return Err(ExitReason::PresetupFailed);
            }
        }
        self.slot.enter(Phase::Spare)?;
        if self.slot.should_retire() {
            // The server has requested this during `setup`.
            return Err(ExitReason::Finished);
        }
        let mut text = vec![0; AcceptedClient::MAX_ENCODED];
        loop {
            match sys::receive_descriptor(channel, RecvFlags::empty(), &mut text) {
                Ok((Received::Descriptor(socket), length)) => {
                    self.slot.enter(Phase::Handshake)?;
                    return Ok(AcceptedClient::decode(socket, &text[..length]));
                }
                Ok((Received::Other, _)) => {}
                Ok((Received::End, _)) | Err(_) => return Err(ExitReason::Finished),
            }
        }
    }
}
