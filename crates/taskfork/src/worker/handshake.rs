//! The worker's part in the handshake of the native protocol.

use super::connection::Connection;
use super::error_reply::ErrorReply;
use super::scoreboard::Phase;
use super::state::{ExitReason, Worker};
use crate::context;
use crate::wire::WireError;
use crate::wire::compatibility;
use crate::wire::frame::{self, DEFAULT_MAX_BLOB, DEFAULT_MAX_FRAME, PREAMBLE};
use crate::wire::hello::{ClientHello, WorkerHello};
use crate::wire::interface_description::InterfaceDescription;
use crate::wire::native::{self, FromClient, VERSIONS};

#[taskfork_macros::startup_code]
impl<S: 'static> Worker<'_, S> {
    /// Reads the client's hello and answers with the worker's, or with an error. Nothing is sent to a client that
    /// `is_greeted`: the process has sent it before a program has taken it over.
    pub(super) fn handshake(
        &mut self,
        connection: &mut Connection,
        hello: &mut WorkerHello,
        is_preamble_sent: bool,
        is_greeted: bool,
    ) -> Result<(), ExitReason> {
        let frame = connection.read_hello()?;
        let FromClient::Hello(client) = FromClient::decode(connection.body(&frame))? else {
            return Err(WireError::Malformed("the first message is no hello".into()).into());
        };
        if !is_preamble_sent {
            self.out.bytes.extend_from_slice(PREAMBLE);
        }
        if let Some(successor) = &mut self.successor {
            let mut received = PREAMBLE.to_vec();
            frame::put(&mut received, |out| out.extend_from_slice(connection.body(&frame)));
            received.extend_from_slice(connection.unread());
            successor.set_connection(
                connection.socket,
                received,
                connection.received_files(),
                true,
            );
        }
        // The server has checked that the sender may say so.
        let relayed = client.relayed_peer()?;
        let accepted = check_client(&client, || self.interface.descriptions())?;
        let (number, awaits_setup) = (client.client_number, client.awaits_setup);
        let (max_frame, files, shared) = (client.max_frame, client.max_files, client.shared_memory);
        self.max_blob = client.max_blob.unwrap_or(DEFAULT_MAX_BLOB);
        match relayed {
            // A gateway relays bytes, but neither descriptors nor memory.
            Some(peer) => {
                connection.refuse_files();
                context::set_relayed_peer(peer);
            }
            None if self.interface.accepts_shared_memory() => {
                self.shared_memory.request(shared, self.config.shared_memory);
            }
            None => {}
        }
        hello.max_files = connection.max_files();
        if awaits_setup && self.handlers.has_setup && self.state.is_none() {
            hello.announces_setup = true;
            self.awaits_setup = Some(connection.socket);
        }
        frame::write_control(&mut self.out.bytes, |out| match &accepted {
            Ok(()) => hello.put(out),
            Err(error) => native::put_error(out, None, &error.body()),
        })?;
        self.slot.set_client(number);
        // The client waits for the worker after this message. So the server must report a death from
        // here on.
        self.slot.enter(Phase::Setup)?;
        if !is_greeted {
            connection.write(&self.out)?;
        }
        if accepted.is_err() {
            // The phase shows the server that this exit is intended.
            self.slot.enter(Phase::Retired)?;
            return Err(ExitReason::Finished);
        }
        self.max_answer = max_frame.unwrap_or(DEFAULT_MAX_FRAME).min(self.max_answer);
        self.client_files = files.min(hello.max_files);
        Ok(())
    }
}

/// Checks that a worker with these interfaces can serve the client. The inner error is the answer to a client that it
/// cannot serve.
#[taskfork_macros::startup_code]
pub(super) fn check_client(
    client: &ClientHello<'_>,
    interfaces: impl FnOnce() -> Vec<&'static InterfaceDescription>,
) -> Result<Result<(), ErrorReply>, WireError> {
    if !client.versions.iter().any(|version| VERSIONS.contains(version)) {
        let message = format!(
            "the client `{}` speaks the protocol versions {:?}, this server {VERSIONS:?}",
            client.name, client.versions
        );
        return Ok(Err(ErrorReply::version(message)));
    }
    if let Some(reason) = client.incompatibility() {
        return Ok(Err(ErrorReply::hello(reason)));
    }
    let Some(required) = client.interfaces else { return Ok(Ok(())) };
    let difference = compatibility::difference(required, &interfaces())?;
    Ok(difference.map_or(Ok(()), |difference| Err(ErrorReply::wrong_interface(difference))))
}
