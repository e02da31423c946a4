//! A web service that makes thumbnails. The README beside it says how to try it.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork --features metrics,spans
//! cargo add axum --no-default-features --features http1,json,query,tokio
//! cargo add image --no-default-features --features png,jpeg
//! cargo add metrics-exporter-prometheus --no-default-features
//! cargo add serde --features derive
//! cargo add thiserror
//! cargo add tokio --features full
//! cargo add tracing
//! cargo add tracing-subscriber
//! ```
#![forbid(unsafe_code)]

use std::io::{Cursor, IsTerminal};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, serve};
use image::{ImageError, ImageFormat, ImageReader};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use taskfork::error::{CallError, FatalError, Stage};
use taskfork::sandbox::Sandbox;
use taskfork::server::{Limit, ServerHandle};
use taskfork::{Blob, BoxError, Client, Error, Server, ServerBuilder, ServerError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{Instrument, error, info, info_span, warn};

/// The longest picture that is accepted, in bytes.
const MAX_UPLOAD: usize = 16 << 20;

/// The private memory of a worker, in bytes. A picture whose pixels need more ends its worker.
const WORKER_MEMORY: u64 = 256 << 20;

/// How long a picture may take, with the wait for a worker.
const CALL_TIME: Duration = Duration::from_secs(10);

/// How long a request may take, with its upload.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// How long requests go on after SIGTERM.
const SHUTDOWN_TIME: Duration = Duration::from_secs(20);

#[taskfork::interface]
trait Thumbnails {
    /// The picture as PNG, no side longer than `longest`.
    fn thumbnail(&mut self, picture: Blob, longest: u32) -> Result<Blob, PictureError>;
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("this is no picture in PNG or JPEG: {0}")]
struct PictureError(String);

impl From<ImageError> for PictureError {
    fn from(error: ImageError) -> Self {
        Self(error.to_string())
    }
}

struct Decoder;

impl Thumbnails for Decoder {
    fn thumbnail(&mut self, picture: Blob, longest: u32) -> Result<Blob, PictureError> {
        let reader = ImageReader::new(Cursor::new(&picture[..])).with_guessed_format();
        let mut reader = reader.map_err(ImageError::from)?;
        // The kernel limits the memory of the worker. That holds whatever a decoder counts.
        reader.no_limits();
        let picture = reader.decode()?;
        // It appears in the span of the request.
        info!(width = picture.width(), height = picture.height(), "decoded");
        let mut encoded = Cursor::new(Vec::new());
        picture.thumbnail(longest, longest).write_to(&mut encoded, ImageFormat::Png)?;
        Ok(encoded.into_inner().into())
    }
}

fn thumbnails(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .name("thumbnails")
        .sandbox(Sandbox::compute().max_result(4 << 20))
        .limit(Limit::Memory, WORKER_MEMORY)
        .setup(|| Ok::<_, BoxError>(Decoder))
        .interface(ThumbnailsInterface)
        .run()
}

/// What all requests share.
#[derive(Clone)]
struct Service {
    client: ThumbnailsClient,
    server: Arc<ServerHandle>,
    metrics: PrometheusHandle,
}

fn main() -> Result<(), BoxError> {
    // First of all: in the server's process it does not return.
    taskfork::init(&[("thumbnails", thumbnails)]);
    tracing_subscriber::fmt().with_ansi(std::io::stdout().is_terminal()).init();
    let metrics = PrometheusBuilder::new().install_recorder()?;
    tokio::runtime::Runtime::new()?.block_on(run(metrics))
}

async fn run(metrics: PrometheusHandle) -> Result<(), BoxError> {
    let server = Arc::new(Server::spawn("thumbnails")?);
    let client: ThumbnailsClient = Client::builder()
        .address(server.address())
        .name("thumbnails")
        .min_workers(1)
        .max_workers(setting("WORKERS", 2)?)
        .max_queue(setting("QUEUE", 20)?)
        .timeout(CALL_TIME)
        // A decoder that a picture has taken over could change the result while it is sent.
        .copy_shared_memory(true)
        .build_as()?;
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = TcpListener::bind(setting("LISTEN", "127.0.0.1:8080".to_owned())?).await?;
    info!("listening at http://{}", listener.local_addr()?);

    let service = Service { client: client.clone(), server: server.clone(), metrics };
    let app = Router::new()
        .route("/thumbnail", post(thumbnail))
        .route("/metrics", get(figures))
        .layer(DefaultBodyLimit::max(MAX_UPLOAD))
        .layer(middleware::from_fn(in_span))
        .with_state(service);
    let (stop, stopping) = tokio::sync::oneshot::channel();
    let signalled = async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        info!("shutting down");
        // Nobody waits for it once the service has ended.
        let _ = stop.send(());
    };
    let time_is_over = async {
        // An error: the service has ended.
        if stopping.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SHUTDOWN_TIME).await;
    };
    tokio::select! {
        served = serve(listener, app).with_graceful_shutdown(signalled) => served?,
        () = time_is_over => warn!("requests are cut off after {SHUTDOWN_TIME:?}"),
    }

    client.close().await;
    // Returns when no process of the server is left.
    server.shutdown();
    tokio::task::spawn_blocking(move || server.wait()).await?;
    info!("ended");
    Ok(())
}

