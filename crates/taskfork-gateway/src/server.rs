//! The connection to the server.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// How long the server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How long to wait before the next attempt at a listener whose queue is full, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// Connects to the server at this socket. The error is for the client.
pub(crate) async fn connect(server: &Path) -> Result<UnixStream, String> {
    match timeout(CONNECT, connect_patiently(server)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("the gateway cannot reach its server: {error}")),
        Err(_) => Err("the server behind the gateway accepts no connection".to_owned()),
    }
}

/// A unix socket that must not block says that the queue of its listener is full, and not when there is room.
async fn connect_patiently(server: &Path) -> io::Result<UnixStream> {
    let mut wait = FIRST_WAIT;
    loop {
        match UnixStream::connect(server).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            connected => return connected,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

    use super::*;

    #[tokio::test]
    async fn a_full_queue_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let _queued = UnixStream::connect(&path).await.unwrap();
        let refused = UnixStream::connect(&path).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock, "the queue must be full");

        let connecting = tokio::spawn(async move { connect(&path).await });
        tokio::task::yield_now().await;
        let listener = std::os::unix::net::UnixListener::from(listener);
        let accept = move || [(); 2].map(|()| listener.accept().unwrap());
        let accepted = tokio::task::spawn_blocking(accept).await.unwrap();
        connecting.await.unwrap().unwrap();
        drop(accepted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_accepts_nothing_is_an_error_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let _queued = UnixStream::connect(&path).await.unwrap();
        let error = connect(&path).await.unwrap_err();
        assert!(error.contains("accepts no connection"), "{error}");
        let error = connect(&folder.path().join("none")).await.unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }
}
