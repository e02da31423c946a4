//! A connection whose worker runs `setup`: what its messages mean, and what a worker that is given up has begun.

use super::connection::Connection;
use super::disconnect::{Disconnect, NOTICE_WAIT};
use super::handshake::Handshake;
use super::input::Input;
use super::io_types::Event;
use super::setup::Setup;
use crate::client::now::Now;
use crate::wire::native::{self, FromWorker};

impl Connection {
    /// Whether the worker runs `setup`, so that it has begun no call.
    pub(crate) fn is_setting_up(&self) -> bool {
        matches!(self.handshake, Handshake::Setup(_))
    }

    /// Whether nothing that the worker has sent shows that it has begun a call, and nothing of that can have been lost.
    pub(crate) fn has_begun_nothing(&self) -> bool {
        self.is_setting_up() && !self.can_lose_answers()
    }

    /// The message that `setup` has succeeded has come.
    ///
    /// # Errors
    /// If it was not due.
    pub(super) fn handle_set_up(&mut self) -> Result<(), Disconnect> {
        if !self.is_setting_up() {
            return Err(Disconnect::violation(
                "the worker said that its setup is over, which was not due",
            ));
        }
        self.handshake = Handshake::Done;
        Ok(())
    }

    /// What a worker has done next that runs `setup`.
    pub(super) fn poll_setup(&mut self, now: &Now) -> Option<Event> {
        match &self.handshake {
            Handshake::Setup(Setup::Running) => match self.poll_message() {
                Some(Event::Message(body)) if native::is_of_begun_call(&body) => {
                    let what = "the worker answered a call before it said that its setup is over";
                    Some(Event::Ended(Disconnect::violation(what)))
                }
                event => event,
            },
            Handshake::Setup(Setup::Stopped { .. } | Setup::Ending { .. }) => self.poll_last(now),
            _ => None,
        }
    }

    /// Looks in what comes last for a sign that a call has begun.
    fn poll_last(&mut self, now: &Now) -> Option<Event> {
        let all = self.calls_sent();
        let aborted = |begun| Some(Event::SetupAborted { begun });
        loop {
            match self.take_message() {
                Ok(Some(body)) => match FromWorker::decode(&body) {
                    // It may have read any of them since.
                    Ok(FromWorker::SetUp) | Err(_) => return aborted(all),
                    Ok(FromWorker::Death(notice)) => return aborted(notice.calls.min(all)),
                    Ok(_) => {}
                },
                Ok(None) => break,
                Err(_) => return aborted(all),
            }
        }
        let is_open = matches!(self.input, Input::Open);
        match &mut self.handshake {
            Handshake::Setup(Setup::Stopped { is_exhausted: true }) => aborted(0),
            Handshake::Setup(Setup::Ending { is_late, due }) => {
                if *is_late || !is_open {
                    return aborted(all);
                }
                *due = due.or_else(|| NOTICE_WAIT.after(now.get()));
                None
            }
            _ => None,
        }
    }
}
