//! What nodes relay to, in place of a server of workers.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use taskfork_nats::{Fleet, FleetOptions, Node, NodeBuilder, Session, SessionError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{UnixListener, UnixStream};

use crate::server::NatsServer;

/// Heartbeats in tests: short, so that a test of a lost node takes little time, and long enough for a
/// busy machine.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);

/// Longer than anything takes, unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A unix socket where something is done with each connection.
pub(crate) struct Backend {
    path: PathBuf,
    connections: Arc<AtomicUsize>,
    _folder: TempDir,
}

impl Backend {
    pub(crate) fn new<F, Fut>(serve: F) -> Self
    where
        F: Fn(UnixStream) -> Fut + Send + 'static,
        Fut: Future<Output = io::Result<()>> + Send + 'static,
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (served, count) = (serve(stream), Arc::clone(&count));
                tokio::spawn(async move {
                    let _ = served.await;
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { path, connections, _folder: folder }
    }

    /// Sends everything back, and ends when the other side has ended.
    pub(crate) fn echo() -> Self {
        Self::new(|mut stream| async move {
            let (mut reader, mut writer) = stream.split();
            copy(&mut reader, &mut writer).await?;
            writer.shutdown().await
        })
    }

    /// A node with this name, room for so many sessions, and short heartbeats.
    pub(crate) fn node(&self, service: &str, name: &str, sessions: usize) -> NodeBuilder {
        let path = self.path.clone();
        Node::builder(service, name, move |_| UnixStream::connect(path.clone()))
            .sessions(sessions)
            .heartbeat(HEARTBEAT)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until all connections are closed.
    pub(crate) async fn wait_until_idle(&self) {
        wait_until("all connections are closed", || self.connections.load(Ordering::SeqCst) == 0)
            .await;
    }
}

/// Waits for something that has no event.
pub(crate) async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "not in time: {what}");
}

/// A client with short heartbeats.
pub(crate) async fn fleet(server: &NatsServer, service: &str) -> Fleet {
    let options = FleetOptions::new().name("test").heartbeat(HEARTBEAT);
    Fleet::connect(&server.url(), service, options).await.unwrap()
}

/// Sends some bytes, and gets them back.
pub(crate) async fn assert_echoes(session: &mut Session) {
    session.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    tokio::time::timeout(LONG, session.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"ping");
}

/// Why a session has ended, from the error of a read or a write.
pub(crate) fn session_error(error: &io::Error) -> SessionError {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<SessionError>());
    source.unwrap_or_else(|| panic!("not an error of a session: {error:?}")).clone()
}