/// An environment variable, or the default.
fn setting<T: FromStr<Err: std::fmt::Display>>(name: &str, default: T) -> Result<T, BoxError> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|error| format!("{name} is {text:?}: {error}").into()),
        Err(_) => Ok(default),
    }
}

/// Runs a request in a span, which is also that of its calls and of what workers record.
async fn in_span(request: Request, next: Next) -> Response {
    let span = info_span!("request", method = %request.method(), path = request.uri().path());
    let answer = async {
        let start = Instant::now();
        let answer = tokio::time::timeout(REQUEST_TIME, next.run(request)).await;
        let answer = answer.unwrap_or_else(|_| {
            (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response()
        });
        info!(status = answer.status().as_u16(), time = ?start.elapsed(), "answered");
        answer
    };
    answer.instrument(span).await
}

#[derive(Deserialize)]
struct Size {
    longest: Option<u32>,
}

/// `POST /thumbnail?longest=PIXELS`, with the picture as body.
async fn thumbnail(
    State(service): State<Service>,
    Query(size): Query<Size>,
    picture: Bytes,
) -> Result<Response, Refused> {
    info!(bytes = picture.len(), "received");
    let longest = size.longest.unwrap_or(128).clamp(1, 1024);
    let thumbnail = service.client.thumbnail(Blob::from(Vec::from(picture)), longest).await?;
    Ok(([(header::CONTENT_TYPE, "image/png")], thumbnail.to_vec()).into_response())
}

/// `GET /metrics`, for Prometheus.
async fn figures(State(service): State<Service>) -> String {
    let Service { server, metrics, .. } = service;
    // The question to the server blocks.
    match tokio::task::spawn_blocking(move || server.status()).await {
        Ok(Ok(status)) => status.record_metrics(),
        Ok(Err(error)) => warn!("the server does not say how it is: {error}"),
        Err(error) => error!("{error}"),
    }
    metrics.render()
}

/// A call that failed, as an answer.
struct Refused(Error<PictureError>);

impl From<Error<PictureError>> for Refused {
    fn from(error: Error<PictureError>) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let bad_picture = |text| (StatusCode::UNPROCESSABLE_ENTITY, text).into_response();
        match &self.0 {
            Error::Call { error: CallError::Interface(error), .. } => {
                bad_picture(format!("{error}\n"))
            }
            Error::Fatal {
                cause:
                    FatalError::Overloaded { .. } | FatalError::TimedOut { stage: Stage::Waiting, .. },
                ..
            } => {
                let wait = [(header::RETRY_AFTER, "1")];
                let text = "all workers are busy, try again later\n";
                (StatusCode::SERVICE_UNAVAILABLE, wait, text).into_response()
            }
            Error::Call { error: CallError::Panic(_), .. }
            | Error::Fatal {
                cause:
                    FatalError::WorkerDied(_) | FatalError::TimedOut { stage: Stage::Running, .. },
                ..
            } => {
                warn!("a picture was too much for its worker: {}", self.0);
                bad_picture(
                    "this picture cannot be decoded: it needs too much, or breaks the decoder\n"
                        .to_owned(),
                )
            }
            _ => {
                error!("{}", self.0.report());
                let text = "no thumbnails can be made at the moment\n";
                (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
            }
        }
    }
}
