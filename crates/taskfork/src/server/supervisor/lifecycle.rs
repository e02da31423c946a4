//! What the whole server does: serving, shutting down, restarting, and pausing to accept.

use std::time::Duration;

use super::Supervisor;
use super::action::Action;
use super::kill::{KillCause, KillReason};
use super::worker::{Fate, Leaving};
use crate::worker::scoreboard::Retirement;

/// How long accepting is paused after descriptors or processes have run out.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Serving,
    /// The listener is closed, and no new checkout begins. Running checkouts may continue until
    /// this time, or without limit.
    Draining(Option<Duration>),
    /// All workers have been killed.
    Killing,
}

impl Mode {
    /// When the workers are killed.
    pub(super) fn deadline(self) -> Option<Duration> {
        match self {
            Self::Draining(until) => until,
            Self::Serving | Self::Killing => None,
        }
    }
}

/// The new server that takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Succession {
    None,
    /// It has been started, and is not ready.
    Starting,
    TakenOver,
}

/// A pause in accepting.
#[derive(Debug, Default)]
pub(super) struct AcceptPause(Option<Duration>);

impl AcceptPause {
    /// When it ends, if there is one.
    pub(super) fn until(&self) -> Option<Duration> {
        self.0
    }
}

impl Supervisor {
    /// A connection could not be accepted, because descriptors or processes have run out.
    pub(crate) fn handle_accept_failed(&mut self, now: Duration) {
        self.accept_pause = AcceptPause(Some(now.saturating_add(ACCEPT_PAUSE)));
        self.actions.push_back(Action::PauseAccepting);
    }

    pub(super) fn end_accept_pause(&mut self, now: Duration) {
        if self.accept_pause.0.take_if(|until| *until <= now).is_some() {
            self.actions.push_back(Action::ResumeAccepting);
        }
    }

    /// The server was asked to end. The second request kills its workers.
    pub(crate) fn handle_end_request(&mut self, is_repeated: bool, now: Duration) {
        match self.mode {
            Mode::Serving => self.shut_down(now),
            // The server may be shutting down for another reason, such as a new server.
            Mode::Draining(_) | Mode::Killing if !is_repeated => {}
            Mode::Draining(_) | Mode::Killing => self.kill_all(KillCause::AtOnce),
        }
    }

    /// The process that forwards signals to the server has ended, and can forward no request to end any
    /// more.
    pub(crate) fn handle_parent_exit(&mut self, now: Duration) {
        if self.mode == Mode::Serving {
            self.shut_down(now);
        }
    }

    /// The program that started the server wants it to end, or has ended.
    pub(crate) fn handle_control_end(&mut self, now: Duration) {
        if self.mode == Mode::Serving {
            self.drain(now);
        }
    }

    /// The server was asked to let a new one take over. If one has taken over, the request is for it.
    pub(crate) fn handle_restart_request(&mut self) {
        match (self.mode, self.succession) {
            (Mode::Serving, Succession::Starting) => {
                self.actions.push_back(Action::CancelSuccessor { is_replaced: true });
                self.start_successor();
            }
            (Mode::Serving, _) => self.start_successor(),
            (_, Succession::TakenOver) => self.actions.push_back(Action::ForwardRestart),
            (_, Succession::None | Succession::Starting) => {}
        }
    }

    fn start_successor(&mut self) {
        self.succession = Succession::Starting;
        self.actions.push_back(Action::StartSuccessor);
    }

    /// The new server is ready.
    pub(crate) fn handle_successor_ready(&mut self, now: Duration) {
        self.succession = Succession::TakenOver;
        if self.mode == Mode::Serving {
            self.drain(now);
        }
    }

    /// The new server could not be started, or did not come up.
    pub(crate) fn handle_successor_failed(&mut self) {
        self.succession = Succession::None;
    }

    /// Whether a new server has been started that is not ready.
    pub(crate) fn is_successor_starting(&self) -> bool {
        self.succession == Succession::Starting
    }

    /// Shuts down without a successor.
    fn shut_down(&mut self, now: Duration) {
        if self.succession == Succession::Starting {
            self.succession = Succession::None;
            self.actions.push_back(Action::CancelSuccessor { is_replaced: false });
        }
        self.actions.push_back(Action::NotifyStopping);
        self.drain(now);
    }

    /// Asks all workers to leave after their checkouts.
    fn drain(&mut self, now: Duration) {
        let until = self.config.shutdown_grace.map(|grace| now.saturating_add(grace));
        self.mode = Mode::Draining(until);
        self.actions.push_back(Action::CloseConnections);
        self.accept_pause = AcceptPause::default();
        self.handshakes.clear();
        self.queue.clear();
        for (worker, state) in self.workers.iter_mut() {
            if state.leaving == Leaving::Staying {
                state.leaving = Leaving::Retiring(now);
            }
            self.actions.push_back(Action::Retire { worker, why: Retirement::Shutdown });
        }
    }

    pub(super) fn end_grace(&mut self, now: Duration) {
        if self.mode.deadline().is_some_and(|until| until <= now) {
            self.kill_all(KillCause::GraceOver);
        }
    }

    fn kill_all(&mut self, cause: KillCause) {
        if self.mode != Mode::Killing {
            self.killed = self.workers.len();
        }
        self.mode = Mode::Killing;
        for (worker, state) in self.workers.iter_mut() {
            if !state.fate.is_killed() {
                state.fate = Fate::Killed(Box::new(KillReason::new(cause)));
            }
            self.actions.push_back(Action::Kill { worker });
        }
    }
}
