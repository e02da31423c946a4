//! What is answered to each path.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State as Shared};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use taskfork::server::ServerStatus;
use tokio::time::timeout;

use super::events::Events;
use super::guard::{Refusal, check_change, check_host, check_token, has_other_host};
use crate::metrics;
use crate::state::{State, now};

/// The most bytes of a request's body, and how long it may take.
const MAX_BODY: usize = 4 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server may take for an action.
const ACTION_TIMEOUT: Duration = Duration::from_secs(12);

const WORKER_HAS_ENDED: &str = "this worker has ended, so nothing was done\n";

/// The page may load its own files and nothing else, and has no script or style within itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The page's files.
const FILES: [(&str, &str, &[u8]); 8] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("../page/style.css")),
    ("/main.js", "text/javascript; charset=utf-8", include_bytes!("../page/main.js")),
    ("/stream.js", "text/javascript; charset=utf-8", include_bytes!("../page/stream.js")),
    ("/format.js", "text/javascript; charset=utf-8", include_bytes!("../page/format.js")),
    ("/tables.js", "text/javascript; charset=utf-8", include_bytes!("../page/tables.js")),
    ("/curves.js", "text/javascript; charset=utf-8", include_bytes!("../page/curves.js")),
    ("/icon.svg", "image/svg+xml", include_bytes!("../page/icon.svg")),
];

pub(super) fn router(state: Arc<State>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/api/status", get(status))
        .route("/api/events", get(events))
        .route("/api/actions", post(act))
        .layer(from_fn_with_state(Arc::clone(&state), require_token));
    let mut open = Router::new()
        .route("/healthz", get(async || "this dashboard works\n"))
        .route("/readyz", get(ready));
    for (path, kind, content) in FILES {
        open = open.route(path, get(async move || ([(CONTENT_TYPE, kind)], content)));
    }
    open.merge(guarded)
        .fallback(async || (StatusCode::NOT_FOUND, "there is nothing at this path\n"))
        .layer(from_fn_with_state(Arc::clone(&state), protect))
        .with_state(state)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, what) = self;
        let mut response = (status, what).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Checks the host of each request, and protects each answer.
async fn protect(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    if has_other_host(request.headers()) {
        state.warn_of_host();
    }
    let mut response = match check_host(request.headers(), &state.options) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn require_token(
    Shared(state): Shared<Arc<State>>,
    request: Request,
    next: Next,
) -> Response {
    match check_token(request.headers(), &state.options) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Whether all servers can be used. It names none, because it needs no token.
async fn ready(Shared(state): Shared<Arc<State>>) -> Response {
    let (is_ready, text) = state.readiness();
    let status = match is_ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, text).into_response()
}

async fn metrics_page(Shared(state): Shared<Arc<State>>) -> Response {
    let text = metrics::text(&state.pools(), now());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn status(Shared(state): Shared<Arc<State>>) -> Response {
    match serde_json::to_vec(&state.full()) {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn events(Shared(state): Shared<Arc<State>>) -> Response {
    let Some(events) = Events::start(state) else {
        let what = "too many pages of this dashboard are open: close some\n";
        return Refusal(StatusCode::SERVICE_UNAVAILABLE, what).into_response();
    };
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

/// What to do with a worker.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Act {
    action: ActionName,
    pool: String,
    worker: u64,
    /// The process id that the user has seen. The worker's number may belong to that of another server by now.
    pid: u32,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ActionName {
    Dismiss,
    Kill,
}

async fn act(Shared(state): Shared<Arc<State>>, headers: HeaderMap, body: Body) -> Response {
    if !state.options.actions {
        let what =
            "this dashboard does not dismiss or kill workers: start it with actions allowed\n";
        return Refusal(StatusCode::FORBIDDEN, what).into_response();
    }
    if let Err(refusal) = check_change(&headers) {
        return refusal.into_response();
    }
    let Ok(Ok(body)) = timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await else {
        let what = "the request is longer than 4 KiB, or takes too long\n";
        return Refusal(StatusCode::PAYLOAD_TOO_LARGE, what).into_response();
    };
    let wanted: Act = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    carry_out(&state, wanted).await
}

async fn carry_out(state: &State, Act { action, pool, worker, pid }: Act) -> Response {
    let found = {
        let pools = state.pools();
        let pool = pools.iter().find(|it| it.id() == pool);
        pool.filter(|it| it.pid_of(worker) == Some(pid))
            .map(|it| it.socket().map(ToOwned::to_owned))
    };
    let Some(socket) = found else {
        return Refusal(StatusCode::CONFLICT, WORKER_HAS_ENDED).into_response();
    };
    let Some(socket) = socket else {
        let what = "workers of nodes can be ended at their own machines only\n";
        return Refusal(StatusCode::FORBIDDEN, what).into_response();
    };
    tracing::warn!(pool, worker, pid, "a worker is ended from the dashboard: {action:?}");
    let run = move || match action {
        ActionName::Dismiss => ServerStatus::dismiss(socket, worker, Some(pid)),
        ActionName::Kill => ServerStatus::kill(socket, worker, Some(pid)),
    };
    match timeout(ACTION_TIMEOUT, tokio::task::spawn_blocking(run)).await {
        Ok(Ok(Ok(status))) => match status.done {
            Some(true) => (StatusCode::OK, "done\n").into_response(),
            Some(false) => Refusal(StatusCode::CONFLICT, WORKER_HAS_ENDED).into_response(),
            None => {
                let what = "the server is too old to say what it has done\n";
                Refusal(StatusCode::BAD_GATEWAY, what).into_response()
            }
        },
        Ok(Ok(Err(error))) => {
            (StatusCode::BAD_GATEWAY, format!("the server does not answer: {error}\n"))
                .into_response()
        }
        _ => Refusal(StatusCode::GATEWAY_TIMEOUT, "the server does not answer\n").into_response(),
    }
}
