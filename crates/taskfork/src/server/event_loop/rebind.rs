//! The files of the server's unix sockets can be removed while it runs, as by something that cleans `/tmp`.
//! The server looks for them twice a second, and binds again what has gone. A socket of another server that
//! took the path is left alone.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use super::status::status_path;
use super::{EventLoop, LISTENER, Mode, STATUS};
use crate::server::error::ServerError;
use crate::server::listener::{BACKLOG, Listener};
use crate::server::log;
use crate::server::log_limit::LogLimit;
use crate::server::socket_file::Identity;

const INTERVAL: Duration = Duration::from_millis(500);

/// How often it is asked whether a socket that another process has put there is still in use.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// So many attempts may find the lock held: another server is just starting or stopping there.
const LOCKED: u32 = 10;

/// What is known of the files.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// When to look at them next.
    next: Option<Instant>,
    listener: Missing,
    status: Missing,
    /// A listener whose file had gone. Clients may have connected to it before that.
    former: Option<Listener>,
}

/// A file that is not there, or has been replaced.
#[derive(Debug, Default)]
struct Missing {
    attempts: u32,
    /// What was logged last, so that it is logged once.
    told: Option<String>,
    /// A socket of another server's at the path, and when to ask for it again.
    foreign: Option<(Identity, Instant)>,
}

impl Files {
    /// What a new worker closes.
    pub(crate) fn former(&self) -> Option<&Listener> {
        self.former.as_ref()
    }
}

impl Missing {
    /// Binds a socket anew whose file has gone, or that could not be bound before. Returns the new one.
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
                self.foreign = there.map(|file| (file, now + ASK_AGAIN));
                format!(
                    "another server listens at {shown} now, and this one cannot be reached there"
                )
            }
            ServerError::Lock { .. } if self.attempts < LOCKED => return None,
            error => format!("the socket file {shown} is gone, and cannot be bound again: {error}"),
        };
        if self.told.as_ref() != Some(&text) {
            if lines.acquire(now) {
                log::error!("{text}");
            }
            self.told = Some(text);
        }
        None
    }
}

impl EventLoop {
    /// Looks for the files of the sockets if it is time. Returns the time until the next look.
    pub(super) fn check_socket_files(&mut self) -> Option<Duration> {
        let has_path = self.listener.as_ref().is_some_and(|listener| listener.path().is_some());
        // A new server that takes over uses the same files.
        let is_to_look = self.mode == Mode::Serving && self.successor.is_none();
        if !is_to_look || !has_path && status_path(&self.options, self.listener.as_ref()).is_none()
        {
            self.files.former = None;
            return None;
        }
        let now = Instant::now();
        if let Some(next) = self.files.next.filter(|next| *next > now) {
            return Some(next - now);
        }
        self.files.next = Some(now + INTERVAL);
        self.accept_former();
        self.files.former = None;
        self.restore_listener();
        self.restore_status();
        Some(INTERVAL)
    }

    fn restore_listener(&mut self) {
        let Some(listener) = &self.listener else { return };
        let Some(path) = listener.path() else { return };
        let (place, lines) = ((path, self.options.socket_mode), &mut self.log_limits.files);
        let Some(new) = self.files.listener.restore(Some(listener), place, lines) else { return };
        let flags =
            if self.accept_paused_until.is_some() { EventFlags::empty() } else { EventFlags::IN };
        if let Err(error) = self.watch(new.as_fd(), LISTENER, flags) {
            log::error!("the server cannot be reached by its new socket: {error}");
            return;
        }
        let former = self.listener.replace(new);
        if let Some(mut former) = former {
            let _ = epoll::delete(&self.epoll, &former);
            former.disown_file();
            self.files.former = Some(former);
        }
        self.accept_former();
    }

    /// Admits those who connected before the file had gone.
    fn accept_former(&mut self) {
        // As it is kept in the server, new workers close it.
        for _ in 0..BACKLOG {
            let Some(former) = &self.files.former else { return };
            let origin = former.origin();
            let Ok(connection) = former.accept() else { return };
            self.admit(connection, origin);
        }
    }

    fn restore_status(&mut self) {
        let Some(path) = status_path(&self.options, self.listener.as_ref()) else { return };
        let (status, lines) = (self.status.as_ref(), &mut self.log_limits.files);
        let Some(new) = self.files.status.restore(status, (&path, 0o600), lines) else { return };
        if let Err(error) = self.watch(new.as_fd(), STATUS, EventFlags::IN) {
            log::error!("the server cannot tell of itself by its new socket: {error}");
            return;
        }
        if let Some(mut former) = self.status.replace(new) {
            let _ = epoll::delete(&self.epoll, &former);
            former.disown_file();
        }
    }
}
