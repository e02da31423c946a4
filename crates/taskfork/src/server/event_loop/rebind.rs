//! Restoring the files of unix sockets that were removed while the server runs, for example by a
//! program that cleans `/tmp`. The server checks the files twice a second, and binds a new socket
//! if one is gone. It leaves the socket of another server alone.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use super::status::status_path;
use super::{EventLoop, LISTENER, STATUS};
use crate::server::error::ServerError;
use crate::server::listener::{BACKLOG, Listener};
use crate::server::log;
use crate::server::log_limit::LogLimit;
use crate::server::socket_file::Identity;

const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// How often a foreign socket at the path is asked whether it is still in use.
const FOREIGN_INTERVAL: Duration = Duration::from_secs(10);

/// How many attempts may find the lock held before that is logged. Another server may be starting
/// or stopping there.
const MAX_LOCKED_ATTEMPTS: u32 = 10;

/// The state of the socket files.
#[derive(Debug, Default)]
pub(super) struct SocketFiles {
    /// When the files are checked next.
    next: Option<Instant>,
    listener: MissingFile,
    status: MissingFile,
    /// A listener whose file was gone. Clients may have connected to it before that.
    former: Option<Listener>,
}

/// A file that is missing, or has been replaced.
#[derive(Debug, Default)]
struct MissingFile {
    attempts: u32,
    /// The last logged text. The same text is not logged again.
    logged: Option<String>,
    /// The socket of another server at the path, and when it is asked again.
    foreign: Option<(Identity, Instant)>,
}

impl SocketFiles {
    /// A new worker must close it.
    pub(super) fn former(&self) -> Option<&Listener> {
        self.former.as_ref()
    }
}

impl MissingFile {
    /// Binds a new socket if the file is gone, or if the socket could not be bound before. Returns
    /// the new listener.
    fn restore(
        &mut self,
        listener: Option<&Listener>,
        (path, mode): (&Path, u32),
        lines: &mut LogLimit,
    ) -> Option<Listener> {
        if listener.is_some_and(Listener::has_its_file) {
            *self = Self::default();
            return None;
        }
        let (now, there) = (Instant::now(), Listener::file_at(path));
        if self.foreign.is_some_and(|(file, until)| there == Some(file) && now < until) {
            return None;
        }
        self.attempts += 1;
        let shown = path.display();
        let error = match Listener::bind_again(path, mode) {
            Ok(new) => {
                if lines.acquire(now) {
                    log::warn!("the socket file {shown} was gone, and has been bound again");
                }
                *self = Self::default();
                return Some(new);
            }
            Err(error) => error,
        };
        let text = match error {
            ServerError::InUse { .. } => {
                self.foreign = there.map(|file| (file, now + FOREIGN_INTERVAL));
                format!(
                    "another server listens at {shown} now, and this one cannot be reached there"
                )
            }
            ServerError::Lock { .. } if self.attempts < MAX_LOCKED_ATTEMPTS => return None,
            error => format!("the socket file {shown} is gone, and cannot be bound again: {error}"),
        };
        if self.logged.as_ref() != Some(&text) {
            if lines.acquire(now) {
                log::error!("{text}");
            }
            self.logged = Some(text);
        }
        None
    }
}

impl EventLoop {
    /// Checks the files of the sockets if it is time. Returns the time until the next check.
    pub(super) fn check_socket_files(&mut self) -> Option<Duration> {
        let has_path =
            self.connections.listener.as_ref().is_some_and(|listener| listener.path().is_some());
        // A new server that takes over uses the same files.
        let is_active = self.supervisor.is_serving() && !self.supervisor.is_successor_starting();
        if !is_active
            || !has_path && status_path(&self.options, self.connections.listener.as_ref()).is_none()
        {
            self.connections.files.former = None;
            return None;
        }
        let now = Instant::now();
        if let Some(next) = self.connections.files.next.filter(|next| *next > now) {
            return Some(next - now);
        }
        self.connections.files.next = Some(now + CHECK_INTERVAL);
        self.accept_former();
        self.connections.files.former = None;
        self.restore_listener();
        self.restore_status();
        Some(CHECK_INTERVAL)
    }

    fn restore_listener(&mut self) {
        let Some(listener) = &self.connections.listener else { return };
        let Some(path) = listener.path() else { return };
        let (place, lines) = ((path, self.options.socket_mode), &mut self.logs.limits.files);
        let Some(new) = self.connections.files.listener.restore(Some(listener), place, lines)
        else {
            return;
        };
        let flags =
            if self.supervisor.is_accept_paused() { EventFlags::empty() } else { EventFlags::IN };
        if let Err(error) = self.watch(new.as_fd(), LISTENER, flags) {
            log::error!("the new listener cannot be watched: {error}");
            return;
        }
        let former = self.connections.listener.replace(new);
        if let Some(mut former) = former {
            let _ = epoll::delete(&self.process.epoll, &former);
            former.disown_file();
            self.connections.files.former = Some(former);
        }
        self.accept_former();
    }

    /// Admits the clients that connected before the file was gone.
    fn accept_former(&mut self) {
        // It stays in `self` while clients are admitted, so that workers that are forked for them
        // close it.
        for _ in 0..BACKLOG {
            let Some(former) = &self.connections.files.former else { return };
            let origin = former.origin();
            let Ok(connection) = former.accept() else { return };
            self.admit(connection, origin);
        }
    }

    fn restore_status(&mut self) {
        let Some(path) = status_path(&self.options, self.connections.listener.as_ref()) else {
            return;
        };
        let (status, lines) = (self.status.listener.as_ref(), &mut self.logs.limits.files);
        let Some(new) = self.connections.files.status.restore(status, (&path, 0o600), lines) else {
            return;
        };
        if let Err(error) = self.watch(new.as_fd(), STATUS, EventFlags::IN) {
            log::error!("the new status socket cannot be watched: {error}");
            return;
        }
        if let Some(mut former) = self.status.listener.replace(new) {
            let _ = epoll::delete(&self.process.epoll, &former);
            former.disown_file();
        }
    }
}
