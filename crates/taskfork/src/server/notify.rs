//! Notifications to the service manager, through its socket. If the manager does not read,
//! the server keeps the messages and sends them later, without waiting.

use std::env;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with,
};
use sd_notify::NotifyState;

use super::log;
use super::log_limit::LogLimit;

const VARIABLE: &str = "NOTIFY_SOCKET";

/// How often messages that the manager has not taken are sent again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Notifier {
    /// `None` without a manager.
    address: Option<SocketAddrUnix>,
    /// The messages to send, as `NAME=VALUE`. Each name occurs once.
    waiting: Vec<String>,
    /// When they are sent again.
    retry_at: Option<Instant>,
    failures: LogLimit,
}

impl Notifier {
    /// Finds the manager that the environment names.
    pub(super) fn find() -> Self {
        Self::new(env::var_os(VARIABLE).and_then(|name| address(name.as_bytes())))
    }

    fn new(address: Option<SocketAddrUnix>) -> Self {
        Self { address, waiting: Vec::new(), retry_at: None, failures: LogLimit::new(1) }
    }

    /// Sends these states, now or later.
    pub(super) fn notify(&mut self, what: &[NotifyState<'_>]) {
        for state in what.iter().map(ToString::to_string) {
            let is_same = |other: &String| name(other) == name(&state);
            match self.waiting.iter_mut().find(|other| is_same(other)) {
                Some(other) => *other = state,
                None => self.waiting.push(state),
            }
        }
        self.send();
    }

    /// Sends waiting messages if it is time. Returns the time until the next attempt.
    pub(super) fn retry(&mut self) -> Option<Duration> {
        let retry_at = self.retry_at?;
        if retry_at <= Instant::now() {
            self.send();
        }
        self.retry_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn send(&mut self) {
        self.retry_at = None;
        let Some(address) = &self.address else {
            self.waiting.clear();
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
        let text = self.waiting.join("\n");
        let sent = socket.and_then(|socket| {
            sendto(socket, text.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL, address)
        });
        match sent {
            Ok(_) => self.waiting.clear(),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR | Errno::MFILE | Errno::NFILE) => {
                self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
            }
            // A manager that is gone need not know that the server ends too.
            Err(Errno::CONNREFUSED | Errno::NOENT) if text.contains("STOPPING=1") => {
                self.waiting.clear();
            }
            Err(errno) => {
                self.waiting.clear();
                if self.failures.acquire(Instant::now()) {
                    log::warn!("the service manager cannot be notified: {errno}");
                }
            }
        }
    }
}

fn name(state: &str) -> &str {
    state.split('=').next().unwrap_or(state)
}

/// A path, or an abstract name, which begins with `@`.
fn address(name: &[u8]) -> Option<SocketAddrUnix> {
    match name {
        [b'@', rest @ ..] => SocketAddrUnix::new_abstract_name(rest).ok(),
        _ => SocketAddrUnix::new(name).ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_manager_that_does_not_read_gets_the_latest_once_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let mut notifier = Notifier::new(address(path.as_os_str().as_bytes()));
        let mut sent = 0;
        while notifier.retry().is_none() {
            notifier.notify(&[NotifyState::Watchdog]);
            sent += 1;
        }
        notifier.notify(&[NotifyState::Ready, NotifyState::MainPid(7)]);
        notifier.notify(&[NotifyState::MainPid(8)]);
        let read = || {
            let mut text = [0; 100];
            let length = manager.recv(&mut text).ok()?;
            Some(String::from_utf8_lossy(&text[..length]).into_owned())
        };
        assert_eq!(std::iter::from_fn(read).count(), sent - 1);
        std::thread::sleep(RETRY_INTERVAL);
        assert_eq!(notifier.retry(), None);
        assert_eq!(read().unwrap(), "WATCHDOG=1\nREADY=1\nMAINPID=8");
        drop(manager);
        notifier.notify(&[NotifyState::Watchdog]);
        assert!(notifier.waiting.is_empty());
    }

    #[test]
    fn a_name_in_no_folder_is_an_address_too() {
        let name = format!("taskfork-test-{}", std::process::id());
        use std::os::linux::net::SocketAddrExt;
        let own = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&own).unwrap();
        let mut notifier = Notifier::new(address(format!("@{name}").as_bytes()));
        notifier.notify(&[NotifyState::Stopping]);
        let mut text = [0; 100];
        assert_eq!(manager.recv(&mut text).unwrap(), "STOPPING=1".len());
    }
}
