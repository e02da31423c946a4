//! What `serve --config` tells a service manager that waits for it, as systemd does with `Type=notify`. The
//! servers of its pools tell it nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::Instant;

/// Tells it, without waiting for it. Nothing if there is none.
pub(crate) fn tell(what: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(what.as_bytes(), &address)
    });
    if let Err(error) = told {
        tracing::warn!("the service manager cannot be told {what}: {error}");
    }
}

/// How often it wants to hear of this process.
pub(crate) struct Watchdog {
    interval: Duration,
    next: Instant,
}

impl Watchdog {
    pub(crate) fn find() -> Option<Self> {
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let limit = Duration::from_micros(number("WATCHDOG_USEC")?);
        let is_own = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let interval = limit / 2;
        (is_own && !interval.is_zero()).then(|| Self { interval, next: Instant::now() })
    }

    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Says that this process is alive, if it is time.
    pub(crate) fn keep_alive(&mut self) {
        let now = Instant::now();
        if self.next <= now {
            tell("WATCHDOG=1");
            self.next = now + self.interval;
        }
    }
}
