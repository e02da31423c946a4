//! The signals of the process that keeps servers and gateways running.

use std::io;

use rustix::process::Signal;
use taskfork::__private::Hangup;
use tokio::signal::unix::{SignalKind, signal};

/// An event of this process.
#[derive(Debug)]
pub(crate) enum Event {
    /// A child has ended.
    Child,
    Restart,
    Shutdown(Signal),
    Forward(Signal),
}

#[derive(Debug)]
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// `None` if SIGHUP is ignored, because a handler would replace that.
    hangup: Option<tokio::signal::unix::Signal>,
    restarts: bool,
    child: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new(hangup: Hangup) -> io::Result<Self> {
        let is_ignored = hangup == Hangup::Ignored;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if is_ignored { None } else { Some(signal(SignalKind::hangup())?) },
            restarts: hangup == Hangup::Restart,
            child: signal(SignalKind::child())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Event {
        let Self { hangup, restarts, .. } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Event::Shutdown(Signal::TERM),
            _ = self.interrupt.recv() => Event::Shutdown(Signal::INT),
            _ = hangup => if *restarts { Event::Restart } else { Event::Shutdown(Signal::TERM) },
            _ = self.child.recv() => Event::Child,
            _ = self.user1.recv() => Event::Forward(Signal::USR1),
            _ = self.user2.recv() => Event::Forward(Signal::USR2),
        }
    }
}
