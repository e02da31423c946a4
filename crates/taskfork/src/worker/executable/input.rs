//! The input of a call, on its way to the program.

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Instant;

use super::translate;
use crate::error::Failure;
use crate::receiver::{InputPort, ReceiveError};
use crate::wire::credit::Allowance;
use crate::wire::frame;
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::native::InputEnd;
use crate::worker::error_reply::ErrorReply;

/// The input of one call.
pub(super) struct Input {
    port: Rc<dyn InputPort>,
    call: u64,
    /// What the program takes.
    allowance: Allowance,
    /// Nothing follows.
    is_over: bool,
    /// How many items were taken from the client.
    count: u64,
    /// Why an item could not be passed on.
    failure: Option<String>,
}

/// What the program gets next.
pub(super) enum Next {
    /// An item, or the end.
    Message(GatherFrame),
    /// Nobody wants the call any more.
    Cancelled,
    /// Nothing yet.
    Nothing,
}

impl Input {
    /// The input of the call with this number comes from `port`.
    pub(super) fn new(port: Rc<dyn InputPort>, call: u64) -> Self {
        let (allowance, is_over, count, failure) = (Allowance::default(), false, 0, None);
        Self { port, call, allowance, is_over, count, failure }
    }

    /// The program takes items until they have used this credit in all. The first credit asks the client for items.
    ///
    /// # Errors
    /// How the program has broken the protocol.
    pub(super) fn grant(&mut self, credit: u64) -> Result<(), &'static str> {
        self.allowance.grant(credit)?;
        self.port.open();
        Ok(())
    }

    /// Whether the program takes an item, or the end.
    pub(super) fn is_wanted(&self) -> bool {
        !self.is_over && self.allowance.allows()
    }

    /// Nothing more can be sent to the program.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }

    /// Waits for the next item, until `program` can be read or the time has come.
    pub(super) fn next(
        &mut self,
        program: BorrowedFd<'_>,
        until: Option<Instant>,
        limits: ReceiverLimits,
    ) -> Next {
        let (mut item, mut cost) = (GatherFrame::default(), 0);
        let taken = self.port.next_or(Some(program), until, &mut |value| {
            (item, cost) = translate::item(value, self.call, limits)?;
            Ok(())
        });
        if !matches!(taken, Ok(None)) {
            self.count += 1;
        }
        match taken {
            Ok(None) => return Next::Nothing,
            Ok(Some(true)) => {
                self.allowance.spend(cost);
                return Next::Message(item);
            }
            Ok(Some(false)) => {}
            Err(ReceiveError::Failed(error)) => return self.end_with(Some(&error)),
            Err(ReceiveError::Item(reason)) => {
                let count = self.count;
                let reason = format!(
                    "item {count} of the input cannot be passed on to the program: {reason}"
                );
                let message = self.end_with(Some(&reason));
                self.failure = Some(reason);
                return message;
            }
            Err(ReceiveError::Closed) => {
                self.is_over = true;
                return Next::Cancelled;
            }
        }
        self.end_with(None)
    }

    fn end_with(&mut self, error: Option<&str>) -> Next {
        self.is_over = true;
        let mut message = GatherFrame::default();
        frame::put(&mut message.bytes, |out| InputEnd { call: self.call, error }.put(out));
        Next::Message(message)
    }

    /// The error of the call if one of its items could not be passed on.
    pub(super) fn error(&self) -> Option<ErrorReply> {
        let failure = self.failure.as_deref();
        failure.map(|reason| ErrorReply::interface(&Failure::new(reason)))
    }
}
