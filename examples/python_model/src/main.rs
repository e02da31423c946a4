//! A web service whose workers are a model in Python. The README beside it says how to try it.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add axum --no-default-features --features http1,json,query,tokio
//! cargo add serde --features derive
//! cargo add tokio --features full
//! ```
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router, serve};
use serde::{Deserialize, Serialize};
use taskfork::error::{CallError, FatalError, Stage};
use taskfork::worker::{Executable, ReplaceAfter};
use taskfork::{BoxError, Client, Error, Server};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long an answer may take, with the wait for a worker that loads the model.
const CALL_TIME: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
struct Question {
    text: String,
}

/// What the model says. The names are those of the dictionary in Python.
#[derive(Serialize, Deserialize)]
struct Answer {
    language: String,
    probability: f64,
    worker: u32,
    answered: u64,
}

fn main() -> Result<(), BoxError> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("model.py");
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    // A process with threads cannot be forked safely, so this comes before the runtime. The spare worker has loaded
    // the model before somebody asks.
    let server = Server::fork(|server| {
        let python = Executable::new(python).arg(model);
        // An error of the model is an answer: the worker keeps what it has loaded.
        let server = server.name("model").spare_workers(1).replace_after(ReplaceAfter::Panic);
        server.executable(python).run()
    })?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let client = Client::builder()
            .address(server.address())
            .name("model")
            .min_workers(1)
            .max_workers(2)
            .max_queue(100)
            .timeout(CALL_TIME)
            .build()?;
        let mut terminated = signal(SignalKind::terminate())?;
        let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8081".to_owned());
        let listener = TcpListener::bind(address).await?;
        println!("listening at http://{}", listener.local_addr()?);
        let app = Router::new()
            .route("/language", post(language))
            .layer(DefaultBodyLimit::max(64 << 10))
            .with_state(client.clone());
        let terminated = async move {
            terminated.recv().await;
        };
        serve(listener, app).with_graceful_shutdown(terminated).await?;
        client.close().await;
        Ok::<_, BoxError>(())
    })?;
    // Returns when no process of the server is left.
    server.close();
    println!("ended");
    Ok(())
}

/// `POST /language` with `{"text": "…"}`.
async fn language(
    State(client): State<Client>,
    Json(question): Json<Question>,
) -> Result<Json<Answer>, Response> {
    client.call("language", (question.text,)).await.map(Json).map_err(|error| refusal(&error))
}

/// A call that failed, as an answer.
fn refusal(error: &Error) -> Response {
    match error {
        // An exception. Its class and text are the message.
        Error::Call { error: CallError::Interface(failure), .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, format!("{failure}\n")).into_response()
        }
        Error::Fatal {
            cause:
                FatalError::Overloaded { .. } | FatalError::TimedOut { stage: Stage::Waiting, .. },
            ..
        } => {
            let text = "all workers are busy, try again later\n";
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], text).into_response()
        }
        error => {
            eprintln!("{}", error.report());
            (StatusCode::BAD_GATEWAY, "the model does not answer\n").into_response()
        }
    }
}
