//! The service manager that started this server: its sockets, its notifications and its watchdog.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::environment;
use super::notify::Notifier;
use super::options::Options;
use super::parent::Parent;
use crate::address::Address;

/// The service manager that started this process, if there is one.
#[derive(Debug)]
pub struct ServiceManager {
    /// The interval of watchdog messages, and when the next one is due.
    watchdog: Option<(Duration, Instant)>,
    /// Whether it started this server, and not the program that this server belongs to.
    is_own: bool,
    /// Whether it knows the service by this server's process id, and not by that of a parent process.
    knows_pid: bool,
    /// The variables that workers must not inherit.
    variables: Vec<&'static str>,
    notifier: Notifier,
}

impl ServiceManager {
    pub(crate) fn find(options: &Options) -> Self {
        let is_own = options.control.is_none();
        let interval = sd_notify::watchdog_enabled().filter(|_| is_own).map(|limit| limit / 2);
        Self {
            watchdog: interval.map(|interval| (interval, Instant::now())),
            is_own,
            knows_pid: !options.parent.as_ref().is_some_and(Parent::keeps_pid),
            variables: environment::not_for_workers(),
            notifier: Notifier::find(),
        }
    }

    /// The manager of a program that runs servers in processes of their own. It knows the program's
    /// process id.
    pub(super) fn of_program() -> Self {
        let interval = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        Self {
            watchdog: interval.map(|interval| (interval, Instant::now())),
            is_own: true,
            knows_pid: false,
            variables: Vec::new(),
            notifier: Notifier::find(),
        }
    }

    /// The variables that workers must not inherit.
    pub(super) fn variables(&self) -> &[&'static str] {
        &self.variables
    }

    /// The first socket that it has opened for this server.
    pub(crate) fn listener() -> Option<Address> {
        let mut sockets = sd_notify::listen_fds().ok()?;
        sockets.next().map(Address::inherited)
    }

    /// Reports that the service is ready.
    pub fn notify_ready(&mut self) {
        match (self.is_own, self.knows_pid) {
            (true, true) => {
                let pid = NotifyState::MainPid(std::process::id());
                self.notifier.notify(&[NotifyState::Ready, pid]);
            }
            (true, false) => self.notifier.notify(&[NotifyState::Ready]),
            (false, _) => {}
        }
    }

    /// Reports that the service is stopping.
    pub fn notify_stopping(&mut self) {
        if self.is_own {
            self.notifier.notify(&[NotifyState::Stopping]);
        }
    }

    /// Reports that this process is alive if that is due, and repeats messages that the manager has not
    /// taken. Returns the time until something is due.
    pub fn keep_alive(&mut self) -> Option<Duration> {
        let retry = self.notifier.retry();
        let Some((interval, next)) = self.watchdog.as_mut() else { return retry };
        let now = Instant::now();
        if *next <= now {
            *next = now + *interval;
            self.notifier.notify(&[NotifyState::Watchdog]);
        }
        retry.into_iter().chain([*next - now]).min()
    }
}
