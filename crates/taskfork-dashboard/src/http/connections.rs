//! Accepting connections, and bounding what each can cost.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
#[cfg(feature = "tls")]
use tokio::time::timeout;
use tokio::time::{Sleep, sleep};
#[cfg(feature = "tls")]
use tokio_rustls::TlsAcceptor;

use super::routes;
use crate::state::State;

/// The most connections, and the most from one address. Further ones are closed at once.
const MAX_CONNECTIONS: usize = 80;
const MAX_OF_ADDRESS: usize = 64;

/// How long the headers of a request may take. A connection without a request is closed after that, too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of the headers of a request, and how many headers there may be.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// How long a peer may take to read anything of what is sent to it.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The pause after a connection could not be accepted, for example because descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What is between TCP and HTTP.
#[derive(Debug, Clone)]
pub(crate) enum Encryption {
    None,
    #[cfg(feature = "tls")]
    Tls(crate::tls::Tls),
}

/// Serves connections, and accepts no more once `closing` is ready. Does not return.
pub(crate) async fn serve(
    listener: TcpListener,
    encryption: Encryption,
    state: Arc<State>,
    closing: impl Future<Output = ()>,
) {
    let router = routes::router(state);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut by_address = HashMap::<IpAddr, Arc<Semaphore>>::new();
    let mut closing = pin!(closing);
    loop {
        let accepted = tokio::select! {
            () = &mut closing => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        by_address.retain(|_, slots| slots.available_permits() < MAX_OF_ADDRESS);
        let of_address = by_address.entry(address);
        let of_address = of_address.or_insert_with(|| Arc::new(Semaphore::new(MAX_OF_ADDRESS)));
        let Ok(own_slot) = Arc::clone(of_address).try_acquire_owned() else { continue };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let (router, encryption) = (router.clone(), encryption.clone());
        connections.spawn(async move {
            let stream = StallLimit { stream, timer: None };
            match encryption {
                Encryption::None => serve_http(stream, router).await,
                #[cfg(feature = "tls")]
                Encryption::Tls(tls) => {
                    let accepting = TlsAcceptor::from(tls.config()).accept(stream);
                    // An error concerns this peer only: it speaks no TLS, or has no certificate that is wanted.
                    if let Ok(Ok(stream)) = timeout(HEADER_TIMEOUT, accepting).await {
                        serve_http(stream, router).await;
                    }
                }
            }
            drop((slot, own_slot));
        });
    }
    drop(listener);
    // Dropping the connections would close them.
    while connections.join_next().await.is_some() {}
    std::future::pending().await
}

async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server.max_buf_size(MAX_HEADER_BYTES).max_headers(MAX_HEADERS);
    let service = TowerToHyperService::new(router);
    // An error concerns this peer only: it has sent no HTTP, or has gone.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

/// A connection that fails if its peer does not read for [`STALL_TIMEOUT`].
struct StallLimit {
    stream: TcpStream,
    /// Runs while a write waits.
    timer: Option<Pin<Box<Sleep>>>,
}

impl StallLimit {
    fn check<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(STALL_TIMEOUT)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for StallLimit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for StallLimit {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.check(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.check(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
