//! The input of a call, on its way through a session behind its lock.

use std::sync::Arc;

use super::shared_session::SharedSession;
use crate::client::session::calls::Seq;
use crate::wire::gather_frame::GatherFrame;

/// What [`SharedSession::put_input`] has done with an item.
#[derive(Debug)]
pub(crate) enum PutInput {
    /// The worker wants another one.
    Continue,
    /// The worker wants no more at the moment.
    Enough,
    /// The worker wants none at the moment, so this one must wait.
    Wait(GatherFrame),
    /// The worker cannot receive it, for this reason.
    Unsendable(String),
}

impl SharedSession {
    /// Whether the worker takes an item of the input of this call now, or its end.
    pub(crate) fn wants_input(&self, seq: Seq) -> bool {
        self.lock().session.wants_input(seq)
    }

    /// Puts an item of the input of a call into the outbox. [`send_input`](Self::send_input) must follow.
    pub(crate) fn put_input(&self, seq: Seq, item: GatherFrame) -> PutInput {
        let mut state = self.lock();
        match state.session.put_input(seq, item) {
            Ok(None) if state.session.wants_input(seq) => PutInput::Continue,
            Ok(None) => PutInput::Enough,
            Ok(Some(item)) => PutInput::Wait(item),
            Err(reason) => PutInput::Unsendable(reason),
        }
    }

    /// Sends the end of the input of a call, and what is before it. `error` is why it ends early. Returns false if the
    /// worker cannot take it at the moment.
    pub(crate) fn end_input(self: &Arc<Self>, seq: Seq, error: Option<&str>) -> bool {
        let mut is_put = false;
        self.update(|state, _| is_put = state.session.end_input(seq, error));
        is_put
    }

    /// Sends the items that were put, as far as that is possible without waiting.
    pub(crate) fn send_input(self: &Arc<Self>) {
        self.update(|_, _| {});
    }
}
