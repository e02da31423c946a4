//! The message to a client that gets no worker, in the client's own protocol.

use super::error_body::ErrorBody;
use super::frame::{self, PREAMBLE};
use super::{Protocol, native, perl};

/// Encodes an error that stands in place of a worker's hello. `kind` is one of those in
/// [`error_body`](super::error_body); JSON has no kinds. Empty if the reason is too long for a message.
pub(crate) fn encode(
    protocol: Protocol,
    kind: &str,
    reason: &str,
    is_preamble_sent: bool,
) -> Vec<u8> {
    let mut out = Vec::new();
    match protocol {
        Protocol::Perl => perl::put_error(&mut out, None, reason),
        Protocol::Native => {
            let body = ErrorBody { kind, message: reason, ..ErrorBody::default() };
            if !is_preamble_sent {
                out.extend_from_slice(PREAMBLE);
            }
            let written = frame::write_control(&mut out, |out| native::put_error(out, None, &body));
            if written.is_err() {
                out.clear();
            }
        }
    }
    out
}
