//! A TCP port in front of a gateway. Its number is known before the gateway listens, and it counts connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The port. Until it leads to a gateway, connections are accepted and nothing follows.
pub(crate) struct Proxy {
    pub(crate) address: String,
    gateway: watch::Sender<Option<SocketAddr>>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (gateway, led) = watch::channel(None);
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                connections.spawn(relay(stream, led.clone()));
            }
        });
        Self { address, gateway, accepted, task }
    }

    pub(crate) fn lead_to(&self, gateway: SocketAddr) {
        self.gateway.send_replace(Some(gateway));
    }

    /// How many connections were accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut stream: TcpStream, mut led: watch::Receiver<Option<SocketAddr>>) {
    let gateway = led.wait_for(Option::is_some).await.ok().and_then(|gateway| *gateway);
    if let Some(gateway) = gateway
        && let Ok(mut gateway) = TcpStream::connect(gateway).await
    {
        // It fails if either side is gone.
        let _ = copy_bidirectional(&mut stream, &mut gateway).await;
    }
}
