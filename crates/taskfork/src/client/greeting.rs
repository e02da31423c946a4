//! The worker's greeting on a connection that is in use already: where another worker has greeted at once,
//! the first call goes with what the client says first, and the greeting comes before the answer.
//!
//! A worker greets before it begins anything, and what it has said can be read though it has died. So nothing has
//! begun on a connection that has ended without a greeting.

use std::task::{Context, Poll, ready};
use std::time::Instant;

use rustix::io::Errno;

use super::connect::{GreetError, Terms, most_files};
use super::connection::{Connection, Lost};
use crate::sys::TOO_MANY_FILES;

impl Connection {
    pub(crate) fn is_greeted(&self) -> bool {
        self.greeting.is_none()
    }

    /// A checkout takes it over. Gives since when the greeting is waited for, if another has had it before: then
    /// nobody sees to it that it is not waited for too long.
    pub(crate) fn is_held(&mut self) -> Option<Instant> {
        let greeting = self.greeting.as_mut()?;
        std::mem::replace(&mut greeting.held, true).then_some(greeting.since)
    }

    /// Waits for the greeting, if it has not come.
    pub(crate) fn poll_greeting(&mut self) -> Poll<Result<(), Lost>> {
        if self.is_greeted() { Poll::Ready(Ok(())) } else { self.poll_until_greeted() }
    }

    fn poll_until_greeted(&mut self) -> Poll<Result<(), Lost>> {
        while !self.hear()? {
            self.reserve();
            let mut context = Context::from_waker(&self.waker);
            let files = &mut self.files_received;
            let read = self.stream.poll_read(&mut context, &mut self.inbox, files);
            match ready!(read) {
                Ok(0) => return Poll::Ready(Err(ungreeted(GreetError::Closed))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(ungreeted(GreetError::of(error)))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the greeting if it is there, whether the reactor has heard of it or not; tells whether it has come.
    pub(crate) fn hear_at_once(&mut self) -> Result<bool, Lost> {
        while !self.hear()? {
            match self.receive_now() {
                Ok(length) if length > 0 => {}
                Err(Errno::INTR) => {}
                Err(TOO_MANY_FILES) => {
                    return Err(ungreeted(GreetError::of(TOO_MANY_FILES.into())));
                }
                Ok(_) | Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Has the worker greet nobody any more, if it has not yet, so that it begins nothing; tells whether it
    /// has. In any case the connection is of no use from here on.
    pub(crate) fn is_greeted_after_all(&mut self) -> bool {
        if !self.is_greeted() {
            self.stream.stop_reading();
        }
        matches!(self.hear_at_once(), Ok(true))
    }

    /// Takes the greeting off what has been received; tells whether it has come.
    fn hear(&mut self) -> Result<bool, Lost> {
        let Some(greeting) = &mut self.greeting else { return Ok(true) };
        let Some(hello) = greeting.hearing.hear(&mut self.inbox).map_err(ungreeted)? else {
            return Ok(false);
        };
        self.pid = hello.pid;
        if let Some(core) = greeting.core.upgrade() {
            let terms = Terms::of(&hello, &core.config, most_files(&core.config));
            (self.max_send, self.max_blob_sent) = (terms.max_send, terms.max_blob);
            (self.ahead, self.files) = (terms.ahead, terms.files);
            core.greeted(terms, greeting.since.elapsed());
        }
        self.greeting = None;
        Ok(true)
    }
}

fn ungreeted(error: GreetError) -> Lost {
    Lost::Ungreeted(error.to_string())
}
