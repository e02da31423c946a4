//! The status socket of a server: its option, and sending the status through a connection.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use super::status::ServerStatus;

/// The option of the status socket's path.
#[derive(Debug, Default)]
pub(crate) enum StatusSocket {
    /// At the path of the listening unix socket with `.status` appended, or in the runtime directory.
    #[default]
    Default,
    At(PathBuf),
    Off,
}

/// How long a status is sent to a peer that reads slowly.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends a status, for at most [`SEND_TIMEOUT`].
pub(crate) fn send_within_timeout(connection: &impl AsFd, status: &ServerStatus) {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};

    let _ = rustix::io::ioctl_fionbio(connection, false);
    let Ok(mut text) = serde_json::to_vec(status) else { return };
    text.push(b'\n');
    let (deadline, mut rest) = (Instant::now() + SEND_TIMEOUT, &text[..]);
    while !rest.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || set_socket_timeout(connection, Timeout::Send, Some(left)).is_err() {
            return;
        }
        match send(connection, rest, SendFlags::NOSIGNAL) {
            Ok(sent) if sent > 0 => rest = &rest[sent..],
            _ => return,
        }
    }
}

/// Sends as much of a status as the socket's buffer takes.
pub(crate) fn send_at_once(connection: &impl AsFd, status: &ServerStatus) {
    let Ok(mut text) = serde_json::to_vec(status) else { return };
    text.push(b'\n');
    let _ = send(connection, &text, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sending_at_once_never_waits_for_the_peer() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let text = r#"{"name":"n","pid":1,"seconds":1.0,"accepting":true,"max_workers":1,"forked":0,
            "refused":0,"deaths":{},"workers":[]}"#;
        let mut status: ServerStatus = serde_json::from_str(text).unwrap();
        send_at_once(&here, &status);
        status.name = "x".repeat(1 << 20);
        // The peer reads nothing meanwhile.
        for _ in 0..100 {
            send_at_once(&here, &status);
        }
        drop(here);
        let mut read = String::new();
        there.read_to_string(&mut read).unwrap();
        let first: ServerStatus = serde_json::from_str(read.lines().next().unwrap()).unwrap();
        assert_eq!(first.name, "n");
    }
}
